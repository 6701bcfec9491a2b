//! Certificates against a scripted authority and a clock moved by hand: one fetch at a time, renewal, failures, release.

mod support;

use std::time::{Duration, SystemTime};

use hbone::{Credentials, SpiffeId, TrustDomain};
use mesh::ca::{Authority, CaError};
use mesh::certs::{CertError, Certificates, Clock};
use support::{Ca, asked};
use tokio::sync::{mpsc, oneshot, watch};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hands every request to the test.
struct Script(mpsc::Sender<Signing>);

struct Signing {
    id: SpiffeId,
    csr: String,
    answer: oneshot::Sender<Result<Vec<String>, CaError>>,
}

impl Authority for Script {
    async fn sign(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        let (answer, answered) = oneshot::channel();
        let signing = Signing {
            id: id.clone(),
            csr,
            answer,
        };
        self.0.send(signing).await.expect("the test lives");
        answered.await.expect("the test answers")
    }
}

struct World {
    ca: Ca,
    start: SystemTime,
    hand: watch::Sender<Duration>,
    certificates: Certificates,
    signings: mpsc::Receiver<Signing>,
}

impl World {
    fn new() -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (clock, hand) = Clock::manual(start);
        let (signings_in, signings) = mpsc::channel(64);
        let (certificates, keeper) = Certificates::new(Script(signings_in), clock);
        tokio::spawn(keeper.run());
        Self {
            ca: Ca::new(),
            start,
            hand,
            certificates,
            signings,
        }
    }

    fn now(&self) -> SystemTime {
        self.start + *self.hand.borrow()
    }

    fn pass(&self, time: Duration) {
        self.hand.send_modify(|elapsed| *elapsed += time);
    }

    fn get(&self, id: &SpiffeId) -> tokio::task::JoinHandle<Result<Credentials, CertError>> {
        let (certificates, id) = (self.certificates.clone(), id.clone());
        tokio::spawn(async move { certificates.get(&id).await })
    }

    async fn asked(&mut self) -> Signing {
        self.signings.recv().await.expect("a request")
    }

    /// Signs for a day.
    fn sign(&self, signing: Signing) {
        let leaf = self.leaf(&signing, signing.id.as_str());
        signing
            .answer
            .send(Ok(vec![leaf, self.ca.pem()]))
            .expect("it waits");
    }

    fn leaf(&self, signing: &Signing, id: &str) -> String {
        self.ca.leaf(&signing.csr, id, self.now(), self.now() + DAY)
    }

    /// Credentials that were asked for and signed.
    async fn signed(&mut self, id: &SpiffeId) -> Credentials {
        let got = self.get(id);
        let signing = self.asked().await;
        self.sign(signing);
        got.await.expect("it ran").expect("credentials")
    }

    /// Moves the hand in small steps until the keeper asks.
    async fn asked_within(&mut self, time: Duration) -> Option<(Duration, Signing)> {
        let mut passed = Duration::ZERO;
        while passed < time {
            let step = time / 100;
            self.pass(step);
            passed += step;
            // A question that is answered at once: the keeper has seen the hand.
            self.certificates.release(&id("nobody")).await;
            let probe = self.get(&id("probe"));
            probe.await.expect("it ran").expect("kept by the test");
            if let Ok(signing) = self.signings.try_recv() {
                return Some((passed, signing));
            }
        }
        None
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::for_service_account(&TrustDomain::default(), "shop", account).expect("an id")
}

fn refused() -> CaError {
    CaError::Refused {
        code: tonic::Code::PermissionDenied,
        message: "not on that node".to_owned(),
    }
}

#[tokio::test]
async fn one_fetch_for_all_who_ask() {
    let mut world = World::new();
    let first = world.get(&id("cart"));
    let signing = world.asked().await;
    let others: Vec<_> = (0..10).map(|_| world.get(&id("cart"))).collect();
    let other = world.get(&id("other"));
    let second = world.asked().await;
    assert_eq!(
        (&signing.id, &second.id),
        (&id("cart"), &id("other")),
        "one fetch each"
    );
    assert!(
        matches!(&asked(&signing.csr)[..], [rcgen::SanType::URI(uri)] if uri.as_str() == id("cart").as_str())
    );
    world.sign(signing);
    let credentials = first.await.expect("it ran").expect("credentials");
    assert_eq!(credentials.id(), id("cart"));
    for one in others {
        let one = one.await.expect("it ran").expect("credentials");
        assert_eq!(one.current().serial(), credentials.current().serial());
    }
    world.sign(second);
    assert_eq!(
        other.await.expect("it ran").expect("credentials").id(),
        id("other")
    );
    assert_eq!(world.certificates.list().len(), 2);
}

#[tokio::test]
async fn no_more_than_eight_at_once() {
    let mut world = World::new();
    let gets: Vec<_> = (0..20)
        .map(|at| world.get(&id(&format!("a{at}"))))
        .collect();
    let mut signings = Vec::new();
    for _ in 0..8 {
        signings.push(world.asked().await);
    }
    for _ in 0..12 {
        // One more only for one that is done.
        assert!(world.signings.try_recv().is_err());
        world.sign(signings.pop().expect("under way"));
        signings.push(world.asked().await);
    }
    for signing in signings {
        world.sign(signing);
    }
    for get in gets {
        get.await.expect("it ran").expect("credentials");
    }
}

#[tokio::test]
async fn renews_at_half_life_in_place() {
    let mut world = World::new();
    let _probe = world.signed(&id("probe")).await;
    let credentials = world.signed(&id("cart")).await;
    let before = credentials.current().serial();
    let mut renewed = Vec::new();
    let mut waited = Duration::ZERO;
    while renewed.len() < 2 {
        let (passed, signing) = world.asked_within(DAY).await.expect("a renewal");
        waited += passed;
        renewed.push(signing.id.clone());
        world.sign(signing);
    }
    renewed.sort_unstable();
    assert_eq!(renewed, [id("cart"), id("probe")]);
    assert!(
        waited > DAY.mul_f64(0.44) && waited < DAY.mul_f64(0.57),
        "{waited:?}"
    );
    // The new one is put where the holders look.
    let again = world
        .certificates
        .get(&id("cart"))
        .await
        .expect("credentials");
    assert_ne!(again.current().serial(), before);
    assert_eq!(credentials.current().serial(), again.current().serial());
}

#[tokio::test]
async fn a_failure_is_told_and_tried_again_later() {
    let mut world = World::new();
    let _probe = world.signed(&id("probe")).await;
    let got = world.get(&id("cart"));
    world
        .asked()
        .await
        .answer
        .send(Err(refused()))
        .expect("it waits");
    let Err(CertError::Failed { source, .. }) = got.await.expect("it ran") else {
        panic!("it was refused");
    };
    assert_eq!(source.code(), "permission_denied");

    // Asked again within the short delay, it waits for the next attempt.
    let got = world.get(&id("cart"));
    let mut delays = Vec::new();
    let (passed, signing) = world
        .asked_within(Duration::from_secs(1))
        .await
        .expect("an attempt");
    delays.push(passed);
    signing.answer.send(Err(refused())).expect("it waits");
    assert!(got.await.expect("it ran").is_err());
    while delays.len() < 8 {
        let Some((passed, signing)) = world.asked_within(Duration::from_secs(200)).await else {
            // Nobody has it or asks for it: forgotten. It is as if it had never been asked for.
            break;
        };
        delays.push(passed);
        signing.answer.send(Err(refused())).expect("it waits");
    }
    assert!(delays.len() >= 4, "{delays:?}");
    assert!(
        delays[1] < delays[delays.len() - 1],
        "the delays grow: {delays:?}"
    );
}

#[tokio::test]
async fn within_a_long_delay_the_last_failure_is_told_at_once() {
    let mut world = World::new();
    let _probe = world.signed(&id("probe")).await;
    let held = world.get(&id("cart"));
    world
        .asked()
        .await
        .answer
        .send(Err(refused()))
        .expect("it waits");
    assert!(held.await.expect("it ran").is_err());
    for _ in 0..6 {
        let (_, signing) = world
            .asked_within(Duration::from_secs(60))
            .await
            .expect("an attempt");
        signing.answer.send(Err(refused())).expect("it waits");
        // Taken in before the hand moves on.
        let _ = world.certificates.get(&id("probe")).await;
    }
    let error = world
        .certificates
        .get(&id("cart"))
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("not on that node"), "{error}");
    assert!(world.signings.try_recv().is_err());
    let list = world.certificates.list();
    let cart = list
        .iter()
        .find(|held| held.id.ends_with("cart"))
        .expect("listed");
    assert!(cart.failure.contains("not on that node"));
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_old_one_until_it_ends() {
    let mut world = World::new();
    let credentials = world.signed(&id("cart")).await;
    let serial = credentials.current().serial();
    world.pass(DAY.mul_f64(0.6));
    world
        .asked()
        .await
        .answer
        .send(Err(refused()))
        .expect("it waits");
    let still = world
        .certificates
        .get(&id("cart"))
        .await
        .expect("the old one");
    assert_eq!(still.current().serial(), serial);

    // Past its end it is of no use: who asks now waits, or is refused with the reason.
    world.pass(DAY);
    let got = world.get(&id("cart"));
    world
        .asked()
        .await
        .answer
        .send(Err(refused()))
        .expect("it waits");
    assert!(matches!(
        got.await.expect("it ran"),
        Err(CertError::Failed { .. })
    ));

    // The controller is back: the holders have the new one without asking.
    world.pass(Duration::from_secs(200));
    let signing = world.asked().await;
    world.sign(signing);
    let got = world
        .certificates
        .get(&id("cart"))
        .await
        .expect("the new one");
    assert_ne!(got.current().serial(), serial);
    assert_eq!(credentials.current().serial(), got.current().serial());
}

#[tokio::test]
async fn what_nobody_holds_is_forgotten() {
    let mut world = World::new();
    let first = world.signed(&id("cart")).await;
    let second = first.clone();
    world.certificates.release(&id("cart")).await;
    drop(first);
    let _probe = world.signed(&id("probe")).await;
    let listed = |world: &World| {
        world
            .certificates
            .list()
            .iter()
            .any(|held| held.id.ends_with("cart"))
    };
    assert!(listed(&world), "one holder is left");

    drop(second);
    let again = world.certificates.get(&id("probe")).await;
    again.expect("kept");
    assert!(!listed(&world), "released, and nobody holds it");

    // Without a release it is kept for a while.
    drop(world.signed(&id("cart")).await);
    world.pass(HOUR / 60);
    world.certificates.get(&id("probe")).await.expect("kept");
    assert!(listed(&world));
    world.pass(HOUR / 10);
    world.certificates.get(&id("probe")).await.expect("kept");
    assert!(!listed(&world));
}

#[tokio::test]
async fn who_waits_is_told_of_a_release() {
    let mut world = World::new();
    let got = world.get(&id("cart"));
    let _signing = world.asked().await;
    world.certificates.release(&id("cart")).await;
    assert!(matches!(
        got.await.expect("it ran"),
        Err(CertError::Released(_))
    ));
}

#[tokio::test]
async fn an_answer_for_another_identity_is_refused() {
    let mut world = World::new();
    let got = world.get(&id("cart"));
    let signing = world.asked().await;
    let leaf = world.leaf(&signing, id("admin").as_str());
    signing
        .answer
        .send(Ok(vec![leaf, world.ca.pem()]))
        .expect("it waits");
    let Err(CertError::Failed { source, .. }) = got.await.expect("it ran") else {
        panic!("it is another's");
    };
    assert!(
        matches!(&*source, CaError::OtherIdentity { asked, got } if *asked == id("cart") && *got == id("admin"))
    );

    for answer in [vec![], vec!["garbage".to_owned(), "garbage".to_owned()]] {
        let got = world.get(&id(&format!("x{}", answer.len())));
        let signing = world.asked().await;
        signing.answer.send(Ok(answer)).expect("it waits");
        let Err(CertError::Failed { source, .. }) = got.await.expect("it ran") else {
            panic!("it is no certificate");
        };
        assert_eq!(source.code(), "invalid_answer");
    }
}

/// What the authority signs when its clock is so far ahead of ours, and it dates certificates back by ten minutes.
fn signed_ahead(world: &World, signing: Signing, ahead: Duration) {
    let from = world.now() + ahead - Duration::from_secs(600);
    let leaf = world
        .ca
        .leaf(&signing.csr, signing.id.as_str(), from, from + DAY);
    signing
        .answer
        .send(Ok(vec![leaf, world.ca.pem()]))
        .expect("it waits");
}

#[tokio::test]
async fn clocks_ten_minutes_apart_work_and_beyond_that_the_skew_is_named() {
    let mut world = World::new();
    for (minutes, account, failure) in [
        (10, "ahead", None),
        (24, "far-ahead", Some("begins in 14 minutes: clocks differ")),
    ] {
        let got = world.get(&id(account));
        let signing = world.asked().await;
        signed_ahead(&world, signing, Duration::from_secs(minutes * 60));
        let outcome = got.await.expect("it ran");
        match failure {
            None => assert!(outcome.is_ok(), "{outcome:?}"),
            Some(text) => {
                let error = outcome.expect_err("not valid yet").to_string();
                assert!(error.contains(text), "{error}");
            }
        }
    }
    // The other way round: an authority ten minutes behind, with what it dates back.
    let got = world.get(&id("behind"));
    let signing = world.asked().await;
    let from = world.now() - Duration::from_secs(1200);
    let leaf = world
        .ca
        .leaf(&signing.csr, signing.id.as_str(), from, from + DAY);
    let answer = Ok(vec![leaf, world.ca.pem()]);
    signing.answer.send(answer).expect("it waits");
    assert!(got.await.expect("it ran").is_ok());
}

#[tokio::test]
async fn what_has_ended_on_arrival_is_a_failure_and_not_asked_for_without_end() {
    let mut world = World::new();
    let got = world.get(&id("cart"));
    let signing = world.asked().await;
    let from = world.now() - 2 * DAY;
    let leaf = world
        .ca
        .leaf(&signing.csr, signing.id.as_str(), from, from + DAY);
    let answer = Ok(vec![leaf, world.ca.pem()]);
    signing.answer.send(answer).expect("it waits");
    let error = got.await.expect("it ran").expect_err("ended").to_string();
    assert!(error.contains("ended 24 hours ago"), "{error}");
    assert!(
        world.signings.try_recv().is_err(),
        "it waits before it asks again"
    );
}

#[tokio::test]
async fn a_short_life_that_was_dated_back_is_renewed_at_half_of_what_is_left() {
    let mut world = World::new();
    let _probe = world.signed(&id("probe")).await;
    let got = world.get(&id("cart"));
    let signing = world.asked().await;
    let (from, to) = (
        world.now() - Duration::from_secs(600),
        world.now() + Duration::from_secs(300),
    );
    let leaf = world.ca.leaf(&signing.csr, signing.id.as_str(), from, to);
    let answer = Ok(vec![leaf, world.ca.pem()]);
    signing.answer.send(answer).expect("it waits");
    let _held = got.await.expect("it ran").expect("valid");
    let (passed, signing) = world
        .asked_within(Duration::from_secs(300))
        .await
        .expect("a renewal");
    assert_eq!(signing.id, id("cart"));
    assert!(
        passed >= Duration::from_secs(130) && passed <= Duration::from_secs(170),
        "{passed:?}"
    );
}
