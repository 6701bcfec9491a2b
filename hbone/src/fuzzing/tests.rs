//! The corpus that is kept, replayed: what a fuzzer once found stays found.

use std::path::Path;

/// More, and nobody would look at it; also what `cargo test` has time for.
const MOST_FILES: usize = 400;

fn replay(target: &str, run: fn(&[u8])) {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = home.join("fuzz/corpus").join(target);
    let (mut files, mut failed) = (0, Vec::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() <= 4096, "{} is long", path.display());
        files += 1;
        if std::panic::catch_unwind(|| run(&bytes)).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(
        (1..=MOST_FILES).contains(&files),
        "{files} in {}",
        folder.display()
    );
}

#[test]
fn corpus_of_connect_head() {
    replay("connect_head", super::connect_head);
}

#[test]
fn corpus_of_spiffe_id() {
    replay("spiffe_id", super::spiffe_id);
}

#[test]
fn corpus_of_server_bytes() {
    replay("server_bytes", super::server_bytes);
}

#[test]
fn corpus_of_client_bytes() {
    replay("client_bytes", super::client_bytes);
}
