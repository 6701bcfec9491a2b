//! The ports that ztunnel's connections to the application take, on real network namespaces (needs root).

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use support::net::*;
use ztunnel::socket::dial_as;

/// More than there are ports for one client (22 528), and made in less than the minute that a closed one is remembered.
const MORE_THAN_PORTS: u32 = 30_000;

/// ztunnel ends each connection first, so that its side remembers the port (`TIME_WAIT`). A port that was bound by number
/// is given again meanwhile, where TCP has timestamps: only connections that are open take ports away.
#[test]
fn one_clients_closed_connections_use_no_ports_up() {
    let net = Net::new();
    let app = listen(&net.pod, 8080);
    net.install(*BOTH);
    std::thread::spawn(move || {
        for stream in app.incoming() {
            // The end of the test ends the listener's namespace, not this thread.
            let Ok(mut stream) = stream else { return };
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let (client, to) = (CLIENT4.parse().unwrap(), addr(POD4, 8080));
    let all = net.pod.run(move || {
        for number in 0..MORE_THAN_PORTS {
            end_first(dial_as(client, to)).map_err(|error| (number, error))?;
        }
        Ok::<(), (u32, io::Error)>(())
    });
    all.unwrap().unwrap();
}

fn end_first(dialled: io::Result<TcpStream>) -> io::Result<()> {
    let mut stream = dialled?;
    stream.set_nonblocking(false)?;
    // Waits for the handshake.
    stream.write_all(b"x")?;
    stream.shutdown(Shutdown::Write)?;
    // Until the other end has seen it.
    stream.read(&mut [0; 1]).map(drop)
}
