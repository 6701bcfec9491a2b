use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::advance;

use super::*;
use crate::index::names::Key;

const HOSTILE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 66));
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

/// An API server: tokens say in their first part what becomes of them.
#[derive(Default)]
struct Fake {
    reviews: AtomicUsize,
    /// Tokens that begin with `slow` wait for it.
    go: Notify,
}

#[tonic::async_trait]
impl Authenticate for Arc<Fake> {
    async fn whose(&self, token: &str, _peer: IpAddr) -> Outcome {
        self.reviews.fetch_add(1, Ordering::Relaxed);
        if token.starts_with("slow") {
            self.go.notified().await;
        }
        match token.split('.').next() {
            Some("good" | "slow") => Ok(caller()),
            Some("hang") => std::future::pending().await,
            Some("down") => Err(AuthenticateError::Timeout),
            _ => Err(AuthenticateError::Refused("bad".to_owned())),
        }
    }
}

fn caller() -> Caller {
    Caller {
        account: Key::new("a", "b"),
        pod: None,
        node: None,
    }
}

/// A token of that sort which ends in so many seconds.
fn token(sort: &str, seconds: u64) -> String {
    let exp = (SystemTime::now() + Duration::from_secs(seconds))
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}}}"));
    format!("{sort}.{claims}.sig")
}

fn checked() -> (Arc<Fake>, Checked<Arc<Fake>>) {
    let fake = Arc::new(Fake::default());
    (fake.clone(), Checked::new(fake, Metrics::default()))
}

impl Fake {
    fn reviews(&self) -> usize {
        self.reviews.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_token_is_reviewed_once_a_minute() {
    let (fake, checked) = checked();
    let good = token("good", 3600);
    for minute in 1..=3 {
        for _ in 0..1000 {
            assert_eq!(checked.whose(&good, PROXY).await.expect("good"), caller());
        }
        assert_eq!(fake.reviews(), minute);
        advance(ACCEPTED_FOR).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_believed_past_the_end_that_the_token_names() {
    let (fake, checked) = checked();
    let short = token("good", 20);
    for (passed, reviews) in [(0, 1), (15, 1), (6, 2)] {
        advance(Duration::from_secs(passed)).await;
        checked.whose(&short, PROXY).await.expect("good");
        assert_eq!(fake.reviews(), reviews);
    }
    // One that names no end, or has reached it, is reviewed each time.
    for unending in ["good.x.y".to_owned(), "good".to_owned(), token("good", 0)] {
        let before = fake.reviews();
        for _ in 0..3 {
            checked.whose(&unending, PROXY).await.expect("good");
        }
        assert_eq!(fake.reviews() - before, 3, "{unending}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_is_refused_for_a_while_without_asking() {
    let (fake, checked) = checked();
    for reviews in 1..=2 {
        for _ in 0..1000 {
            let error = checked.whose("bad", HOSTILE).await.expect_err("bad");
            assert!(error.is_verdict(), "{error}");
        }
        assert_eq!(fake.reviews(), reviews);
        advance(REFUSED_FOR).await;
    }
    // That nobody could say is not remembered.
    for reviews in 3..=5 {
        let error = checked.whose("down", PROXY).await.expect_err("down");
        assert!(!error.is_verdict(), "{error}");
        assert_eq!(fake.reviews(), reviews);
    }
}

#[tokio::test(start_paused = true)]
async fn one_review_answers_all_who_show_the_token_also_when_the_first_has_gone() {
    let (fake, checked) = checked();
    let slow = token("slow", 3600);
    let mut first = Box::pin(checked.whose(&slow, PROXY));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut others: Vec<_> = (0..100).map(|_| checked.whose(&slow, PROXY)).collect();
    for other in &mut others {
        assert!(futures_util::poll!(other).is_pending());
    }
    drop(first);
    fake.go.notify_one();
    for outcome in join_all(others).await {
        assert_eq!(outcome.expect("good"), caller());
    }
    assert_eq!(fake.reviews(), 1);
    assert!(checked.0.state.lock().flying.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_review_that_nobody_waits_for_is_dropped() {
    let (fake, checked) = checked();
    let hang = token("hang", 3600);
    for reviews in 1..=3 {
        let mut only = Box::pin(checked.whose(&hang, PROXY));
        assert!(futures_util::poll!(&mut only).is_pending());
        assert_eq!(fake.reviews(), reviews);
        drop(only);
        let state = checked.0.state.lock();
        assert!(state.flying.is_empty() && state.flights.is_empty());
    }
}

/// 5 000 bad tokens per second for ten seconds, from so many addresses; how many reviews they cost, while a proxy
/// shows a new good token each second and is served at once.
async fn flood(addresses: u8) -> usize {
    let (fake, checked) = checked();
    checked
        .whose(&token("good", 3600), PROXY)
        .await
        .expect("before");
    let (begun, before) = (Instant::now(), fake.reviews());
    for second in 0..10_u64 {
        for n in 0..5000_u64 {
            let from = [
                10,
                0,
                1,
                u8::try_from(n % u64::from(addresses)).expect("small"),
            ];
            checked
                .whose(&format!("bad-{second}-{n}"), from.into())
                .await
                .expect_err("bad");
            advance(Duration::from_micros(200)).await;
        }
        checked
            .whose(&token("good", 3600 + second), PROXY)
            .await
            .expect("served");
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(10), "nobody waited");
    fake.reviews() - before - 10
}

#[tokio::test(start_paused = true)]
async fn five_thousand_bad_tokens_a_second_of_one_address_cost_five_reviews_a_second() {
    let reviews = flood(1).await;
    let most = PER_PEER.burst + 10 * PER_PEER.per_second;
    assert!(
        reviews <= usize::try_from(most).expect("small"),
        "{reviews}"
    );
    assert!(reviews >= 50, "{reviews}: an honest mistake is still told");
}

#[tokio::test(start_paused = true)]
async fn and_of_all_strangers_a_hundred() {
    let reviews = flood(200).await;
    let most = STRANGERS.burst + 10 * STRANGERS.per_second;
    assert!(
        reviews <= usize::try_from(most).expect("small"),
        "{reviews}"
    );
    assert!(reviews >= 500, "{reviews}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_keeps_nobody_longer_than_the_deadline() {
    let (fake, checked) = checked();
    let begun = Instant::now();
    let hanging: Vec<_> = (0..100).map(|n| token("hang", 3600 + n)).collect();
    let outcomes = join_all(hanging.iter().map(|hang| checked.whose(hang, HOSTILE))).await;
    assert_eq!(begun.elapsed(), REVIEW_DEADLINE);
    let limited = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Err(AuthenticateError::Limited)))
        .count();
    assert_eq!(limited, 100 - IN_FLIGHT_PER_PEER);
    assert_eq!(fake.reviews(), IN_FLIGHT_PER_PEER);
}

#[tokio::test(start_paused = true)]
async fn strangers_who_hang_leave_room_for_those_who_are_known() {
    let (_fake, checked) = checked();
    checked
        .whose(&token("good", 3600), PROXY)
        .await
        .expect("known");
    let hanging: Vec<_> = (0..100_u8)
        .map(|n| {
            (
                token("hang", 3600 + u64::from(n)),
                IpAddr::from([10, 0, 2, n]),
            )
        })
        .collect();
    let hanging = join_all(
        hanging
            .iter()
            .map(|(hang, from)| checked.whose(hang, *from)),
    );
    tokio::pin!(hanging);
    assert!(futures_util::poll!(&mut hanging).is_pending());
    let (begun, new) = (Instant::now(), token("good", 7200));
    let served = tokio::select! {
        served = checked.whose(&new, PROXY) => served,
        _ = &mut hanging => panic!("they hang"),
    };
    assert_eq!(served.expect("good"), caller());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
