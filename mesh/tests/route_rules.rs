//! What a rule does with a request: it splits by weight, and changes headers and paths.

#[path = "support/routes.rs"]
mod routes;

use http::{HeaderMap, HeaderValue};
use mesh::proto::waypoint as wire;
use mesh::route::{BackendTo, Filter, HeaderModifier, PathModifier};

use routes::{decode, route};

#[test]
fn weights_are_shares_and_zero_is_never() {
    let to = |weight, port| wire::Backend {
        weight,
        to: Some(wire::backend::To::Service(wire::ServicePort {
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            port,
        })),
        filters: vec![],
    };
    let backends = vec![to(0, 1), to(90, 2), to(0, 3), to(10, 4), to(0, 5)];
    let split = decode(route(
        "one",
        1,
        vec![wire::Rule {
            backends,
            ..Default::default()
        }],
    ));
    let mut counts = [0; 6];
    for roll in 0..100 {
        let chosen = split.rules()[0].choose(|sum| {
            assert_eq!(sum, 100);
            roll
        });
        let Some(BackendTo::Service { port, .. }) = chosen.map(|(_, backend)| &backend.to) else {
            panic!("a service")
        };
        counts[usize::from(*port)] += 1;
    }
    assert_eq!(counts, [0, 0, 90, 0, 10, 0]);
    let none = decode(route(
        "none",
        1,
        vec![wire::Rule {
            backends: vec![to(0, 1)],
            ..Default::default()
        }],
    ));
    assert!(
        none.rules()[0]
            .choose(|_| panic!("nothing to roll for"))
            .is_none()
    );
}

#[test]
fn headers_are_set_added_and_removed() {
    let change = |name: &str, value: &str| wire::Header {
        name: name.into(),
        value: value.into(),
    };
    let filter = wire::Filter {
        kind: Some(wire::filter::Kind::RequestHeaders(wire::HeaderModifier {
            set: vec![change("X-Set", "new")],
            add: vec![
                change("X-Add", "two"),
                change("x-fresh", "1"),
                change("set-cookie", "b=2"),
            ],
            remove: vec!["X-Gone".into()],
        })),
    };
    let route = decode(route(
        "one",
        1,
        vec![wire::Rule {
            filters: vec![filter],
            ..Default::default()
        }],
    ));
    let Filter::RequestHeaders(modifier) = &route.rules()[0].filters[0] else {
        panic!("a modifier")
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("x-set", "a"),
        ("x-set", "b"),
        ("x-add", "one"),
        ("x-gone", "1"),
        ("set-cookie", "a=1"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    HeaderModifier::apply(modifier, &mut headers);
    let all = |name: &str| {
        let values = headers.get_all(name).iter();
        values
            .map(|value| value.to_str().expect("text").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(all("x-set"), ["new"]);
    assert_eq!(all("x-add"), ["one,two"]);
    assert_eq!(all("x-fresh"), ["1"]);
    assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
    assert!(all("x-gone").is_empty());
}

#[test]
fn paths_are_replaced_by_elements() {
    // path, matched prefix, replacement, result: the table of the API's documentation
    let cases = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/a/b", "", "/xyz", "/xyz/a/b"),
    ];
    for (path, matched, new, expected) in cases {
        assert_eq!(
            PathModifier::Prefix(new.into()).apply(path, matched),
            expected,
            "{path} {matched} {new}"
        );
    }
    assert_eq!(
        PathModifier::Full("/all".into()).apply("/foo/bar", "/foo"),
        "/all"
    );
}
