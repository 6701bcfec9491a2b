//! Who listens where captured connections are led: sockets of a namespace, by number, and the processes that hold them.
//!
//! The kernel lets whoever has our user share a port that we listen on, which root in a container has. So sockets are
//! told apart by who holds them, never by how many there are.

mod diag;

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

/// What the kernel numbers a socket with.
pub(crate) type SocketId = u64;

/// A process that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its number on the node.
    pub(crate) pid: u32,
    /// Its program's name.
    pub(crate) name: String,
}

/// The sockets of the current namespace that listen on a port; several may share it.
pub(super) fn listening(port: u16) -> io::Result<HashSet<SocketId>> {
    let [(_, sockets)] = listening_on([port])?;
    Ok(sockets)
}

/// The same of several ports, from one list.
pub(super) fn listening_on<const N: usize>(
    ports: [u16; N],
) -> io::Result<[(u16, HashSet<SocketId>); N]> {
    let mut of = ports.map(|port| (port, HashSet::new()));
    match diag::listening() {
        Ok(found) => {
            for (port, sockets) in &mut of {
                let on_port = found.iter().filter(|(on, _)| on == port);
                sockets.extend(on_port.map(|(_, socket)| *socket));
            }
        }
        // A kernel without it.
        Err(_) => {
            for (port, sockets) in &mut of {
                *sockets = from_tables(*port)?;
            }
        }
    }
    Ok(of)
}

fn from_tables(port: u16) -> io::Result<HashSet<SocketId>> {
    let mut found = HashSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => found.extend(listeners_of(&text, port)),
            // The family is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The sockets that a process holds. None of one that has ended.
pub(super) fn held_by(process: &Path) -> HashSet<SocketId> {
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return HashSet::new();
    };
    let links = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    links.filter_map(|link| socket_of(&link)).collect()
}

/// The first of some processes that holds one of some sockets.
pub(super) fn holder(proc: &Path, pids: &[u32], sockets: &HashSet<SocketId>) -> Option<Holder> {
    let directory = |pid: u32| -> PathBuf { proc.join(pid.to_string()) };
    pids.iter().find_map(|&pid| {
        if held_by(&directory(pid)).is_disjoint(sockets) {
            return None;
        }
        let name = fs::read_to_string(directory(pid).join("comm")).unwrap_or_default();
        // A process names itself as it likes, and this is logged.
        let name = name.chars().filter(char::is_ascii_graphic).collect();
        Some(Holder { pid, name })
    })
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`, addresses in hexadecimal.
fn listeners_of(table: &str, port: u16) -> impl Iterator<Item = SocketId> {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    table.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let listens = local.ends_with(&port) && fields.nth(1)? == LISTEN;
        listens.then(|| fields.nth(5)?.parse().ok()).flatten()
    })
}

/// `socket:[NUMBER]`
fn socket_of(link: &Path) -> Option<SocketId> {
    let number = link.to_str()?.strip_prefix("socket:[")?;
    number.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn reads_the_listeners_of_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 71 1 0 100 0 0 10 0\n\
             1: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 72 1 0 100 0 0 10 0\n\
             2: 0100007F:3A99 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 73 1 0 100 0 0 10 0\n\
             3: 00000000:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 74 1 0 100 0 0 10 0\n";
        let of = |port| listeners_of(table, port).collect::<Vec<_>>();
        assert_eq!(of(15001), [71, 72]);
        assert_eq!(of(15000), [74]);
        assert_eq!(listeners_of("", 15001).count(), 0);
    }

    #[test]
    fn knows_a_listener_by_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = listening(port).unwrap();
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets, from_tables(port).unwrap());
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        assert!(sockets.contains(&socket_of(&link).unwrap()));
        let ours = std::process::id();
        let found = holder(Path::new("/proc"), &[0, ours], &sockets).unwrap();
        assert_eq!(found.pid, ours);
        assert!(!found.name.is_empty());
        assert_eq!(holder(Path::new("/proc"), &[1], &sockets), None);

        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("7")).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd", proc.path().join("7/fd")).unwrap();
        fs::write(proc.path().join("7/comm"), "in\u{1b}[2J\nit\n").unwrap();
        let found = holder(proc.path(), &[6, 7], &sockets).unwrap();
        assert_eq!((found.pid, found.name.as_str()), (7, "in[2Jit"));
    }
}
