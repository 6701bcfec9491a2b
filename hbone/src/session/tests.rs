//! Sessions against each other and against hand-written frames, without a socket.

use super::{Event, Key, Role, Session};
use crate::frame::{self, Broken, Code, StreamId};
use crate::limits::{CONNECTION_WINDOW, INITIAL_WINDOW};
use crate::{Request, Response};

type Plain = Session<()>;

/// More streams than fill a connection's window, each with its own.
const STREAMS: u32 = 2 * CONNECTION_WINDOW / INITIAL_WINDOW;

fn new(role: Role) -> Plain {
    Session::new(role, STREAMS, 100)
}

/// Everything a session makes of `bytes`, as text; and keys of streams by the way.
fn feed(session: &mut Plain, mut bytes: &[u8]) -> Result<(Vec<String>, Vec<Key>), Broken> {
    let (mut seen, mut keys) = (Vec::new(), Vec::new());
    while let Some(event) = session.next(&mut bytes)? {
        seen.push(match event {
            Event::Asked { key, request } => {
                keys.push(key);
                format!("asked {}", request.is_ok())
            }
            Event::Answered { answer, .. } => format!("answered {}", answer.is_ok()),
            Event::Data { bytes, .. } => format!("data {}", bytes.len()),
            Event::End { .. } => "end".to_owned(),
            Event::Lost { error, .. } => format!("lost {error}"),
            Event::Room(key) => format!("room {}", key.is_some()),
            Event::GoAway => "goaway".to_owned(),
            Event::Pong => "pong".to_owned(),
        });
    }
    Ok((seen, keys))
}

/// A client and a server that have greeted each other.
fn pair() -> (Plain, Plain) {
    let (mut client, mut server) = (new(Role::Client), new(Role::Server));
    for _ in 0..2 {
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
    }
    assert!(client.is_greeted() && server.is_greeted());
    assert!(client.is_settled() && server.is_settled());
    (client, server)
}

/// What one has to say, told to the other.
fn pass(from: &mut Plain, to: &mut Plain) -> (Vec<String>, Vec<Key>) {
    let said = std::mem::take(&mut from.control);
    feed(to, &said).unwrap()
}

fn request() -> Request {
    Request::to("10.1.2.3:80".parse().unwrap())
}

/// An open stream, by both its keys.
fn open(client: &mut Plain, server: &mut Plain) -> (Key, Key) {
    let near = client.open(&request());
    let (seen, keys) = pass(client, server);
    assert_eq!(seen, ["asked true"]);
    server.answer(keys[0], &Response::default());
    assert_eq!(pass(server, client).0, ["answered true"]);
    client.streams[near].answered = true;
    (near, keys[0])
}

fn data(key: Key, of: &mut Plain, len: usize, end: bool) -> Vec<u8> {
    let mut bytes = frame::data_head(of.streams[key].id, len, end).to_vec();
    bytes.resize(frame::HEAD + len, 7);
    of.sent(key, len);
    bytes
}

#[test]
fn a_stream_lives_from_connect_to_both_ends() {
    let (mut client, mut server) = pair();
    let (near, far) = open(&mut client, &mut server);
    let bytes = data(near, &mut client, 1000, true);
    client.streams[near].sent_end = true;
    assert_eq!(feed(&mut server, &bytes).unwrap().0, ["data 1000", "end"]);
    server.end(far);
    assert!(server.streams[far].closed);
    assert_eq!(pass(&mut server, &mut client).0, ["end"]);
    assert!(client.streams[near].closed);
    client.streams.free(near);
    server.streams.free(far);
    assert_eq!((client.streams.len(), server.streams.len()), (0, 0));
}

#[test]
fn the_connection_window_returns_though_a_stream_stalls() {
    let (mut client, mut server) = pair();
    let (near, _) = open(&mut client, &mut server);
    let mut sent = 0;
    while client.room(near) > 0 {
        let len = client.room(near).min(16_000);
        let bytes = data(near, &mut client, len, false);
        feed(&mut server, &bytes).unwrap();
        sent += len;
    }
    assert_eq!(sent, INITIAL_WINDOW as usize);
    // Another stream has all of the window it could ever have.
    let (other, _) = open(&mut client, &mut server);
    assert_eq!(client.room(other), INITIAL_WINDOW as usize);
}

#[test]
fn streams_that_never_read_together_do_not_stop_the_connection() {
    let (mut client, mut server) = pair();
    let stalled = CONNECTION_WINDOW / INITIAL_WINDOW + 1;
    for _ in 0..stalled {
        let (near, _) = open(&mut client, &mut server);
        while client.room(near) > 0 {
            let len = client.room(near).min(16_000);
            let bytes = data(near, &mut client, len, false);
            feed(&mut server, &bytes).unwrap();
            pass(&mut server, &mut client);
        }
    }
    let (fresh, _) = open(&mut client, &mut server);
    assert_eq!(client.room(fresh), INITIAL_WINDOW as usize);
}

#[test]
fn more_data_than_granted_ends_the_connection() {
    let (mut client, mut server) = pair();
    let (near, _) = open(&mut client, &mut server);
    let mut outcome = Ok((Vec::new(), Vec::new()));
    for _ in 0..=INITIAL_WINDOW / 16_000 {
        let bytes = data(near, &mut client, 16_000, false);
        outcome = feed(&mut server, &bytes);
    }
    assert_eq!(outcome.unwrap_err().code, Code::FLOW_CONTROL_ERROR);
}

#[test]
fn goaway_lets_streams_finish_and_gives_back_those_it_never_saw() {
    let (mut client, mut server) = pair();
    let (near, far) = open(&mut client, &mut server);
    server.drain();
    // This one is on its way when the server says so: it is still taken.
    let crossing = client.open(&request());
    assert_eq!(pass(&mut client, &mut server).0, ["asked true"]);
    assert_eq!(pass(&mut server, &mut client).0, ["goaway"]);
    assert!(client.take_unseen().is_empty());
    assert!(!client.has_room(100));
    // The ping comes back: from now on nothing is.
    pass(&mut client, &mut server);
    assert!(server.is_going());
    let late = client.open(&request());
    assert_eq!(pass(&mut server, &mut client).0, ["goaway"]);
    let unseen: Vec<_> = client
        .take_unseen()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(unseen, [late]);
    assert!(!client.streams[crossing].closed);
    // And the running one lives on.
    let bytes = data(near, &mut client, 10, false);
    assert_eq!(feed(&mut server, &bytes).unwrap().0, ["data 10"]);
    assert!(!server.streams[far].closed);
}

#[test]
fn a_peer_that_gives_up_on_requests_for_ever_is_sent_away() {
    let (mut client, mut server) = pair();
    let outcome = (0..2000).try_for_each(|_| {
        let key = client.open(&request());
        client.reset(key, Code::CANCEL);
        client.streams.free(key);
        let said = std::mem::take(&mut client.control);
        let (_, keys) = feed(&mut server, &said)?;
        for key in keys {
            server.streams.free(key);
        }
        Ok::<(), Broken>(())
    });
    assert_eq!(outcome.unwrap_err().code, Code::ENHANCE_YOUR_CALM);
}

#[test]
fn answered_streams_may_be_reset_as_often_as_one_likes() {
    let (mut client, mut server) = pair();
    for _ in 0..2000 {
        let (near, far) = open(&mut client, &mut server);
        client.reset(near, Code::CANCEL);
        client.streams.free(near);
        // Pays for the frame itself, as any traffic does.
        pass(&mut client, &mut server);
        server.streams.free(far);
    }
}

#[test]
fn data_in_flight_to_a_stream_we_reset_is_ignored_and_later_data_is_told() {
    let (mut client, mut server) = pair();
    let (near, far) = open(&mut client, &mut server);
    let bytes = data(near, &mut client, 10, false);
    server.reset(far, Code::CANCEL);
    server.streams.free(far);
    server.control.clear();
    assert_eq!(feed(&mut server, &bytes).unwrap().0, [""; 0]);
    assert!(server.control.is_empty());
    // One that ended in order is another matter.
    let (near, far) = open(&mut client, &mut server);
    client.end(near);
    pass(&mut client, &mut server);
    server.end(far);
    server.streams.free(far);
    server.control.clear();
    let mut bytes = frame::data_head(client.streams[near].id, 1, false).to_vec();
    bytes.push(0);
    feed(&mut server, &bytes).unwrap();
    let mut told = Vec::new();
    frame::put_reset(&mut told, client.streams[near].id, Code::STREAM_CLOSED);
    assert_eq!(server.control, told);
}

#[test]
fn frames_on_streams_that_never_were_end_the_connection() {
    let idle = StreamId::new(7);
    let mut frames: Vec<Vec<u8>> = vec![Vec::new(); 3];
    frame::put_reset(&mut frames[0], idle, Code::CANCEL);
    frame::put_window(&mut frames[1], idle, 1);
    frames[2].extend_from_slice(&frame::data_head(idle, 0, true));
    for bytes in frames {
        let (_, mut server) = pair();
        let broken = feed(&mut server, &bytes).unwrap_err();
        assert_eq!(broken.code, Code::PROTOCOL_ERROR);
    }
}

#[test]
fn a_stream_is_small() {
    let size = size_of::<super::streams::Stream<crate::engine::Side>>();
    // mio's sockets have a word more where assertions are on.
    let most = if cfg!(debug_assertions) { 136 } else { 128 };
    assert!(size <= most, "{size} bytes");
}
