//! Keeps the plugin installed: looks whenever the node's directories change, and now and then.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::contest::Contest;
use super::{InstallError, Installed, Installer};

/// How often the files are looked at without an event.
const VERIFY: Duration = Duration::from_secs(30);
/// How soon after a failure they are looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// Events that are taken together; a program that makes them faster than we read them does not hold us up.
const MOST_EVENTS: usize = 4096;

impl Installer {
    /// Installs the plugin and keeps it installed until dropped. Every outcome that is news goes to `report`.
    pub async fn keep(
        &self,
        mut report: impl FnMut(Result<&Installed, &InstallError>),
    ) -> Result<Infallible, InstallError> {
        // What runs on another thread goes on when this future is dropped.
        let over = CancellationToken::new();
        let _guard = over.clone().drop_guard();
        let mut events = self.watch()?;
        let (mut last, mut contest) = (None, Contest::default());
        loop {
            let outcome = self.ensure_unless(&over).await;
            let outcome = weigh(outcome, &mut contest);
            let news = outcome.as_ref().map_err(ToString::to_string).cloned();
            let is_news = match outcome {
                Ok(Installed::Ready { changed: true, .. }) => true,
                // The look after our own write finds what we wrote: that is no sign of peace.
                Ok(Installed::Ready { .. }) if contest.insisting().is_some() => false,
                _ => last.as_ref() != Some(&news),
            };
            if is_news {
                report(outcome.as_ref());
                last = Some(news);
            }
            let pause = if outcome.is_ok() { VERIFY } else { RETRY };
            // Our own writes are events, too; they lead to one more look.
            let event = timeout(pause, events.next()).await;
            if !matches!(event, Ok(Some(Ok(_)))) {
                // A timer, or a directory that was replaced by another.
                events = self.watch()?;
            }
            sleep(contest.pause()).await;
            // What happened until now is looked at together.
            for _ in 0..MOST_EVENTS {
                if !matches!(events.next().now_or_never(), Some(Some(Ok(_)))) {
                    break;
                }
            }
        }
    }

    async fn ensure_unless(&self, over: &CancellationToken) -> Result<Installed, InstallError> {
        let (installer, over) = (self.clone(), over.clone());
        let ensure = move || {
            let _alone = installer.alone()?;
            if over.is_cancelled() {
                // Nobody hears this.
                return Ok(Installed::Waiting);
            }
            installer.ensure_alone()
        };
        tokio::task::spawn_blocking(ensure)
            .await
            .unwrap_or_else(|panic| {
                let source = io::Error::other(panic);
                let path = self.conf_dir.clone();
                Err(InstallError::File { path, source })
            })
    }

    fn watch(&self) -> Result<EventStream<[u8; 4096]>, InstallError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| InstallError::File { path, source }
        };
        let inotify = Inotify::init().map_err(at(&self.conf_dir))?;
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for dir in [&self.conf_dir, &self.bin_dir] {
            std::fs::create_dir_all(dir).map_err(at(dir))?;
            inotify.watches().add(dir, mask).map_err(at(dir))?;
        }
        inotify
            .into_event_stream([0; 4096])
            .map_err(at(&self.conf_dir))
    }
}

/// The outcome in the light of those before it.
fn weigh(
    outcome: Result<Installed, InstallError>,
    contest: &mut Contest,
) -> Result<Installed, InstallError> {
    let written = matches!(outcome, Ok(Installed::Ready { changed: true, .. }));
    contest.look(Instant::now(), written);
    match (outcome?, contest.insisting()) {
        (
            Installed::Ready {
                config,
                changed: true,
            },
            Some(times),
        ) => Ok(Installed::Contested {
            config,
            times,
            pause: contest.pause(),
        }),
        (other, _) => Ok(other),
    }
}
