//! One watch: lists a kind page by page, then follows it, for ever, whatever the API server does.
//!
//! | the API server | so |
//! | --- | --- |
//! | answers nothing, or too late | the call ends at its deadline and is tried again with back-off; what is known stays |
//! | keeps a watch open and says nothing | bookmarks come every minute: after [`IDLE`] the watch is opened again from the last version; [`SILENT_BEFORE_RELIST`] such in a row, and everything is listed anew |
//! | 410: no longer knows the version | everything is listed anew, at once (with back-off if nothing comes of that list either); what is known stays, and is swept when all is told |
//! | 410 to a page of a list: took too long for its version | listed anew, with back-off, in pages twice as large |
//! | 429 | tried again when it says, or with back-off |
//! | 404 for the kind | [`WatchEvent::Absent`]; unless it was there before: then this is a server that has just started |
//! | other refusals, and answers that cannot be read | tried again with back-off; [`REFUSED_BEFORE_RELIST`] watches in a row, and everything is listed anew |
//! | ends a watch | it is opened again from the last version |
//! | takes too long for a page | asked for half as many |
//! | sends an object that cannot be decoded | [`WatchEvent::Kept`]: what was known of it stays, it is counted and logged and has an Event, and the others are told |
//!
//! At most one page is held at a time, and its items are handed on one by one: memory does not follow the cluster's size.

mod backoff;
mod kinds;
pub mod liveness;
mod raw;
mod unreadable;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::Resource;
use kube::api::{Api, ListParams, WatchParams};
use prometheus_client::metrics::gauge::Gauge;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use self::backoff::Backoff;
pub use self::kinds::all;
use self::liveness::Liveness;
use self::raw::{Content, Line, Object, Page, Source};
use self::unreadable::Unreadable;
use crate::index::changes::{Kind, Notice};
pub use crate::index::event::WatchEvent;
use crate::index::names::Key;
use crate::kubernetes::{is_late, retry_after};
use crate::metrics::Metrics;

/// Objects asked for at once: some megabytes of the largest pods.
const PAGE: u32 = 500;
/// No smaller pages than this, however slow the server.
const SMALLEST_PAGE: u32 = 60;
/// No larger ones than this, however soon the server forgets the version of a list: some ten megabytes.
const LARGEST_PAGE: u32 = 4000;
/// A watch that says nothing for this long is dead: two bookmarks and a half are missing.
pub const IDLE: Duration = Duration::from_secs(150);
/// The server ends a watch after about this many seconds; not all watches at once.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 240..=290;
/// So many silent watches in a row: perhaps the server keeps nothing for this version.
pub const SILENT_BEFORE_RELIST: u32 = 3;
/// So many refused watches in a row: perhaps the server does not know this version (it came back from a backup).
pub const REFUSED_BEFORE_RELIST: u32 = 5;
/// However dead a watch was, by now it has noticed that and listed anew.
pub const RECOVERED_WITHIN: Duration = IDLE
    .saturating_mul(SILENT_BEFORE_RELIST)
    .saturating_add(LISTED_ANEW);
/// How long listing anew takes, with some pages that are asked for twice.
const LISTED_ANEW: Duration = Duration::from_secs(60);

/// What is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The kind, for people.
    pub kind: &'static str,
    /// Only objects with these labels.
    pub labels: Option<String>,
    /// Only objects with these fields.
    pub fields: Option<String>,
    /// Where those are counted that cannot be decoded.
    pub unreadable: Gauge,
    /// As what they are, and where, told to people, if they are.
    pub notices: Option<(Kind, Sender<Notice>)>,
    /// Where it is kept when something was heard, if it is.
    pub liveness: Option<Liveness>,
}

/// Where watches say how they fare.
#[derive(Debug, Clone)]
pub struct Reporting {
    /// Counts.
    pub metrics: Metrics,
    /// What becomes Events. When it is full, nobody has taken any for long: then this is left out.
    pub notices: Sender<Notice>,
    /// What makes the replica unready.
    pub liveness: Liveness,
}

struct Watch<K, On> {
    source: Source,
    watched: Watched,
    unreadable: Unreadable,
    on: On,
    kind: PhantomData<fn() -> K>,
    page: u32,
    /// All was told once.
    known: bool,
    /// The version of the last list was too old before anything was heard.
    stillborn: bool,
    absent: bool,
    backoff: Backoff,
}

/// How one watch ended.
enum Ended {
    /// The server ended it, as it does every few minutes.
    Closed,
    /// Nothing was heard for too long.
    Silent,
    /// The version is too old.
    Expired,
    Failed(kube::Error),
}

// === impl Watched ===

impl Watched {
    /// All objects of the kind.
    pub fn all(kind: &'static str) -> Self {
        Self {
            kind,
            labels: None,
            fields: None,
            unreadable: Gauge::default(),
            notices: None,
            liveness: None,
        }
    }

    /// Those with these labels.
    #[must_use]
    pub fn labels(mut self, selector: &str) -> Self {
        self.labels = Some(selector.to_owned());
        self
    }

    /// Those with these fields.
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        self.fields = Some(selector.to_owned());
        self
    }
}

// === impl Reporting ===

impl Reporting {
    /// All objects of a kind of the index.
    fn watched(&self, kind: Kind) -> Watched {
        let plural = kind.api().plural;
        self.liveness.heard(plural);
        Watched {
            unreadable: self.metrics.unreadable(plural),
            notices: Some((kind, self.notices.clone())),
            liveness: Some(self.liveness.clone()),
            ..Watched::all(plural)
        }
    }
}

/// Watches until `on` breaks. For metadata alone, `K` is `PartialObjectMeta` of the kind.
pub async fn watch<K, On, Done>(watched: Watched, api: Api<K>, on: On)
where
    K: Resource + Clone + DeserializeOwned + Debug,
    On: FnMut(WatchEvent<K>) -> Done,
    Done: Future<Output = ControlFlow<()>>,
{
    let mut watch = Watch {
        source: Source::of(api),
        unreadable: Unreadable::new(&watched),
        watched,
        on,
        kind: PhantomData,
        page: PAGE,
        known: false,
        stillborn: false,
        absent: false,
        backoff: Backoff::new(),
    };
    // It ends by breaking, and only so.
    let _ = watch.run().await;
}

// === impl Watch ===

impl<K, On, Done> Watch<K, On>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    On: FnMut(WatchEvent<K>) -> Done,
    Done: Future<Output = ControlFlow<()>>,
{
    async fn run(&mut self) -> ControlFlow<()> {
        loop {
            let version = self.list().await?;
            self.follow(version).await?;
        }
    }

    async fn tell(&mut self, event: WatchEvent<K>) -> ControlFlow<()> {
        (self.on)(event).await
    }

    fn heard(&self) {
        if let Some(liveness) = &self.watched.liveness {
            liveness.heard(self.watched.kind);
        }
    }

    /// Lists, as often as it takes; as of which version.
    async fn list(&mut self) -> ControlFlow<(), String> {
        loop {
            match self.pages().await? {
                Ok(version) => {
                    self.heard();
                    self.known = true;
                    // Larger ones had a reason, which comes again with the next list.
                    self.page = self.page.max(PAGE);
                    if !self.stillborn {
                        self.backoff.reset();
                    }
                    return ControlFlow::Continue(version);
                }
                Err(error) if is_absent(&error) && !self.known => {
                    self.heard();
                    if !std::mem::replace(&mut self.absent, true) {
                        let kind = self.watched.kind;
                        tracing::warn!(
                            kind,
                            "this kind is not installed: the mesh works without it, and looks for it again"
                        );
                        self.tell(WatchEvent::Absent).await?;
                    }
                    tokio::time::sleep(self.backoff.pause(None)).await;
                }
                Err(error) => self.pause(&error, "list failed; trying again").await,
            }
        }
    }

    async fn pages(&mut self) -> ControlFlow<(), kube::Result<String>> {
        let mut params = ListParams {
            label_selector: self.watched.labels.clone(),
            field_selector: self.watched.fields.clone(),
            ..ListParams::default()
        };
        let mut begun = false;
        let mut kept = BTreeSet::new();
        loop {
            params.limit = Some(self.page);
            let text = match self.source.list(&params).await {
                Ok(text) => text,
                Err(error) if is_late(&error) && self.page > SMALLEST_PAGE => {
                    self.page = (self.page / 2).max(SMALLEST_PAGE);
                    continue;
                }
                Err(error) => {
                    if is_expired(&error) {
                        self.page = (self.page * 2).min(LARGEST_PAGE);
                    }
                    return ControlFlow::Continue(Err(error));
                }
            };
            let page = match Page::read(&text) {
                Ok(page) => page,
                Err(error) => return ControlFlow::Continue(Err(error)),
            };
            if !std::mem::replace(&mut begun, true) {
                self.tell(WatchEvent::Begin).await?;
            }
            for item in page.items {
                match Object::read(item) {
                    Ok(object) => self.item(object, &mut kept).await?,
                    Err(error) => return ControlFlow::Continue(Err(error)),
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    self.unreadable.retain(&kept);
                    let version = page.metadata.resource_version.unwrap_or_default();
                    let end = WatchEvent::End {
                        version: version.clone(),
                    };
                    self.tell(end).await?;
                    return ControlFlow::Continue(Ok(version));
                }
            }
        }
    }

    /// Tells an item of a list; `kept` are those of the list that cannot be decoded.
    async fn item(&mut self, object: Object<K>, kept: &mut BTreeSet<Key>) -> ControlFlow<()> {
        match object.content {
            Content::Decoded(item) => {
                self.unreadable.remove(&object.key);
                self.tell(WatchEvent::Item(trimmed(item))).await
            }
            Content::Unreadable(why) => {
                kept.insert(object.key.clone());
                self.unreadable.add(object.key.clone(), &object.uid, &why);
                self.tell(WatchEvent::Kept { key: object.key }).await
            }
        }
    }

    /// Follows from a version, over as many watches as it takes, until all must be listed again.
    async fn follow(&mut self, mut version: String) -> ControlFlow<()> {
        let kind = self.watched.kind;
        let (mut silent, mut refused) = (0, 0);
        let mut fruitful = false;
        loop {
            let mut heard = false;
            let ended = self.session(&mut version, &mut heard).await?;
            if heard {
                (silent, refused) = (0, 0);
                self.stillborn = false;
                self.backoff.reset();
                fruitful = true;
            }
            match ended {
                Ended::Closed if heard => {}
                // A server that ends watches at once is not asked in a circle.
                Ended::Closed => tokio::time::sleep(self.backoff.pause(None)).await,
                Ended::Silent => {
                    silent += 1;
                    tracing::warn!(
                        kind,
                        version,
                        "watch has been silent for {IDLE:?}; opening it again"
                    );
                }
                Ended::Expired => {
                    tracing::info!(kind, version, "version is too old; listing again");
                    // Once this is bad luck. A server that does so again is not listed in a circle.
                    if !fruitful && std::mem::replace(&mut self.stillborn, true) {
                        tokio::time::sleep(self.backoff.pause(None)).await;
                    }
                    return ControlFlow::Continue(());
                }
                Ended::Failed(error) => {
                    refused += u32::from(may_be_the_version(&error));
                    self.pause(&error, "watch failed; trying again").await;
                }
            }
            if silent >= SILENT_BEFORE_RELIST || refused >= REFUSED_BEFORE_RELIST {
                tracing::warn!(
                    kind,
                    version,
                    "nothing comes of this version; listing again"
                );
                return ControlFlow::Continue(());
            }
        }
    }

    /// One watch, from `version`, which moves on with what is heard.
    async fn session(&mut self, version: &mut String, heard: &mut bool) -> ControlFlow<(), Ended> {
        let params = WatchParams {
            label_selector: self.watched.labels.clone(),
            field_selector: self.watched.fields.clone(),
            timeout: Some(fastrand::u32(WATCH_SECONDS)),
            bookmarks: true,
            send_initial_events: false,
        };
        let events = match self.source.watch(&params, version).await {
            Ok(events) => events,
            Err(error) => return ControlFlow::Continue(failed(error)),
        };
        let mut events = pin!(events);
        loop {
            let line = match timeout(IDLE, events.try_next()).await {
                Err(_) => return ControlFlow::Continue(Ended::Silent),
                Ok(Ok(None)) => return ControlFlow::Continue(Ended::Closed),
                Ok(Ok(Some(line))) => line,
                Ok(Err(error)) => return ControlFlow::Continue(failed(error)),
            };
            let event = match line {
                Line::Put(object) => {
                    version.clone_from(&object.version);
                    self.put(object)
                }
                Line::Deleted { key, version: at } => {
                    version.clone_from(&at);
                    self.unreadable.remove(&key);
                    WatchEvent::Delete { key, version: at }
                }
                Line::Bookmark { version: at } => {
                    version.clone_from(&at);
                    WatchEvent::Progress { version: at }
                }
                Line::Error(status) => {
                    return ControlFlow::Continue(failed(kube::Error::Api(status)));
                }
            };
            *heard = true;
            self.heard();
            self.tell(event).await?;
        }
    }

    /// What a watch says of an object that came or changed. One that cannot be decoded changes nothing here.
    fn put(&mut self, object: Object<K>) -> WatchEvent<K> {
        match object.content {
            Content::Decoded(decoded) => {
                self.unreadable.remove(&object.key);
                WatchEvent::Apply(trimmed(decoded))
            }
            Content::Unreadable(why) => {
                self.unreadable.add(object.key, &object.uid, &why);
                WatchEvent::Progress {
                    version: object.version,
                }
            }
        }
    }

    async fn pause(&mut self, error: &kube::Error, what: &'static str) {
        let pause = self.backoff.pause(retry_after(error));
        tracing::warn!(kind = self.watched.kind, %error, ?pause, "{what}");
        tokio::time::sleep(pause).await;
    }
}

fn failed(error: kube::Error) -> Ended {
    match error {
        error if is_expired(&error) => Ended::Expired,
        error => Ended::Failed(error),
    }
}

/// Whether the API server does not remember the version, or the place in a list.
fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Whether the API server does not know the kind.
fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the server refuses what it was asked (504: it waits for a version that does not come), or says what cannot
/// be read. Not if it could not be reached or has trouble of its own: then the version is as good as before.
fn may_be_the_version(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => !matches!(status.code, 429 | 500..=503),
        kube::Error::SerdeError(_) => true,
        _ => false,
    }
}

/// Without what nobody here reads, and what is most of some objects.
fn trimmed<K: Resource>(mut object: K) -> K {
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    object
}
