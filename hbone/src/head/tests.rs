//! What is a head, what is malformed, and what is only refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::connect::{InvalidBaggage, InvalidForwarded, InvalidTraceParent, SourceKind};
use crate::frame::Code;

mod peer;

type Field = (&'static str, &'static str);

/// A literal that is kept in the table, or not.
fn put(block: &mut Vec<u8>, keep: bool, name: &[u8], value: &[u8]) {
    block.push(if keep { 0x40 } else { 0 });
    for text in [name, value] {
        let len = text.len();
        assert!(len < 127 + 128 * 128);
        match len.checked_sub(127) {
            None => block.push(len as u8),
            Some(more) => block.extend([127, 0x80 | (more & 0x7f) as u8, (more >> 7) as u8]),
        }
        block.extend(text);
    }
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        put(&mut block, false, name.as_bytes(), value.as_bytes());
    }
    block
}

fn read_request(fields: &[(&str, &str)]) -> Result<Request, HeadError> {
    request(&mut Decoder::new(), &block(fields))
}

fn read_response(fields: &[(&str, &str)]) -> Result<Answer, HeadError> {
    response(&mut Decoder::new(), &block(fields))
}

const METHOD: (&str, &str) = (":method", "CONNECT");
const AUTHORITY: (&str, &str) = (":authority", "10.1.2.3:80");

#[test]
fn a_stock_request() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let got = read_request(&[
        AUTHORITY,
        METHOD,
        ("host", "10.1.2.3:80"),
        ("forwarded", "for=10.9.9.9;host=shop"),
        ("baggage", "k8s.namespace.name=shop"),
        ("x-unknown", "\u{fc}"),
        ("baggage", "service.name=web"),
        ("te", "Trailers"),
        ("content-length", "0"),
        ("traceparent", trace),
        ("x-istio-source", "waypoint"),
        ("x-ambit-reason", "%0a"),
    ])
    .unwrap();
    assert_eq!(got.target, "10.1.2.3:80".parse().unwrap());
    assert_eq!(got.forwarded, "for=10.9.9.9;host=shop".parse().ok());
    assert_eq!(got.baggage.namespace.as_deref(), Some("shop"));
    assert_eq!(got.baggage.service_name.as_deref(), Some("web"));
    assert_eq!(got.traceparent, trace.parse().ok());
    assert_eq!(got.source, Some(SourceKind::Waypoint));
}

#[test]
fn malformed_requests() {
    let rows: &[&[(&str, &str)]] = &[
        &[],
        &[AUTHORITY],
        &[METHOD],
        &[METHOD, METHOD, AUTHORITY],
        &[METHOD, AUTHORITY, AUTHORITY],
        &[METHOD, AUTHORITY, (":scheme", "https")],
        &[METHOD, AUTHORITY, (":path", "/")],
        &[METHOD, AUTHORITY, (":protocol", "websocket")],
        &[METHOD, AUTHORITY, (":status", "200")],
        &[METHOD, AUTHORITY, (":", "x")],
        &[METHOD, AUTHORITY, (":Path", "/")],
        &[METHOD, ("x", "y"), AUTHORITY],
        &[METHOD, ("host", "10.1.2.3:80"), AUTHORITY],
        &[METHOD, AUTHORITY, ("host", "10.1.2.4:80")],
        &[METHOD, AUTHORITY, ("host", "")],
        &[METHOD, AUTHORITY, ("host", "10.1.2.3:80"), ("host", "a:1")],
        &[METHOD, AUTHORITY, ("", "y")],
        &[METHOD, AUTHORITY, ("X", "y")],
        &[METHOD, AUTHORITY, ("x y", "y")],
        &[METHOD, AUTHORITY, ("x:y", "y")],
        &[METHOD, AUTHORITY, ("x\0", "y")],
        &[METHOD, AUTHORITY, ("\u{fc}", "y")],
        &[METHOD, AUTHORITY, ("x\u{7f}", "y")],
        &[METHOD, AUTHORITY, ("x", "\0")],
        &[METHOD, AUTHORITY, ("x", "a\r\nb")],
        &[METHOD, AUTHORITY, ("x", "a\nb")],
        &[METHOD, AUTHORITY, ("x", "\u{7f}")],
        &[METHOD, AUTHORITY, ("x", " y")],
        &[METHOD, AUTHORITY, ("x", "y\t")],
        &[METHOD, AUTHORITY, ("x", " ")],
        &[METHOD, AUTHORITY, ("connection", "close")],
        &[METHOD, AUTHORITY, ("proxy-connection", "keep-alive")],
        &[METHOD, AUTHORITY, ("keep-alive", "1")],
        &[METHOD, AUTHORITY, ("transfer-encoding", "chunked")],
        &[METHOD, AUTHORITY, ("upgrade", "websocket")],
        &[METHOD, AUTHORITY, ("te", "gzip")],
        &[METHOD, AUTHORITY, ("te", "trailers, gzip")],
        &[(":method", ""), AUTHORITY],
        &[(":method", "CON NECT"), AUTHORITY],
        &[(":method", "GET")],
        &[(":method", "GET"), (":scheme", "https")],
        &[(":method", "GET"), (":scheme", "https"), (":path", "")],
        &[(":method", "GET"), (":path", "/"), (":path", "/")],
        // Malformed wins over what would only be refused.
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/"),
            ("X", "y"),
        ],
        &[METHOD, (":authority", "nonsense"), ("upgrade", "x")],
    ];
    for fields in rows {
        let got = read_request(fields);
        assert!(
            matches!(got, Err(HeadError::Malformed(_))),
            "{fields:?}: {got:?}"
        );
    }
}

#[test]
fn refused_requests() {
    let get = &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        ("x", "y"),
    ][..];
    let (twice, not_text) = (InvalidConnect::Twice, InvalidConnect::NotText);
    let forwarded = ("forwarded", "for=10.1.2.3");
    let trace = (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    );
    let source = ("x-istio-source", "waypoint");
    let rows: &[(&[(&str, &str)], InvalidConnect)] = &[
        (get, InvalidConnect::Method(Method::GET)),
        (&[METHOD, (":authority", "")], InvalidTarget::Port.into()),
        (
            &[METHOD, (":authority", "shop")],
            InvalidTarget::Port.into(),
        ),
        (
            &[METHOD, (":authority", "u@shop:80"), ("host", "x")],
            InvalidTarget::Host.into(),
        ),
        (
            &[METHOD, AUTHORITY, forwarded, forwarded],
            twice("forwarded"),
        ),
        (&[METHOD, AUTHORITY, trace, trace], twice("traceparent")),
        (
            &[METHOD, AUTHORITY, source, ("x-istio-source", "x")],
            twice("x-istio-source"),
        ),
        (
            &[METHOD, AUTHORITY, ("forwarded", "\u{fc}")],
            not_text("forwarded"),
        ),
        (
            &[METHOD, AUTHORITY, ("baggage", "a=\u{fc}")],
            not_text("baggage"),
        ),
        (
            &[METHOD, AUTHORITY, ("traceparent", "\u{fc}")],
            not_text("traceparent"),
        ),
        (
            &[METHOD, AUTHORITY, ("x-istio-source", "\u{fc}")],
            not_text("x-istio-source"),
        ),
        (
            &[METHOD, AUTHORITY, ("forwarded", "")],
            InvalidForwarded::NoClient.into(),
        ),
        (
            &[METHOD, AUTHORITY, ("traceparent", "x")],
            InvalidTraceParent.into(),
        ),
        (
            &[METHOD, AUTHORITY, ("baggage", "x")],
            InvalidBaggage::Member.into(),
        ),
        // All baggage together has one bound.
        (
            &[
                METHOD,
                AUTHORITY,
                ("baggage", &"a=b,".repeat(64)),
                ("baggage", "a=b"),
            ],
            InvalidBaggage::TooLong.into(),
        ),
        (
            &[
                METHOD,
                AUTHORITY,
                ("baggage", &"a".repeat(5000)),
                ("baggage", &"a".repeat(5000)),
            ],
            InvalidBaggage::Member.into(),
        ),
    ];
    for (fields, why) in rows {
        let got = read_request(fields);
        assert_eq!(got, Err(HeadError::Refused(why.clone())), "{fields:?}");
    }
}

#[test]
fn an_unknown_source_is_none() {
    let rows = [
        ("waypoint", Some(SourceKind::Waypoint)),
        ("Waypoint", None),
        ("x", None),
    ];
    for (word, kind) in rows {
        let got = read_request(&[METHOD, AUTHORITY, ("x-istio-source", word)]);
        assert_eq!(got.map(|r| r.source), Ok(kind));
    }
}

#[test]
fn answers() {
    let opened = |fields: &[_]| match read_response(fields) {
        Ok(Answer::Opened(response)) => response.baggage.region,
        other => panic!("{fields:?}: {other:?}"),
    };
    assert_eq!(opened(&[(":status", "200")]), None);
    assert_eq!(
        opened(&[(":status", "204"), ("server", "istio-envoy")]),
        None
    );
    let baggage = ("baggage", "cloud.region=r");
    assert_eq!(opened(&[(":status", "200"), baggage]).as_deref(), Some("r"));
    for status in ["100", "103", "199"] {
        assert_eq!(read_response(&[(":status", status)]), Ok(Answer::Interim));
    }

    let rows: &[(&[Field], u16, &str, &str)] = &[
        (
            &[(":status", "503")],
            503,
            "http_503",
            "the peer answered 503 Service Unavailable without a reason",
        ),
        (
            &[
                (":status", "403"),
                ("baggage", "nonsense"),
                ("x-ambit-refusal", "no_policy"),
                ("x-ambit-reason", "a%0ab%25c"),
            ],
            403,
            "no_policy",
            "ab%c",
        ),
        (
            &[
                (":status", "302"),
                ("x-ambit-refusal", "No!"),
                ("x-ambit-reason", "why"),
            ],
            302,
            "http_302",
            "why",
        ),
    ];
    for (fields, status, code, reason) in rows {
        let status = StatusCode::from_u16(*status).unwrap();
        let want = Refusal::new(status, (*code).to_owned(), *reason);
        assert_eq!(read_response(fields), Ok(Answer::Refused(want)));
    }
}

#[test]
fn malformed_answers() {
    let status = (":status", "200");
    let rows: &[&[(&str, &str)]] = &[
        &[],
        &[("server", "x")],
        &[status, status],
        &[("server", "x"), status],
        &[(":status", "")],
        &[(":status", "20")],
        &[(":status", "2000")],
        &[(":status", "099")],
        &[(":status", "+20")],
        &[(":status", "101")],
        &[status, METHOD],
        &[status, ("Server", "x")],
        &[status, ("connection", "close")],
        &[status, ("te", "trailers")],
        &[status, ("server", "x\0")],
    ];
    for fields in rows {
        let got = read_response(fields);
        assert!(
            matches!(got, Err(HeadError::Malformed(_))),
            "{fields:?}: {got:?}"
        );
    }
    let got = read_response(&[status, ("baggage", "nonsense")]);
    assert_eq!(got, Err(HeadError::Refused(InvalidBaggage::Member.into())));
}

#[test]
fn trailers_are_only_checked() {
    let read = |fields: &[_]| trailers(&mut Decoder::new(), &block(fields));
    assert_eq!(read(&[]), Ok(()));
    assert_eq!(read(&[("grpc-status", "0"), ("host", "x")]), Ok(()));
    for field in [
        (":status", "200"),
        ("X", "y"),
        ("te", "trailers"),
        ("upgrade", "x"),
    ] {
        assert!(
            matches!(read(&[field]), Err(HeadError::Malformed(_))),
            "{field:?}"
        );
    }
}

#[test]
fn large_lists() {
    let fields = |count: usize| {
        let mut fields = vec![METHOD, AUTHORITY];
        fields.resize(count, ("x", "y"));
        read_request(&fields)
    };
    assert!(fields(MAX_FIELDS).is_ok());
    assert_eq!(fields(MAX_FIELDS + 1), Err(HeadError::TooLarge));

    let used = ":methodCONNECT:authority10.1.2.3:80x".len() + 3 * FIELD_OVERHEAD;
    let value = "y".repeat(MAX_HEADER_LIST as usize - used);
    assert!(read_request(&[METHOD, AUTHORITY, ("x", &value)]).is_ok());
    let value = value + "y";
    let long = [METHOD, AUTHORITY, ("x", &value)];
    assert_eq!(read_request(&long), Err(HeadError::TooLarge));
    // It wins over what is malformed, wherever that stands.
    let long = [METHOD, AUTHORITY, ("X", ""), ("x", &value), ("X", "")];
    assert_eq!(read_request(&long), Err(HeadError::TooLarge));
    assert_eq!(read_response(&long), Err(HeadError::TooLarge));
    assert_eq!(
        trailers(&mut Decoder::new(), &block(&long)),
        Err(HeadError::TooLarge)
    );
}

/// 16 KiB that stand for 48 MB: no memory, and the table is as the peer thinks it is.
#[test]
fn a_bomb_is_only_large() {
    let mut decoder = Decoder::new();
    let mut bomb = Vec::new();
    let value = "y".repeat(4040);
    put(&mut bomb, true, b"bomb", value.as_bytes());
    bomb.resize(16 << 10, 0xbe);
    put(&mut bomb, true, b"host", b"10.1.2.3:80");
    // The last one has driven out the first.
    assert_eq!(request(&mut decoder, &bomb), Err(HeadError::TooLarge));
    let mut next = block(&[METHOD, AUTHORITY]);
    next.push(0xbe);
    assert!(request(&mut decoder, &next).is_ok());
    let beyond = [0xbf];
    let broken = request(&mut decoder, &beyond).map_err(|e| match e {
        HeadError::Broken(broken) => Some(broken.code),
        _ => None,
    });
    assert_eq!(broken, Err(Some(Code::COMPRESSION_ERROR)));
}

#[test]
fn what_is_broken_wins() {
    let mut block = block(&[("X", ""), (":authority", "x")]);
    block.push(0x80);
    let got = request(&mut Decoder::new(), &block);
    assert!(matches!(got, Err(HeadError::Broken(_))), "{got:?}");
}

proptest! {
    #[test]
    fn any_block_is_a_head_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let _ = request(&mut Decoder::new(), &bytes);
        let _ = response(&mut Decoder::new(), &bytes);
        let _ = trailers(&mut Decoder::new(), &bytes);
    }

    #[test]
    fn any_fields_are_a_head_or_an_error(
        fields in vec((
            "(:(method|authority|path|status)|host|te|forwarded|baggage|traceparent|x-istio-source|[a-z]{0,3})",
            "(CONNECT|GET|200|10.1.2.3:80|for=10.1.2.3|a=b|.{0,8})",
        ), 0..6),
    ) {
        let fields: Vec<_> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        let _ = read_request(&fields);
        let _ = read_response(&fields);
    }
}
