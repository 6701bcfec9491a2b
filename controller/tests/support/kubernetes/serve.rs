//! HTTP: calls to objects and lists in pages; and what the faults make of the answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::asked::{Asked, Scope};
use super::store::{Change, How, Refusal, Store};
use super::watching::open_watch;
use super::{Call, Cluster, End, Fault};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The API server as a service.
#[derive(Clone)]
pub struct Server {
    cluster: Cluster,
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
            cluster.lock().watches.retain(|watch| !watch.is_closed());
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
        accept: asked.accept.clone(),
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

// === bodies ===

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

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
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
