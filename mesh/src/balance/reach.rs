//! STORY: reaching one of several endpoints. Another is tried when one fails, and beside one that says nothing for long;
//! nothing of the application's was sent to any of them yet.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::EndpointStats;
use crate::names::Uid;

/// An endpoint that was not reached after so long is not waited for alone any more. RFC 8305 §5 gives one round trip
/// 250 ms; a new tunnel takes three, and its far end connects to the application before it answers.
const SILENT: Duration = Duration::from_millis(500);

/// Endpoints tried at a time: a crowd that meets slow endpoints makes at most twice the work.
const BESIDE: usize = 2;

/// Which endpoints one connection or request has tried.
#[derive(Debug)]
pub struct Tries {
    most: usize,
    tried: Vec<Uid>,
    /// The newest, and when it was begun.
    newest: Option<(Arc<EndpointStats>, std::time::Instant)>,
}

/// Why a further endpoint is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// None was tried yet.
    First,
    /// The one before was not reached.
    Failed,
    /// The one before says nothing, and is still waited for.
    Silent,
}

/// Calls `next` for attempts until one has reached its endpoint; the others are dropped then.
///
/// `next` says nothing when there is no other endpoint. The error is that of the attempt that failed last, or of the
/// first that `ends` it all; none, if there was no attempt.
pub async fn reach<T, E, F>(
    mut next: impl FnMut(Why) -> Option<F>,
    ends: impl Fn(&E) -> bool,
) -> Result<T, Option<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut running = FuturesUnordered::new();
    running.extend(next(Why::First));
    let mut patience = Some(Instant::now() + SILENT);
    let mut last = None;
    while !running.is_empty() {
        let until = patience.filter(|_| running.len() < BESIDE);
        let silent = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(done) = running.next() => match done {
                Ok(reached) => return Ok(reached),
                Err(error) if ends(&error) => return Err(Some(error)),
                Err(error) => {
                    last = Some(error);
                    if let Some(another) = next(Why::Failed) {
                        running.push(another);
                        patience = Some(Instant::now() + SILENT);
                    }
                }
            },
            () = silent => {
                let another = next(Why::Silent);
                patience = another.is_some().then(|| Instant::now() + SILENT);
                running.extend(another);
            }
        }
    }
    Err(last)
}

// === impl Tries ===

impl Tries {
    /// None yet, of so many at most.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            tried: Vec::new(),
            newest: None,
        }
    }

    /// What was tried already.
    pub fn tried(&self) -> &[Uid] {
        &self.tried
    }

    /// Whether one more may be tried, for this reason. One that says nothing is left alone by everybody else for a moment.
    pub fn allows(&self, why: Why) -> bool {
        if let (Why::Silent, Some((stats, began))) = (why, &self.newest) {
            stats.failed(*began, std::time::Instant::now());
        }
        self.tried.len() < self.most
    }

    /// This one is tried now.
    pub fn begin(&mut self, uid: Uid, stats: Arc<EndpointStats>) {
        self.tried.push(uid);
        self.newest = Some((stats, std::time::Instant::now()));
    }
}

#[cfg(test)]
mod tests;
