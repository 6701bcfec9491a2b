//! STORY: a connection to the process's pages → a seat → one request after the other → closed when it is silent, old, or
//! somebody else needs the seat.
//!
//! Everybody who reaches the pod may connect here. Nobody is turned away: a newcomer takes the seat of whoever has been
//! silent longest, among its own source's connections where those are too many, else among those of the source that has
//! most. A probe asks at once and is answered at once; it is never who has been silent longest.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// Connections of one port. kubelet, two Prometheus and some people need a dozen; each may cost 32 KiB and a descriptor.
pub(super) const MOST: usize = 64;

/// Connections of one source address, so that none can take the seats of all the others. Whoever comes by
/// `kubectl port-forward` is one source, and browsers open six at once.
pub(super) const SHARE: usize = 16;

/// From one answer, or the beginning, to the end of the next request's head. Whoever asks at all asks at once; and longer
/// than that a connection is not kept for its next request.
const HEAD: Duration = Duration::from_secs(5);

/// What a head, and what is sent ahead of answers, may take of memory.
const BUFFER: usize = 16 * 1024;

/// A connection is used for this long, however busy it is...
const LONGEST: Duration = Duration::from_secs(60);

/// ...and then has this long to take its last answer.
const LAST_ANSWER: Duration = Duration::from_secs(30);

/// After a failed accept (out of descriptors) the next one waits, so that the thread does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the pages for ever.
pub(super) async fn serve(listener: TcpListener, pages: Router) -> Infallible {
    let seats = Arc::new(Mutex::new(Seats::default()));
    let mut serving = JoinSet::new();
    let mut running: HashMap<SeatId, AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        paused(&error).await;
                        continue;
                    }
                };
                let source = peer.ip().to_canonical();
                let Taken { seat, from } = seats.lock().take(source, Instant::now());
                if let Some(silent) = from.and_then(|from| running.remove(&from)) {
                    silent.abort();
                }
                let seated = Seated { seat, seats: seats.clone() };
                let handle = serving.spawn(connection(tcp, peer, pages.clone(), seated));
                running.insert(seat, handle);
            }
            Some(_) = serving.join_next() => running.retain(|_, task| !task.is_finished()),
        }
    }
}

async fn paused(error: &io::Error) {
    tracing::debug!(%error, "cannot accept");
    sleep(ACCEPT_PAUSE).await;
}

/// Serves one connection to its end.
async fn connection(tcp: TcpStream, peer: SocketAddr, pages: Router, seated: Seated) {
    let pages = TowerToHyperService::new(pages);
    let service = service_fn(move |request: Request<Incoming>| {
        seated.asks();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        pages.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(tcp), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(LONGEST) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection to the pages ended");
    }
}

// === seats ===

/// Names one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SeatId(u64);

/// Who sits here, and how long ago it last asked for something.
#[derive(Debug)]
struct Seat {
    source: IpAddr,
    has_asked: bool,
    since: Instant,
}

/// All connections of one port.
#[derive(Debug, Default)]
struct Seats {
    taken: HashMap<SeatId, Seat>,
    last: u64,
}

/// A newcomer's seat, and who had to go for it.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    seat: SeatId,
    from: Option<SeatId>,
}

/// Has a seat until it is dropped.
struct Seated {
    seat: SeatId,
    seats: Arc<Mutex<Seats>>,
}

// === impl Seats ===

impl Seats {
    /// DECISION: where a newcomer sits.
    fn take(&mut self, source: IpAddr, now: Instant) -> Taken {
        let from = self.crowded(source).and_then(|crowd| self.silent(crowd));
        if let Some(from) = from {
            self.taken.remove(&from);
        }
        self.last += 1;
        let seat = SeatId(self.last);
        let sits = Seat {
            source,
            has_asked: false,
            since: now,
        };
        self.taken.insert(seat, sits);
        Taken { seat, from }
    }

    fn asks(&mut self, seat: SeatId, now: Instant) {
        if let Some(seat) = self.taken.get_mut(&seat) {
            (seat.has_asked, seat.since) = (true, now);
        }
    }

    fn leave(&mut self, seat: SeatId) {
        self.taken.remove(&seat);
    }

    /// The source that has to give a seat for one more connection of this one, if any has to.
    fn crowded(&self, newcomer: IpAddr) -> Option<IpAddr> {
        let mut seats: HashMap<IpAddr, usize> = HashMap::new();
        for seat in self.taken.values() {
            *seats.entry(seat.source).or_default() += 1;
        }
        if seats.get(&newcomer).is_some_and(|own| *own >= SHARE) {
            return Some(newcomer);
        }
        if self.taken.len() < MOST {
            return None;
        }
        let most = seats.into_iter().max_by_key(|(source, n)| (*n, *source));
        most.map(|(source, _)| source)
    }

    /// Of a source's connections the one that has never asked for anything, or has not for longest.
    fn silent(&self, source: IpAddr) -> Option<SeatId> {
        let of_source = self.taken.iter().filter(|(_, seat)| seat.source == source);
        let longest = of_source.min_by_key(|(id, seat)| (seat.has_asked, seat.since, **id));
        longest.map(|(id, _)| *id)
    }
}

// === impl Seated ===

impl Seated {
    fn asks(&self) {
        self.seats.lock().asks(self.seat, Instant::now());
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seats.lock().leave(self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_with_its_share_takes_from_itself() {
        let mut seats = Seats::default();
        let other = seats.take(source(2), Instant::now());
        let mut own = Vec::new();
        for _ in 0..SHARE {
            tokio::time::advance(Duration::from_millis(1)).await;
            own.push(seats.take(source(1), Instant::now()));
        }
        assert!(own.iter().chain([&other]).all(|taken| taken.from.is_none()));
        // The oldest has asked, so the second is who has been silent longest.
        seats.asks(own[0].seat, Instant::now());
        let next = seats.take(source(1), Instant::now());
        assert_eq!(next.from, Some(own[1].seat));
        assert_eq!(seats.taken.len(), SHARE + 1);
    }

    #[test]
    fn when_all_seats_are_taken_the_source_with_most_gives_one() {
        let (mut seats, now) = (Seats::default(), Instant::now());
        let probe = seats.take(source(100), now);
        let mut first = None;
        for n in 0..MOST - 1 {
            let few = u8::try_from(n % 7).expect("few");
            let taken = seats.take(source(few), now);
            if few == 0 {
                first.get_or_insert(taken.seat);
            }
        }
        assert_eq!(seats.taken.len(), MOST);
        for newcomer in 200..250 {
            let taken = seats.take(source(newcomer), now);
            let from = taken.from.expect("there was no seat");
            assert_ne!(from, probe.seat);
            seats.leave(taken.seat);
            assert_eq!(seats.taken.len(), MOST - 1);
            seats.take(source(0), now);
            assert_eq!(seats.taken.len(), MOST);
        }
        assert!(
            !seats.taken.contains_key(&first.expect("some")),
            "it was the oldest"
        );
    }
}
