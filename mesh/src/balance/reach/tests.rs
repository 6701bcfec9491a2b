use std::cell::RefCell;

use tokio::time::{Instant, sleep};

use super::*;

/// What becomes of an attempt, and when.
#[derive(Clone, Copy)]
enum Endpoint {
    Reached(u64),
    Failed(u64),
    Refused(u64),
    Silent,
}

use Endpoint::{Failed, Reached, Refused, Silent};

/// What came of these endpoints, after so many ms; and why each of them was tried, when.
async fn came_of(
    endpoints: &[Endpoint],
) -> (Result<usize, Option<&'static str>>, u64, Vec<(Why, u64)>) {
    let began = Instant::now();
    let passed = || u64::try_from(began.elapsed().as_millis()).unwrap();
    let begun = RefCell::new(Vec::new());
    let next = |why| {
        let number = begun.borrow().len();
        let endpoint = *endpoints.get(number)?;
        begun.borrow_mut().push((why, passed()));
        Some(async move {
            let (after, result) = match endpoint {
                Reached(after) => (after, Ok(number)),
                Failed(after) => (after, Err("failed")),
                Refused(after) => (after, Err("refused")),
                Silent => std::future::pending().await,
            };
            sleep(Duration::from_millis(after)).await;
            result
        })
    };
    let result = reach(next, |error| *error == "refused").await;
    (result, passed(), begun.into_inner())
}

#[tokio::test(start_paused = true)]
async fn who_is_reached_and_when() {
    use Why::{Failed as AfterFailure, First, Silent as BesideSilence};
    let first = (First, 0);
    for (endpoints, result, after, begun) in [
        (&[][..], Err(None), 0, vec![]),
        (&[Reached(0)], Ok(0), 0, vec![first]),
        (&[Reached(400), Reached(0)], Ok(0), 400, vec![first]),
        (
            &[Failed(10), Reached(10)],
            Ok(1),
            20,
            vec![first, (AfterFailure, 10)],
        ),
        (
            &[Failed(10), Failed(10)],
            Err(Some("failed")),
            20,
            vec![first, (AfterFailure, 10)],
        ),
        // One that answered is not asked by way of another.
        (
            &[Refused(10), Reached(0)],
            Err(Some("refused")),
            10,
            vec![first],
        ),
        // Nobody waits for one that says nothing while there is another.
        (
            &[Silent, Reached(10)],
            Ok(1),
            510,
            vec![first, (BesideSilence, 500)],
        ),
        // The slow one may still be first.
        (
            &[Reached(520), Silent, Reached(0)],
            Ok(0),
            520,
            vec![first, (BesideSilence, 500)],
        ),
        // Two at a time: the third waits for one of them.
        (
            &[Silent, Failed(2_000), Reached(10)],
            Ok(2),
            2_510,
            vec![first, (BesideSilence, 500), (AfterFailure, 2_500)],
        ),
        // There is no other: it is waited for as long as it takes.
        (&[Failed(9_000)], Err(Some("failed")), 9_000, vec![first]),
    ] {
        let names = begun.clone();
        assert_eq!(
            came_of(endpoints).await,
            (result, after, begun),
            "{names:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_says_nothing_is_left_alone_by_everybody_for_a_moment() {
    let mut tries = Tries::new(2);
    let stats = Arc::new(EndpointStats::default());
    assert!(tries.allows(Why::First));
    tries.begin(Uid::from("a"), Arc::clone(&stats));
    let now = std::time::Instant::now();
    assert!(tries.allows(Why::Failed) && !stats.is_avoided(now));
    assert!(tries.allows(Why::Silent) && stats.is_avoided(now));
    tries.begin(Uid::from("b"), Arc::default());
    assert!(!tries.allows(Why::Failed));
    assert_eq!(tries.tried(), [Uid::from("a"), Uid::from("b")]);
}
