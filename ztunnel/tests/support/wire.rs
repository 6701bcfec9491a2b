//! Every frame that crosses the bridge, looked through for what must not be there in the clear.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel::netns::PodNetns;

/// Frames that contain some text, counted until [`Wire::end`].
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

/// `ETH_P_ALL`: sent and received, of every protocol.
const ALL: u16 = 3;
/// Nothing is lost while the test's other threads run.
const BUFFER: usize = 64 << 20;

impl Wire {
    pub(crate) fn tap(bridge: &PodNetns, text: &'static [u8]) -> Self {
        let open = || {
            let protocol = Protocol::from(i32::from(ALL.to_be()));
            Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap()
        };
        let mut socket = bridge.run(open).unwrap();
        setsockopt(&socket, RcvBufForce, &BUFFER).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let (mut frame, mut found) = (vec![0; 70_000], 0);
            loop {
                // What was sent before the end is in the buffer by then.
                let last = stopped.load(Ordering::Acquire);
                match socket.read(&mut frame) {
                    Ok(length) => {
                        let mut windows = frame[..length].windows(text.len());
                        found += usize::from(windows.any(|window| window == text));
                    }
                    Err(_) if last => return found,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread }
    }

    /// How many frames had the text.
    pub(crate) fn end(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}
