//! Network namespaces for tests: a pod and the world, joined by a pair of virtual interfaces.
//!
//! The namespaces have no names; they go when the last value that holds them does.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use ztunnel::capture::{self, CaptureError, Own, Spec};
use ztunnel::netns::PodNetns;
use ztunnel::socket;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const POD4: &str = "10.9.0.2";
pub(crate) const POD6: &str = "fd09::2";
/// The world's first address: the pod's gateway.
pub(crate) const GATE4: &str = "10.9.0.1";
pub(crate) const GATE6: &str = "fd09::1";
/// Another address of the world, for a client.
pub(crate) const CLIENT4: &str = "10.9.0.3";
pub(crate) const CLIENT6: &str = "fd09::3";

/// All of what comes to the pod's two addresses, and leaves from them.
pub(crate) static BOTH: LazyLock<Spec> = LazyLock::new(|| Spec {
    ipv4: true,
    ipv6: true,
    bypass_inbound: false,
    own: Own::of(&[POD4, POD6].map(|ip| ip.parse().unwrap())),
});

/// A pod and the world around it.
pub(crate) struct Net {
    pub(crate) pod: PodNetns,
    pub(crate) world: PodNetns,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// `prepare` changes the pod's namespace before it has interfaces.
    pub(crate) fn with(prepare: impl FnOnce(&PodNetns)) -> Self {
        let (pod, world) = (namespace(), namespace());
        prepare(&pod);
        let six = pod
            .run(|| fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6"))
            .unwrap();
        let six = six.is_ok_and(|disabled| disabled.trim() == "0");
        // A process can be told of a namespace by the path of an open file.
        let file = world
            .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&file)
        );
        ip(&pod, "link set lo up");
        ip(&world, "link set lo up");
        ip(
            &pod,
            &format!("link add eth0 type veth peer name eth0 netns {path}"),
        );
        for (ns, addresses) in [
            (&pod, &[POD4, POD6][..]),
            (&world, &[GATE4, GATE6, CLIENT4, CLIENT6]),
        ] {
            // An address that the kernel makes itself comes whenever it has been proven to be nobody else's.
            if six {
                ip(ns, "link set eth0 addrgenmode none");
            }
            ip(ns, "link set eth0 up");
            for address in addresses {
                match address.parse::<IpAddr>().unwrap() {
                    IpAddr::V4(v4) => ip(ns, &format!("addr add {v4}/24 dev eth0")),
                    IpAddr::V6(_) if !six && *address == POD6 => {}
                    IpAddr::V6(v6) => ip(ns, &format!("addr add {v6}/64 dev eth0 nodad")),
                }
            }
        }
        for ns in [&pod, &world] {
            link_is_up(ns);
        }
        ip(&pod, &format!("route add default via {GATE4}"));
        if six {
            ip(&pod, &format!("-6 route add default via {GATE6}"));
        }
        Self { pod, world }
    }

    pub(crate) fn install(&self, spec: Spec) {
        self.capture(move || capture::install(&spec));
    }

    pub(crate) fn capture<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
    ) -> T {
        self.pod.run(f).unwrap().unwrap()
    }
}

/// A new, empty network namespace.
pub(crate) fn namespace() -> PodNetns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        PodNetns::current().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs `ip` inside a namespace and returns what it prints.
pub(crate) fn ip_output(ns: &PodNetns, args: &str) -> String {
    let words: Vec<String> = args.split_whitespace().map(Into::into).collect();
    let output = ns.run(move || Command::new("ip").args(words).output());
    let output = output.unwrap().unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the kernel has seen that both ends of the pair are there: until then, routes are marked as down.
fn link_is_up(ns: &PodNetns) {
    let deadline = Instant::now() + PATIENCE;
    while !ip_output(ns, "-o link show eth0").contains("state UP") {
        assert!(Instant::now() < deadline, "the link does not come up");
        std::thread::yield_now();
    }
}

pub(crate) fn ip(ns: &PodNetns, args: &str) {
    ip_output(ns, args);
}

pub(crate) fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// An application's listener on every address.
pub(crate) fn listen(ns: &PodNetns, port: u16) -> TcpListener {
    let listener = ns.run(move || {
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
    });
    listener.unwrap().unwrap()
}

/// ztunnel's listener, made blocking for the test.
pub(crate) fn ztunnel_listen(ns: &PodNetns, port: u16) -> TcpListener {
    let listener = ns
        .run(move || socket::listen(capture::families(), port))
        .unwrap()
        .unwrap();
    listener.set_nonblocking(false).unwrap();
    listener
}

/// Accepts the next connection, or panics when there is none in time.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    try_accept(listener, PATIENCE).expect("nobody connected")
}

pub(crate) fn try_accept(listener: &TcpListener, patience: Duration) -> Option<TcpStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(patience).unwrap();
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout).unwrap() == 0 {
        return None;
    }
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Connects as an application does.
pub(crate) fn connect(ns: &PodNetns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns
        .run(move || TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// Connects from one of the namespace's addresses.
pub(crate) fn connect_from(ns: &PodNetns, from: &str, to: SocketAddr) -> TcpStream {
    let from = addr(from, 0);
    let stream = ns.run(move || {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(to),
            socket2::Type::STREAM,
            None,
        )?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok::<TcpStream, io::Error>(socket.into())
    });
    let stream = stream.unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits for a connection that ztunnel's code starts inside the namespace.
pub(crate) fn ztunnel_connect(
    ns: &PodNetns,
    start: impl FnOnce() -> io::Result<TcpStream> + Send + 'static,
) -> io::Result<TcpStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let stream = ns.run(start).unwrap()?;
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut fds, timeout).unwrap(), 1, "no answer");
    match stream.take_error()? {
        Some(error) => return Err(error),
        None => stream.set_nonblocking(false)?,
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a few bytes each way.
pub(crate) fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    a.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    b.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
}

/// The peer without its v4-in-v6 disguise.
pub(crate) fn peer(stream: &TcpStream) -> SocketAddr {
    socket::canonical(stream.peer_addr().unwrap())
}
