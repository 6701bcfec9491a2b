use super::*;

fn seen(holder: &str, since: Instant) -> Observed {
    let spec = LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        // Thousands of years ahead: nobody reads it.
        renew_time: Some(MicroTime(jiff::Timestamp::MAX)),
        ..LeaseSpec::default()
    };
    let lease = Lease {
        spec: Some(spec),
        ..Lease::default()
    };
    Observed { lease, since }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_about_the_lease() {
    let now = Instant::now() + LEASE * 10;
    let nearly = now - (LEASE - Duration::from_millis(1));
    let long_ago = now - LEASE * 9;
    let wait = Step::WaitUntil;
    let cases = [
        ("there is none", None, None, Step::Create),
        ("there was one", None, Some(now + POLL), wait(now + POLL)),
        ("there was one once", None, Some(long_ago), Step::Create),
        ("ours", Some(seen("a", long_ago)), None, Step::Hold),
        ("given back", Some(seen("", now)), None, Step::Hold),
        ("another's", Some(seen("b", now)), None, wait(now + LEASE)),
        (
            "nearly over",
            Some(seen("b", nearly)),
            None,
            wait(nearly + LEASE),
        ),
        ("over", Some(seen("b", now - LEASE)), None, Step::Hold),
    ];
    for (what, observed, barred, step) in cases {
        let decided = decide("a", observed.as_ref(), barred, now);
        assert_eq!(decided, step, "{what}");
    }
}
