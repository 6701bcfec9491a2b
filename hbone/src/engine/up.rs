//! From the application to the tunnel: what it has to say, as far as there is window.

use std::io;

use tokio::time::Instant;

use super::Core;
use super::out::Out;
use super::side::App;
use crate::frame::Code;
use crate::limits::QUANTUM;
use crate::record::RecordError;
use crate::session::{Key, Role};

// === impl Core ===

impl Core {
    /// A stream's socket or pipe has news.
    pub(crate) fn woken(&mut self, key: Key) {
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        if stream.app.is_given_up() {
            return self.give_up(key);
        }
        match &mut stream.app.app {
            App::Socket(socket) => {
                if let Some(error) = socket.failed() {
                    return self.app_failed(key, error);
                }
                socket.woken();
                self.enqueue(key);
            }
            App::Pipe(pipe) => {
                let did = pipe.look();
                if did.taken > 0 {
                    self.session.taken(key, did.taken);
                }
                if did.dropped {
                    return self.pipe_dropped(key, did.ended);
                }
                if did.has_bytes || did.ended {
                    self.enqueue(key);
                }
            }
            App::Unclaimed => self.enqueue(key),
            App::Discarding(_) | App::Gone => {}
        }
    }

    /// The user of a pipe is gone. What it had ended in order is still sent whole.
    fn pipe_dropped(&mut self, key: Key, ended: bool) {
        let role = self.role;
        let Some(stream) = self.session.streams.get_mut(key) else {
            return;
        };
        if ended && !stream.sent_end && !stream.closed {
            return self.enqueue(key);
        }
        if stream.closed {
            return self.release(key);
        }
        if stream.sent_end && role == Role::Server {
            return self.discard_rest(key);
        }
        stream.app.app = App::Gone;
        self.session.reset(key, Code::CANCEL);
        self.release(key);
    }

    /// One turn of one stream: what is held for its application, then what the application says.
    pub(crate) fn serve(&mut self, key: Key, out: &mut Out<'_>) -> Result<(), RecordError> {
        if let Some(stream) = self.session.streams.get_mut(key) {
            stream.app.queued = false;
            self.serve_held(key);
            self.pull(key, out)?;
        }
        Ok(())
    }

    /// The tunnel takes nothing for now; applications still get what is held for them.
    pub(crate) fn serve_down(&mut self) {
        for at in 0..self.queue.len() {
            if let Some(key) = self.queue.get(at) {
                self.serve_held(key);
            }
        }
        if self.phase != super::Phase::Running {
            while let Some(key) = self.queue.pop() {
                if let Some(stream) = self.session.streams.get_mut(key) {
                    stream.app.queued = false;
                }
            }
        }
    }

    fn pull(&mut self, key: Key, out: &mut Out<'_>) -> Result<(), RecordError> {
        let Some(stream) = self.session.streams.get(key) else {
            return Ok(());
        };
        if stream.sent_end || stream.closed || !stream.answered {
            return Ok(());
        }
        let room = self.session.room(key).min(QUANTUM);
        let stream = &mut self.session.streams[key];
        match &mut stream.app.app {
            App::Socket(socket) if socket.readable => {
                if room == 0 {
                    if socket.has_ended() {
                        // Which needs no window.
                        self.pulled(key, Ok(0));
                    } else if !socket.starved {
                        socket.starve();
                        self.starve(key);
                    }
                    return Ok(());
                }
                let (id, records) = (stream.id, usize::from(socket.records));
                let read = out.fill(id, room, records, |gaps| socket.read(gaps))?;
                self.pulled(key, read);
            }
            App::Pipe(pipe) => {
                let did = pipe.look();
                if did.taken > 0 {
                    self.session.taken(key, did.taken);
                }
                self.pull_pipe(key, room, &did, out)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What a read of an application's socket means.
    fn pulled(&mut self, key: Key, read: io::Result<usize>) {
        match read {
            Ok(0) => {
                self.session.end(key);
                self.serve_held(key);
            }
            Ok(n) => {
                self.session.sent(key, n);
                if let App::Socket(socket) = &self.session.streams[key].app.app {
                    socket.meter.add_sent(n);
                    if socket.readable {
                        self.enqueue_again(key);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.app_failed(key, error),
        }
    }

    fn pull_pipe(
        &mut self,
        key: Key,
        room: usize,
        did: &super::pipe::Did,
        out: &mut Out<'_>,
    ) -> Result<(), RecordError> {
        let stream = &mut self.session.streams[key];
        let App::Pipe(pipe) = &stream.app.app else {
            return Ok(());
        };
        if did.has_bytes {
            if room == 0 {
                self.starve(key);
                return Ok(());
            }
            let (pipe, id) = (pipe.clone(), stream.id);
            let read = out.fill(id, room, pipe.records(), |gaps| Ok(pipe.read(gaps)))?;
            self.session.sent(key, read.unwrap_or(0));
            self.enqueue_again(key);
            return Ok(());
        }
        if did.ended {
            self.session.end(key);
        }
        if did.dropped {
            self.pipe_dropped(key, did.ended);
        } else {
            self.release(key);
        }
        Ok(())
    }

    /// A stream waits for window. It is on the list once, and streams that are gone are not, however
    /// often a peer grants a byte of window or resets what waits.
    fn starve(&mut self, key: Key) {
        if self.session.is_dry() {
            self.flow_blocked.get_or_insert_with(Instant::now);
        }
        if self.starved.len() >= self.session.streams.len() {
            let streams = &self.session.streams;
            self.starved.retain(|key| streams.get(*key).is_some());
        }
        if !self.starved.contains(&key) {
            self.starved.push(key);
        }
    }

    /// Applications that wait for window may have died unseen.
    pub(crate) fn look_at_the_starved(&mut self) {
        for key in self.starved.clone() {
            self.woken(key);
        }
    }
}
