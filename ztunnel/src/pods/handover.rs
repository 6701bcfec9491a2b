//! Whether another ztunnel serves a pod by now: two of them listen in its namespace during an upgrade.

use std::{fs, io, time::Duration};

use mesh::ports;
use tokio::time::sleep;

use crate::netns::PodNetns;

/// How often is looked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns once more than `ours` sockets listen where captured connections go.
pub(super) async fn succeeded(netns: &PodNetns, ours: usize) {
    loop {
        let listening = netns.call(|| listening(ports::OUTBOUND)).await;
        if matches!(listening, Ok(Ok(there)) if there > ours) {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// How many sockets of the current namespace listen on a port: those that share it count each.
fn listening(port: u16) -> io::Result<usize> {
    let mut count = 0;
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => count += count_listening(&text, port),
            // The family is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}

/// `sl local_address rem_address st …`, numbers in hexadecimal.
fn count_listening(table: &str, port: u16) -> usize {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    let listens = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some(LISTEN)
    };
    table.lines().filter(listens).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_listeners_of_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
             1: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 2\n\
             2: 0100007F:3A99 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 3\n\
             3: 00000000:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4\n";
        assert_eq!(count_listening(table, 15001), 2);
        assert_eq!(count_listening(table, 15000), 1);
        assert_eq!(count_listening("", 15001), 0);
    }
}
