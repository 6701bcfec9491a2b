//! HTTP: calls to objects, lists in pages, watches; and what the faults make of the answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::store::{Change, How, Place, Refusal, Resource, Store};
use super::{Call, Cluster, End, Fault};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// How often a watch is told how far it is, as the real one does.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// The API server as a service.
#[derive(Clone)]
pub struct Server {
    cluster: Cluster,
}

/// One open watch.
pub struct Watch {
    scope: Scope,
    seen: u64,
    silent: watch::Sender<bool>,
    to: mpsc::UnboundedSender<Bytes>,
}

/// Which objects are asked for, and how.
#[derive(Debug, Clone)]
struct Scope {
    resource: Resource,
    /// As objects name it.
    api_version: String,
    kind: String,
    namespace: Option<String>,
    labels: Option<String>,
    fields: Option<String>,
    metadata_only: bool,
}

/// A call, taken apart.
struct Asked {
    verb: &'static str,
    path: String,
    query: Vec<(String, String)>,
    content_type: String,
    body: Value,
    scope: Scope,
    name: Option<String>,
    subresource: Option<String>,
    known: bool,
}

/// Marks its call as given up, unless it is answered.
struct Open {
    cluster: Cluster,
    number: usize,
}

// === impl Server ===

impl Server {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

impl Service<Request<Body>> for Server {
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let cluster = self.cluster.clone();
        Box::pin(async move { serve(cluster, request).await })
    }
}

async fn serve(cluster: Cluster, request: Request<Body>) -> Result<Answer, BoxError> {
    let asked = Asked::read(&cluster, request).await?;
    let (open, fault) = log(&cluster, &asked);
    let mut frozen = cluster.frozen.subscribe();
    let _ = frozen.wait_for(|frozen| !frozen).await;
    let answer = match fault {
        None => answer(&cluster, &asked),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::LoseAnswer) => {
            drop(answer(&cluster, &asked));
            std::future::pending().await
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            answer(&cluster, &asked)
        }
        Some(Fault::Stall) => {
            let head = answer(&cluster, &asked).map(|_| silence());
            cluster.lock().watches.retain(|watch| !watch.to.is_closed());
            head
        }
        Some(Fault::Refuse(code, reason)) => refused((code, reason, format!("{reason}, as told"))),
        Some(Fault::Busy(seconds)) => busy(seconds),
        Some(Fault::Cut) => return Err("connection reset by the script".into()),
        Some(Fault::Answer(object)) => json_answer(200, &object),
    };
    open.answered(answer.status().as_u16());
    Ok(answer)
}

fn log(cluster: &Cluster, asked: &Asked) -> (Open, Option<Fault>) {
    let mut state = cluster.lock();
    let fault = state.fault(asked.verb, &asked.path);
    state.calls.push(Call {
        verb: asked.verb,
        path: asked.path.clone(),
        query: asked.query.clone(),
        body: asked.body.clone(),
        at: Instant::now(),
        end: End::Open,
    });
    let number = state.calls.len() - 1;
    drop(state);
    cluster.touch();
    let cluster = cluster.clone();
    (Open { cluster, number }, fault)
}

impl Open {
    fn answered(self, code: u16) {
        self.end(End::Answered(code));
    }

    fn end(&self, end: End) {
        if let Some(call) = self.cluster.lock().calls.get_mut(self.number)
            && call.end == End::Open
        {
            call.end = end;
        }
        self.cluster.touch();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end(End::GivenUp);
    }
}

// === impl Asked ===

impl Asked {
    async fn read(cluster: &Cluster, request: Request<Body>) -> Result<Self, BoxError> {
        let (head, body) = request.into_parts();
        let query = pairs(head.uri.query().unwrap_or_default());
        let text = |name: header::HeaderName| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let body = body.collect().await?.to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body)?
        };
        let get = |name: &str| {
            let found = query.iter().find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.clone())
                .filter(|v| !v.is_empty())
        };
        let path = head.uri.path().to_owned();
        let (group, version, rest) = api(&path);
        let (namespace, rest) = match rest.as_slice() {
            // A namespace's own subresource is no kind.
            ["namespaces", namespace, plural, rest @ ..]
                if !matches!(*plural, "status" | "finalize") =>
            {
                let all = std::iter::once(*plural).chain(rest.iter().copied());
                (Some((*namespace).to_owned()), all.collect::<Vec<_>>())
            }
            rest => (None, rest.to_vec()),
        };
        let plural = rest.first().copied().unwrap_or_default();
        let kind = cluster.lock().store.kind(group, version, plural).copied();
        let name = rest.get(1).map(|name| (*name).to_owned());
        let watching = get("watch").is_some_and(|value| value == "true" || value == "1");
        let verb = match (head.method.as_str(), &name) {
            ("GET", None) if watching => "WATCH",
            ("GET", None) => "LIST",
            ("GET", Some(_)) => "GET",
            ("POST", _) => "POST",
            ("PUT", _) => "PUT",
            ("PATCH", _) => "PATCH",
            _ => "DELETE",
        };
        let scope = Scope {
            resource: Resource {
                group: group.to_owned(),
                plural: plural.to_owned(),
            },
            api_version: if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            },
            kind: kind.map_or("", |kind| kind.3).to_owned(),
            namespace,
            labels: get("labelSelector"),
            fields: get("fieldSelector"),
            metadata_only: text(header::ACCEPT).contains("as=PartialObjectMetadata"),
        };
        Ok(Self {
            verb,
            subresource: rest.get(2).map(|name| (*name).to_owned()),
            content_type: text(header::CONTENT_TYPE),
            known: kind.is_some(),
            path,
            query,
            body,
            scope,
            name,
        })
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    fn place(&self) -> Place {
        let namespace = self.scope.namespace.clone().unwrap_or_default();
        let name = self.name.clone().or_else(|| {
            let name = self.body["metadata"]["name"].as_str();
            name.map(str::to_owned)
        });
        (
            self.scope.resource.clone(),
            namespace,
            name.unwrap_or_default(),
        )
    }
}

/// Group, version and what follows.
fn api(path: &str) -> (&str, &str, Vec<&str>) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", version, rest @ ..] => ("", version, rest.to_vec()),
        ["apis", group, version, rest @ ..] => (group, version, rest.to_vec()),
        _ => ("", "", Vec::new()),
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let bytes = text.as_bytes();
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let hex = bytes
                .get(at + 1..at + 3)
                .and_then(|two| std::str::from_utf8(two).ok());
            match hex.map(|two| u8::from_str_radix(two, 16)) {
                Some(Ok(byte)) if bytes[at] == b'%' => {
                    out.push(byte);
                    at += 3;
                }
                _ => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

// === answers ===

fn answer(cluster: &Cluster, asked: &Asked) -> Answer {
    if !asked.known {
        // As for a kind that is not installed.
        return plain(404, "404 page not found\n");
    }
    let result = match asked.verb {
        "WATCH" => return open_watch(cluster, asked),
        "LIST" => list(&cluster.lock().store, asked),
        "GET" => {
            let place = asked.place();
            let state = cluster.lock();
            match state.store.at(&place) {
                Some(object) => Ok((200, asked.scope.shown(object))),
                None => Err(super::store::not_found(&place)),
            }
        }
        _ => write(&mut cluster.lock().store, asked),
    };
    cluster.tell();
    match result {
        Ok((code, object)) => json_answer(code, &object),
        Err(refusal) => refused(refusal),
    }
}

fn write(store: &mut Store, asked: &Asked) -> Result<(u16, Value), Refusal> {
    let mut place = asked.place();
    let status = asked.subresource.as_deref() == Some("status");
    let mut body = asked.body.clone();
    let how = match asked.verb {
        "POST" => {
            if place.2.is_empty() {
                let prefix = body["metadata"]["generateName"].as_str();
                place.2 = format!("{}{}", prefix.unwrap_or("unnamed-"), store.pass());
            }
            named(&mut body, &asked.scope);
            let made = store.create(place, body)?;
            return Ok((201, asked.scope.shown(&made)));
        }
        "DELETE" => {
            let gone = store.delete(&place, &body)?;
            return Ok((200, asked.scope.shown(&gone)));
        }
        "PUT" => How::Replace,
        _ if asked.content_type.starts_with("application/apply-patch") => How::Apply {
            manager: asked.get("fieldManager").unwrap_or("unknown").to_owned(),
            force: asked.get("force") == Some("true"),
        },
        _ if asked.content_type.starts_with("application/merge-patch") => How::Merge,
        _ => return Err((415, "UnsupportedMediaType", asked.content_type.clone())),
    };
    if !matches!(how, How::Merge) {
        named(&mut body, &asked.scope);
    }
    let after = store.change(&place, Change { how, body, status })?;
    Ok((200, asked.scope.shown(&after)))
}

/// What a body may leave out because the path says it.
fn named(body: &mut Value, scope: &Scope) {
    body["apiVersion"] = json!(scope.api_version);
    body["kind"] = json!(scope.kind);
}

fn list(store: &Store, asked: &Asked) -> Result<(u16, Value), Refusal> {
    let expired = || {
        (
            410,
            "Expired",
            "the provided continue parameter is too old".to_owned(),
        )
    };
    let (version, after) = match asked.get("continue") {
        None => (store.version(), None),
        Some(token) => {
            let (version, after) = token.split_once(' ').ok_or_else(expired)?;
            let version: u64 = version.parse().map_err(|_| expired())?;
            if !store.remembers(version) {
                return Err(expired());
            }
            (version, Some(after.to_owned()))
        }
    };
    let limit = asked.get("limit").and_then(|limit| limit.parse().ok());
    // As the real server: from its cache come all at once.
    let limit: usize = limit
        .filter(|limit| *limit > 0 && asked.get("resourceVersion") != Some("0"))
        .unwrap_or(usize::MAX);
    let all = store.as_of(version, &asked.scope.resource);
    let mut rest = all
        .iter()
        .filter(|(_, object)| asked.scope.holds(object))
        .map(|((_, namespace, name), object)| (format!("{namespace}/{name}"), object))
        .filter(|(key, _)| after.as_ref().is_none_or(|after| key > after))
        .peekable();
    let mut items = Vec::new();
    let mut last = String::new();
    while items.len() < limit
        && let Some((key, object)) = rest.next()
    {
        items.push(asked.scope.shown(object));
        last = key;
    }
    let token = rest.peek().map(|_| format!("{version} {last}"));
    let scope = &asked.scope;
    let (api_version, kind) = if scope.metadata_only {
        ("meta.k8s.io/v1", "PartialObjectMetadataList".to_owned())
    } else {
        (scope.api_version.as_str(), format!("{}List", scope.kind))
    };
    let list = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"resourceVersion": version.to_string(), "continue": token.unwrap_or_default()},
        "items": items,
    });
    Ok((200, list))
}

fn open_watch(cluster: &Cluster, asked: &Asked) -> Answer {
    let mut state = cluster.lock();
    let from = asked.get("resourceVersion").unwrap_or("0");
    let from: u64 = from.parse().unwrap_or(0);
    let (to, told) = mpsc::unbounded_channel();
    let (silent, when_silent) = watch::channel(false);
    let mut watch = Watch {
        scope: asked.scope.clone(),
        seen: from,
        silent,
        to,
    };
    if from == 0 {
        watch.seen = state.store.version();
        let all = state.store.as_of(watch.seen, &watch.scope.resource);
        for object in all.values().filter(|object| watch.scope.holds(object)) {
            watch.say("ADDED", object);
        }
    }
    if from == 0 || state.store.remembers(from) {
        watch.tell(&state.store);
        state.watches.push(watch);
    } else {
        // As the watch cache says it: within an answer that began well. And then it ends.
        let status = status(410, "Expired", &format!("too old resource version: {from}"));
        watch.send(&json!({"type": "ERROR", "object": status}));
    }
    drop(state);
    let seconds = asked
        .get("timeoutSeconds")
        .and_then(|text| text.parse().ok());
    let bookmarks = asked.get("allowWatchBookmarks") == Some("true");
    let stream = Streaming {
        cluster: cluster.clone(),
        scope: asked.scope.clone(),
        told,
        silent: when_silent,
        bookmark: Instant::now() + BOOKMARKS,
        bookmarks,
        until: Instant::now() + Duration::from_secs(seconds.unwrap_or(1800)),
    };
    let body = stream::unfold(stream, async |mut stream| {
        let next = stream.next().await?;
        Some((Ok(Frame::data(next)), stream))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(body.boxed()));
    let mut answer = Response::new(body);
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    answer
}

/// The sending end of a watch.
struct Streaming {
    cluster: Cluster,
    scope: Scope,
    told: mpsc::UnboundedReceiver<Bytes>,
    silent: watch::Receiver<bool>,
    bookmark: Instant,
    bookmarks: bool,
    until: Instant,
}

impl Streaming {
    async fn next(&mut self) -> Option<Bytes> {
        let mut frozen = self.cluster.frozen.subscribe();
        let silent = &mut self.silent;
        let silenced = async { silent.wait_for(|silent| *silent).await.is_ok() };
        let told = tokio::select! {
            biased;
            true = silenced => None,
            told = self.told.recv() => Some(told),
            () = tokio::time::sleep_until(self.bookmark), if self.bookmarks => Some(Some(self.mark())),
            () = tokio::time::sleep_until(self.until) => Some(None),
        };
        let Some(told) = told else {
            return std::future::pending().await;
        };
        let _ = frozen.wait_for(|frozen| !frozen).await;
        told
    }

    /// How far it is by now.
    fn mark(&mut self) -> Bytes {
        self.bookmark += BOOKMARKS;
        let version = self.cluster.lock().store.version().to_string();
        let object = json!({
            "apiVersion": self.scope.api_version,
            "kind": self.scope.kind,
            "metadata": {"resourceVersion": version},
        });
        line(&json!({"type": "BOOKMARK", "object": object}))
    }
}

// === impl Watch ===

impl Watch {
    /// Says what has happened since; false when nobody listens any more.
    pub(super) fn tell(&mut self, store: &Store) -> bool {
        for happened in store.since(self.seen, &self.scope.resource) {
            let before = happened.before.as_ref().filter(|one| self.scope.holds(one));
            let after = happened.after.as_ref().filter(|one| self.scope.holds(one));
            let (kind, object) = match (before, after) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after.clone()),
                (Some(_), Some(after)) => ("MODIFIED", after.clone()),
                (Some(before), None) => {
                    let mut last = before.clone();
                    last["metadata"]["resourceVersion"] = json!(happened.version.to_string());
                    ("DELETED", last)
                }
            };
            self.say(kind, &object);
        }
        self.seen = store.version();
        !self.to.is_closed()
    }

    pub(super) fn silence(&mut self) {
        self.silent.send_replace(true);
    }

    fn say(&self, kind: &str, object: &Value) {
        self.send(&json!({"type": kind, "object": self.scope.shown(object)}));
    }

    fn send(&self, event: &Value) {
        // A caller that went away is found out by `tell`.
        let _ = self.to.send(line(event));
    }
}

// === impl Scope ===

impl Scope {
    /// Whether the object is asked for.
    fn holds(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let there = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
        let namespace = self.namespace.as_deref();
        namespace.is_none_or(|namespace| meta["namespace"] == namespace)
            && selected(self.labels.as_deref(), |name| {
                meta["labels"]
                    .get(name)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            && selected(self.fields.as_deref(), |path| {
                let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
                let of = parents.split('.').fold(object, |of, name| &of[name]);
                Some(there(of, last))
            })
    }

    /// The object as it is asked for.
    fn shown(&self, object: &Value) -> Value {
        if !self.metadata_only {
            return object.clone();
        }
        json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": object["metadata"],
        })
    }
}

/// Whether every requirement holds: `a=b`, `a==b`, `a!=b`, `a`, `!a`.
fn selected(selector: Option<&str>, get: impl Fn(&str) -> Option<String>) -> bool {
    let all = selector.unwrap_or_default().split(',');
    all.map(str::trim).filter(|one| !one.is_empty()).all(|one| {
        if let Some((name, value)) = one.split_once("!=") {
            return get(name.trim()).as_deref() != Some(value.trim());
        }
        if let Some((name, value)) = one.split_once('=') {
            let value = value.trim_start_matches('=').trim();
            return get(name.trim()).as_deref() == Some(value);
        }
        match one.strip_prefix('!') {
            Some(name) => get(name).is_none(),
            None => get(one).is_some(),
        }
    })
}

// === bodies ===

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

fn silence() -> UnsyncBoxBody<Bytes, BoxError> {
    BodyExt::boxed_unsync(StreamBody::new(stream::pending().boxed()))
}

fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn plain(code: u16, text: &'static str) -> Answer {
    let mut answer = Response::new(full(text.as_bytes()));
    *answer.status_mut() = http::StatusCode::from_u16(code).expect("a status code");
    answer
}

fn json_answer(code: u16, object: &Value) -> Answer {
    let mut answer = Response::new(full(object.to_string()));
    *answer.status_mut() = http::StatusCode::from_u16(code).expect("a status code");
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    answer
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}

fn refused((code, reason, message): Refusal) -> Answer {
    json_answer(code, &status(code, reason, &message))
}

/// As priority and fairness refuses: no `Status`, only text.
fn busy(seconds: u64) -> Answer {
    let mut answer = plain(429, "Too many requests, please try again later.\n");
    answer
        .headers_mut()
        .insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
    answer
}
