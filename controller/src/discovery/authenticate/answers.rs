//! Answers that are remembered for a while: a bounded table, the key of a token in it, and the end that a token names.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest as hash};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

/// What stands for a token: tokens themselves are kept nowhere.
pub(super) type Digest = [u8; 32];

/// At most so many answers; the oldest goes first.
#[derive(Debug)]
pub(super) struct Answers<V, K = Digest> {
    most: usize,
    all: HashMap<K, (Instant, V)>,
    /// In the order they came, each with its end: one that was replaced since has another.
    order: VecDeque<(K, Instant)>,
}

// === impl Answers ===

impl<V: Clone, K: Copy + Eq + Hash> Answers<V, K> {
    /// None so far.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            all: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The answer, if there is one whose time is not over.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (until, value) = self.all.get(key)?;
        (now < *until).then(|| value.clone())
    }

    /// Remembers this until then.
    pub(super) fn insert(&mut self, key: K, value: V, until: Instant, now: Instant) {
        while self.order.len() >= self.most
            || self.order.front().is_some_and(|(_, end)| *end <= now)
        {
            let Some((oldest, end)) = self.order.pop_front() else {
                break;
            };
            if self
                .all
                .get(&oldest)
                .is_some_and(|(until, _)| *until == end)
            {
                self.all.remove(&oldest);
            }
        }
        self.all.insert(key, (until, value));
        self.order.push_back((key, until));
    }
}

pub(super) fn digest(token: &str) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(hash(&SHA256, token.as_bytes()).as_ref());
    digest
}

/// When a JWT says that it ends. Nothing else in it is looked at, and this only ever shortens what the issuer said.
pub(super) fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let claims = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn the_end_of_a_token_is_read_or_there_is_none() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(
            expiry(&jwt(r#"{"aud":["istio-ca"],"exp":1800000000}"#)),
            at(1_800_000_000)
        );
        for claims in [
            r#"{"exp":-1}"#,
            r#"{"exp":1.5}"#,
            r#"{"exp":"1"}"#,
            "{}",
            "[]",
            "",
            "{\"exp\":18446744073709551616}",
        ] {
            assert_eq!(expiry(&jwt(claims)), None, "{claims}");
        }
        let whole = jwt(r#"{"exp":1}"#);
        for token in ["", ".", "..", "a.b", &format!("{whole}.x"), "e30.%%.c2ln"] {
            assert_eq!(expiry(token), None, "{token}");
        }
    }

    #[test]
    fn answers_end_and_are_bounded() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut answers: Answers<u32, u32> = Answers::new(3);
        for n in 0..5 {
            answers.insert(n, n, now + 10 * second, now);
        }
        let left = |answers: &Answers<u32, u32>, at| -> Vec<u32> {
            (0..5).filter_map(|n| answers.get(&n, at)).collect()
        };
        assert_eq!(left(&answers, now), [2, 3, 4]);
        assert_eq!(left(&answers, now + 10 * second), [0_u32; 0]);
        // One that was replaced lives as long as the new one.
        answers.insert(4, 40, now + 20 * second, now + 9 * second);
        answers.insert(5, 5, now + 20 * second, now + 11 * second);
        assert_eq!(answers.get(&4, now + 11 * second), Some(40));
        assert_eq!((answers.all.len(), answers.order.len()), (2, 2));
    }

    proptest! {
        #[test]
        fn whatever_a_caller_sends_is_read_or_not(token in ".{0,200}", claims in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = expiry(&token);
            let _ = expiry(&format!("a.{}.b", URL_SAFE_NO_PAD.encode(&claims)));
        }
    }
}
