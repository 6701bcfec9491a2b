//! The file of revocation lists: what it says is in force, what cannot be read is not, and nothing is taken by halves.

mod support;

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use hbone::{Credentials, SpiffeId, TrustDomain};
use mesh::ca::{Authority, CaError};
use mesh::certs::{Certificates, Clock};
use mesh::revocations::{InForce, RevocationFile};
use prometheus_client::registry::Registry;
use support::Ca;
use tempfile::TempDir;
use tokio::task::yield_now;

/// A file that is followed.
struct Followed {
    dir: TempDir,
    ca: Ca,
    in_force: InForce,
    registry: Registry,
}

impl Followed {
    /// Begins with this content; with nothing, the file is not there.
    fn begin(content: impl FnOnce(&Ca) -> Option<String>) -> Self {
        let (dir, ca) = (TempDir::new().expect("a directory"), Ca::new());
        let path = dir.path().join("ca-crl.pem");
        if let Some(content) = content(&ca) {
            fs::write(&path, content).expect("written");
        }
        let (file, in_force) = RevocationFile::open(Some(path));
        let mut registry = Registry::default();
        file.register(&mut registry);
        tokio::spawn(file.run());
        Self {
            dir,
            ca,
            in_force,
            registry,
        }
    }

    /// Changes it as a mounted ConfigMap changes.
    fn say(&self, content: &str) {
        let (path, next) = (self.path(), self.dir.path().join("next"));
        fs::write(&next, content).expect("written");
        fs::rename(next, path).expect("renamed");
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("ca-crl.pem")
    }

    /// How many lists are in force after the next change; nothing: nobody is revoked.
    async fn next(&mut self) -> Option<usize> {
        self.in_force.changed().await.expect("it is followed");
        self.now()
    }

    fn now(&mut self) -> Option<usize> {
        let in_force = self.in_force.borrow_and_update();
        in_force.as_ref().map(hbone::Revocations::count)
    }

    fn metric(&self, name: &str) -> u64 {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("a page");
        let line = page
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }

    /// Waits until the file was read so often without success.
    async fn failed(&self, times: u64) {
        while self.metric("ambit_revocation_list_failures_total") < times {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn without_a_file_nobody_is_revoked() {
    let (_, in_force) = RevocationFile::open(None);
    assert!(in_force.borrow().is_none());
    for absent in [None, Some(String::new()), Some(" \n".to_owned())] {
        let followed = Followed::begin(|_| absent);
        assert!(followed.in_force.borrow().is_none());
        assert_eq!(followed.metric("ambit_revocation_lists_unreadable"), 0);
    }
}

#[tokio::test]
async fn what_the_file_says_is_in_force_and_what_it_says_later() {
    let mut followed = Followed::begin(|ca| Some(ca.revoke(&[7])));
    assert_eq!(followed.now(), Some(1));
    let two = [followed.ca.revoke(&[7]), Ca::new().revoke(&[])].concat();
    followed.say(&two);
    assert_eq!(followed.next().await, Some(2));
    assert_eq!(followed.metric("ambit_revocation_lists"), 2);
    fs::remove_file(followed.path()).expect("removed");
    assert_eq!(followed.next().await, None);
    // It may come only later.
    followed.say(&two);
    assert_eq!(followed.next().await, Some(2));
}

#[tokio::test]
async fn what_cannot_be_read_at_the_start_lets_nobody_in_until_it_can() {
    let mut followed = Followed::begin(|ca| Some(format!("{}garbage", ca.pem())));
    // There is something, and it has no list.
    assert_eq!(followed.now(), Some(0));
    assert_eq!(followed.metric("ambit_revocation_lists_unreadable"), 1);
    let lists = followed.ca.revoke(&[7]);
    followed.say(&lists);
    assert_eq!(followed.next().await, Some(1));
    assert_eq!(followed.metric("ambit_revocation_lists_unreadable"), 0);
}

#[tokio::test]
async fn what_cannot_be_read_later_leaves_in_force_what_was() {
    let mut followed = Followed::begin(|ca| Some(ca.revoke(&[7])));
    assert_eq!(followed.now(), Some(1));
    let good = followed.ca.revoke(&[7, 8]);
    let half = &good[..good.len() / 2];
    for (times, bad) in [(1, "garbage".to_owned()), (2, format!("{good}{half}"))] {
        followed.say(&bad);
        followed.failed(times).await;
        assert!(!followed.in_force.has_changed().expect("it is followed"));
        assert_eq!(followed.metric("ambit_revocation_lists_unreadable"), 1);
    }
    followed.say(&good);
    assert_eq!(followed.next().await, Some(1));
    assert_eq!(followed.metric("ambit_revocation_lists_unreadable"), 0);
}

#[tokio::test]
async fn a_directory_in_its_place_is_not_readable() {
    let dir = TempDir::new().expect("a directory");
    let (_, in_force) = RevocationFile::open(Some(dir.path().to_owned()));
    assert!(in_force.borrow().is_some());
    let (_, in_force) = RevocationFile::open(Some(Path::new("/nonexistent/x").to_owned()));
    assert!(in_force.borrow().is_none());
}

/// Signs at once.
struct Signs(Ca);

impl Authority for Signs {
    async fn sign(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        let now = SystemTime::now();
        let hour = std::time::Duration::from_secs(3600);
        Ok(vec![
            self.0.leaf(&csr, id.as_str(), now - hour, now + hour),
            self.0.pem(),
        ])
    }
}

#[tokio::test]
async fn every_certificate_judges_by_what_is_in_force() {
    let mut followed = Followed::begin(|ca| Some(ca.revoke(&[7])));
    assert_eq!(followed.now(), Some(1));
    let signs = Signs(Ca::new());
    let (certificates, keeper) = Certificates::new(signs, Clock::system());
    tokio::spawn(keeper.judging_by(followed.in_force.clone()).run());
    let id = |account| {
        SpiffeId::for_service_account(&TrustDomain::default(), "shop", account).expect("an id")
    };
    let lists = |credentials: &Credentials| {
        let current = credentials.current();
        current.revocations().map(hbone::Revocations::count)
    };
    let cart = certificates.get(&id("cart")).await.expect("signed");
    assert_eq!(lists(&cart), Some(1));
    let serial = cart.current().serial();
    followed.say("");
    assert_eq!(followed.next().await, None);
    while lists(&cart).is_some() {
        yield_now().await;
    }
    assert_eq!(
        cart.current().serial(),
        serial,
        "the certificate is the same"
    );
    let other = certificates.get(&id("other")).await.expect("signed");
    assert_eq!(lists(&other), None);
}
