//! Tables and round trips of CONNECT heads.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::head::{self, Answer};
use crate::hpack::Decoder;

#[test]
fn targets() {
    let good = [
        ("10.1.2.3:80", "10.1.2.3:80"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("[::ffff:10.1.2.3]:80", "10.1.2.3:80"),
        (
            "Shop.default.svc.cluster.local:65535",
            "shop.default.svc.cluster.local:65535",
        ),
        ("a_b.example:1", "a_b.example:1"),
        ("3com.example:1", "3com.example:1"),
    ];
    for (text, printed) in good {
        assert_eq!(
            text.parse::<Target>().map(|t| t.to_string()).as_deref(),
            Ok(printed)
        );
    }
    let bad = [
        ("", InvalidTarget::Port),
        ("10.1.2.3", InvalidTarget::Port),
        ("10.1.2.3:", InvalidTarget::Port),
        ("10.1.2.3:0", InvalidTarget::Port),
        ("10.1.2.3:+80", InvalidTarget::Port),
        ("10.1.2.3:65536", InvalidTarget::Port),
        ("10.1.2.3:8 0", InvalidTarget::Port),
        ("2001:db8::1:80", InvalidTarget::Address),
        ("[2001:db8::1:80", InvalidTarget::Address),
        ("[10.1.2.3]:80", InvalidTarget::Address),
        ("[fe80::1%eth0]:80", InvalidTarget::Address),
        (":80", InvalidTarget::Host),
        ("10.1:80", InvalidTarget::Host),
        ("0x7f.1:80", InvalidTarget::Host),
        ("010.1.2.3:80", InvalidTarget::Host),
        ("a..b:80", InvalidTarget::Host),
        ("a.b.:80", InvalidTarget::Host),
        ("user@shop:80", InvalidTarget::Host),
        ("shop/x:80", InvalidTarget::Host),
        ("sh\u{f6}p:80", InvalidTarget::Host),
    ];
    for (text, why) in bad {
        assert_eq!(text.parse::<Target>(), Err(why), "{text}");
    }
    let long = format!("{}:80", ["a"; 128].join("."));
    assert_eq!(long.parse::<Target>(), Err(InvalidTarget::Host));
    assert!(long[2..].parse::<Target>().is_ok());
}

#[test]
fn forwarded() {
    let good = [
        (
            r#"for="10.1.2.3:4567";host=shop.default.svc"#,
            "10.1.2.3:4567",
            Some("shop.default.svc"),
        ),
        (r#"for="[2001:db8::1]:4567""#, "[2001:db8::1]:4567", None),
        (r#"For="[::ffff:10.1.2.3]:1""#, "10.1.2.3:1", None),
        ("for=10.1.2.3", "10.1.2.3:0", None),
        (r#"for="[2001:db8::1]""#, "[2001:db8::1]:0", None),
        (r#"for="10.1.2.3:1";proto=http;by=_x"#, "10.1.2.3:1", None),
        (
            r#"host="a\"b" ; for="10.1.2.3:1""#,
            "10.1.2.3:1",
            Some("a\"b"),
        ),
        (
            r#"for="10.1.2.3:1", for=10.9.9.9;host=x"#,
            "10.1.2.3:1",
            None,
        ),
        ("for=10.1.2.3:1;host=shop:80", "10.1.2.3:1", Some("shop:80")),
        ("for=10.1.2.3:1;host=\"a\tb\"", "10.1.2.3:1", Some("a\tb")),
    ];
    for (text, client, host) in good {
        let got: Forwarded = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(got.to_string().parse().as_ref(), Ok(&got));
        assert_eq!(
            (got.client.to_string().as_str(), got.host.as_deref()),
            (client, host)
        );
    }
    let bad = [
        ("", InvalidForwarded::NoClient),
        ("host=x", InvalidForwarded::NoClient),
        ("proto=http, for=10.1.2.3", InvalidForwarded::NoClient),
        ("for=unknown", InvalidForwarded::Client),
        ("for=_hidden", InvalidForwarded::Client),
        ("for", InvalidForwarded::Syntax),
        ("for=", InvalidForwarded::Syntax),
        ("=x", InvalidForwarded::Syntax),
        (r#"for="10.1.2.3"#, InvalidForwarded::Syntax),
        (r#"for="10.1.2.3"x"#, InvalidForwarded::Syntax),
        ("for=10.1.2.3;for=10.1.2.4", InvalidForwarded::Twice),
    ];
    for (text, why) in bad {
        assert_eq!(text.parse::<Forwarded>(), Err(why), "{text}");
    }
    assert_eq!(
        "x".repeat(1025).parse::<Forwarded>(),
        Err(InvalidForwarded::TooLong)
    );
}

#[test]
fn baggage() {
    let stock = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                 service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z";
    let some = |text: &str| Some(Arc::<str>::from(text));
    let want = Baggage {
        cluster: some("Kubernetes"),
        namespace: some("shop"),
        workload_name: some("web"),
        workload_type: some("deployment"),
        service_name: some("web"),
        service_version: some("v1"),
        region: some("r"),
        zone: some("z"),
    };
    assert_eq!(Baggage::decode(&[stock]).as_ref(), Ok(&want));
    assert_eq!(want.encode().as_deref(), Some(stock));
    let (one, two) = stock.split_at(stock.find(",service.name").unwrap());
    assert_eq!(Baggage::decode(&[one, two]).as_ref(), Ok(&want));

    let empty = [
        &[][..],
        &[""],
        &["unknown=x,k8s.node.name=y;a=b"],
        &["service.name="],
        &[" , "],
    ];
    for headers in empty {
        assert_eq!(
            Baggage::decode(headers),
            Ok(Baggage::default()),
            "{headers:?}"
        );
    }
    let bad = [
        ("nonsense", InvalidBaggage::Member),
        ("=x", InvalidBaggage::Member),
        (
            "service.name=%ff",
            InvalidBaggage::Value("service.name".into()),
        ),
        (
            "service.name=a,service.name=b",
            InvalidBaggage::Twice("service.name".into()),
        ),
        (
            "k8s.pod.name=a,k8s.job.name=b",
            InvalidBaggage::Twice("k8s.job.name".into()),
        ),
    ];
    for (text, why) in bad {
        assert_eq!(Baggage::decode(&[text]), Err(why), "{text}");
    }
    assert_eq!(
        Baggage::decode(&[&"a=b,".repeat(65)]),
        Err(InvalidBaggage::TooLong)
    );
    assert_eq!(
        Baggage::decode(&[&"x".repeat(8193)]),
        Err(InvalidBaggage::TooLong)
    );
}

#[test]
fn trace_parents() {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace: TraceParent = text.parse().unwrap();
    assert_eq!(trace.to_string(), text);
    assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    let later = text.replacen("00-", "01-", 1) + "-more";
    assert_eq!(later.parse(), Ok(trace));
    let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    let bad = [
        "",
        "00",
        &text[1..],
        &text[..54],
        &format!("{text}-x"),
        &text.to_uppercase(),
        zeros,
    ]
    .map(str::to_owned);
    for text in bad.into_iter().chain([text.replacen("00-", "ff-", 1)]) {
        assert_eq!(
            text.parse::<TraceParent>(),
            Err(InvalidTraceParent),
            "{text}"
        );
    }
}

#[test]
fn what_a_refusal_cannot_carry_is_left_out() {
    let refusal = Refusal::new(StatusCode::OK, "No Code!", "x".repeat(2000));
    let reason = "x".repeat(MAX_REASON);
    let want = Refusal::new(StatusCode::FORBIDDEN, "http_403", reason);
    assert_eq!(answer(&refusal.to_block()), Answer::Refused(want.clone()));
    let early = Refusal::new(StatusCode::CONTINUE, "No Code!", "x".repeat(2000));
    assert_eq!(answer(&early.to_block()), Answer::Refused(want));
}

#[test]
fn spaces_around_a_reason_are_kept() {
    for reason in ["", " ", "  ", "   ", " a", "a ", "  a b  "] {
        let refusal = Refusal::new(StatusCode::FORBIDDEN, "x", reason);
        assert_eq!(answer(&refusal.to_block()), Answer::Refused(refusal));
    }
}

fn answer(block: &[u8]) -> Answer {
    head::response(&mut Decoder::new(), block).unwrap()
}

fn target() -> impl Strategy<Value = Target> {
    let host = "[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){1,3}";
    prop_oneof![
        (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip, port).into()),
        (host, 1..=u16::MAX).prop_map(|(host, port)| Target::Host {
            host: host.into(),
            port
        }),
    ]
}

fn forwarded_for() -> impl Strategy<Value = Forwarded> {
    (any::<IpAddr>(), any::<u16>(), option::of("[ -~]{0,30}")).prop_map(|(ip, port, host)| {
        let client = SocketAddr::new(ip.to_canonical(), port);
        Forwarded {
            client,
            host: host.map(Arc::from),
        }
    })
}

prop_compose! {
    fn some_baggage()(
        text in proptest::collection::vec(option::of("[^ \t\r\n].{0,20}[^ \t\r\n]"), 7),
        kind in proptest::sample::select(&["deployment", "cronjob", "pod", "job"][..]),
    ) -> Baggage {
        let mut text = text.into_iter().map(|t| t.map(Arc::<str>::from));
        let mut next = || text.next().flatten();
        let workload_name = next();
        Baggage {
            workload_type: workload_name.as_ref().map(|_| kind.into()),
            workload_name,
            cluster: next(),
            namespace: next(),
            service_name: next(),
            service_version: next(),
            region: next(),
            zone: next(),
        }
    }
}

fn source() -> impl Strategy<Value = SourceKind> {
    prop_oneof![
        Just(SourceKind::Waypoint),
        Just(SourceKind::Gateway),
        Just(SourceKind::Sidecar)
    ]
}

proptest! {
    #[test]
    fn heads_survive_the_wire(
        target in target(),
        forwarded in option::of(forwarded_for()),
        baggage in some_baggage(),
        source in option::of(source()),
        traced in any::<bool>(),
    ) {
        let traceparent = traced.then(TraceParent::random);
        let request = Request { target, forwarded, baggage, traceparent, source };
        let got = head::request(&mut Decoder::new(), &request.to_block());
        prop_assert_eq!(got.as_ref(), Ok(&request));

        let response = Response { baggage: request.baggage };
        prop_assert_eq!(answer(&response.to_block()), Answer::Opened(response));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,80}") {
        let _ = text.parse::<Forwarded>();
        let _ = text.parse::<TraceParent>();
        let _ = Baggage::decode(&[&text]);
        if let Ok(target) = text.parse::<Target>() {
            prop_assert_eq!(target.to_string().parse(), Ok(target));
        }
    }

    #[test]
    fn refusals_survive_the_wire(code in "[a-z0-9_.-]{1,64}", reason in "[^\\p{Cc}]{0,100}") {
        let refusal = Refusal::new(StatusCode::FORBIDDEN, code, reason);
        prop_assert_eq!(answer(&refusal.to_block()), Answer::Refused(refusal));
    }
}
