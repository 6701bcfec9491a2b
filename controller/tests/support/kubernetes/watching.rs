//! Open watches: what has happened since a version, bookmarks every minute, and silence.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Cluster;
use super::asked::{Asked, Scope};
use super::serve::{Answer, status};
use super::store::Store;

/// How often a watch is told how far it is, as the real one does.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// One open watch.
pub struct Watch {
    scope: Scope,
    seen: u64,
    silent: watch::Sender<bool>,
    to: mpsc::UnboundedSender<Bytes>,
}

pub(super) fn open_watch(cluster: &Cluster, asked: &Asked) -> Answer {
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

    /// Whether anybody still listens.
    pub(super) fn is_closed(&self) -> bool {
        self.to.is_closed()
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

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}
