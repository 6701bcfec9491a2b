//! How a connection comes to its end: by the clock, by its owner, by its peer; and what is said then.

use tokio::time::Instant;

use super::clock::Due;
use super::link::Scratch;
use super::out::Out;
use super::side::App;
use super::{Core, Over, Phase};
use crate::frame::{Broken, Code};
use crate::record::RecordError;
use crate::tls::tls_error;
use crate::{Ended, Error};

impl Core {
    // --- time

    pub(super) fn on_time(&mut self) {
        let now = Instant::now();
        while let Some(due) = self.clock.tick(now, self.session.streams.len() == 0) {
            self.on_due(due, now);
        }
        self.deafness(now);
    }

    pub(super) fn on_due(&mut self, due: Due, now: Instant) {
        let settled = self.session.is_settled() && self.session.is_greeted();
        match due {
            Due::Ping => {
                self.session.ping();
                self.look_at_the_starved();
                // The time of day may have jumped.
                self.look_at_the_certificate(now);
            }
            Due::Dead => {
                let error = Error::lost("the peer does not answer pings", true);
                self.over(Some(error));
            }
            Due::Settled if !settled => self.part(Code::SETTINGS_TIMEOUT, "no answer to SETTINGS"),
            Due::Parted => self.over(None),
            Due::Settled => {}
            Due::Idle | Due::Aged => self.drain(),
            Due::Renew => {
                // Whoever comes next goes by the proof of then, too.
                self.drain();
                self.clock.renew_within(now, self.proof.left());
                if let Some(renew) = &self.renew
                    && self.session.streams.len() > 0
                {
                    renew();
                }
            }
            Due::Expired => self.look_at_the_certificate(now),
        }
    }

    /// Streams that were given time to be ended by the client, and were not.
    pub(super) fn deafness(&mut self, now: Instant) {
        while let Some((until, key)) = self.discarding.front().copied() {
            let discarding = self
                .session
                .streams
                .get(key)
                .is_some_and(|s| s.app.is_discarding());
            if discarding && until > now {
                self.clock.linger(until);
                return;
            }
            self.discarding.pop_front();
            if discarding {
                self.session.reset(key, Code::NO_ERROR);
                self.session.streams.free(key);
            }
        }
    }

    // --- ends

    /// No new streams; running ones finish.
    pub(crate) fn drain(&mut self) {
        self.retired = true;
        self.session.drain();
        self.ready.wake();
    }

    /// Nobody asks for new streams any more; the connection ends with its last one.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
        self.ready.wake();
    }

    pub(super) fn end_because(&mut self, over: Over) -> bool {
        match over {
            Over::Broken(Broken { code, what }) => {
                tracing::debug!(peer = %self.addr, %code, what, "the peer broke the protocol");
                self.fail_all(&Error::protocol(what));
                self.tell_end(Some(Error::protocol(what)));
                self.part(code, what);
            }
            Over::Record(error) => {
                let told = self.explain(error);
                self.fail_all(&told);
                self.tell_end(Some(told));
                let alert = self.link.as_mut().and_then(|l| l.records.alert(&error));
                self.part(Code::NO_ERROR, "");
                if let (Some(link), Some(alert)) = (&mut self.link, alert) {
                    link.last_words(&alert);
                }
            }
            Over::Lost(error) => self.over(Some(error)),
            Over::Closed => self.over(None),
        }
        self.phase != Phase::Over
    }

    /// A server that rejects our certificate says so only after the client's handshake is over.
    pub(super) fn explain(&self, error: RecordError) -> Error {
        match matches!(error, RecordError::Alert(_)) {
            true => tls_error(self.addr, std::io::Error::other(error)),
            false => Error::lost(&error.to_string(), true),
        }
    }

    /// Says why, and gives the peer a moment to read it.
    pub(super) fn part(&mut self, code: Code, why: &str) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Parting;
        self.session.fix_last(code, why);
        self.fail_all(&Error::lost("this side ended the connection", true));
        self.tell_end(None);
        self.clock.part(Instant::now());
        self.ready.wake();
    }

    pub(super) fn part_further(&mut self, scratch: &mut Scratch) -> Result<bool, Over> {
        let control = std::mem::take(&mut self.session.control);
        let Some(link) = &mut self.link else {
            return Err(Over::Closed);
        };
        if !control.is_empty() && !link.said_last {
            let mut out = Out::new(&mut scratch.write, &mut link.records);
            out.put(&control).map_err(|_| Over::Closed)?;
            let sealed = out.finish().map_err(|_| Over::Closed)?;
            link.write(&scratch.write[..sealed])?;
        }
        link.part(scratch)
    }

    /// The connection is gone, and everything on it.
    pub(super) fn over(&mut self, error: Option<Error>) {
        let lost = error.clone();
        let lost = lost.unwrap_or_else(|| Error::lost("the peer closed the connection", true));
        let had_streams = self.session.streams.open_mut().next().is_some();
        self.fail_all(&lost);
        self.tell_end(error.or(had_streams.then_some(lost)));
        self.phase = Phase::Over;
        self.link = None;
    }

    /// Nobody will drive the connection any more, not even for what an application has still to take.
    pub(super) fn abort(&mut self) {
        let error = Error::lost("this side ended the connection", true);
        self.over(Some(error.clone()));
        for key in self.session.streams.keys() {
            if let Some(stream) = self.session.streams.get_mut(key)
                && matches!(stream.app.app, App::Socket(_))
            {
                stream
                    .app
                    .finish(Ended::Peer(error.clone()), &mut self.calls);
                self.release(key);
            }
        }
    }

    /// Whether an application has not taken yet all of a stream that ended in order.
    pub(super) fn has_leftovers(&self) -> bool {
        let keys = self.session.streams.keys();
        let mut streams = keys
            .into_iter()
            .filter_map(|key| self.session.streams.get(key));
        streams.any(|stream| matches!(stream.app.app, App::Socket(_)))
    }

    pub(super) fn tell_end(&mut self, error: Option<Error>) {
        if self.end.is_none() {
            self.end = Some(error);
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
    }

    pub(super) fn fail_all(&mut self, error: &Error) {
        for key in self.session.streams.keys() {
            // One that had ended both ways has been delivered, or is being so.
            if self.session.streams.get(key).is_some_and(|s| !s.closed) {
                self.session.streams.close(key);
                self.lost(key, error.clone());
            }
        }
        self.starved.clear();
        self.asked.clear();
    }
}
