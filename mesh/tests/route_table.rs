//! Routes: decoded whole or refused, matched with the API's precedence, split by weight.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh::proto::waypoint as wire;
use mesh::route::{BackendTo, Facts, Filter, HeaderModifier, PathModifier, Route, RouteTable};

fn path_exact(path: &str) -> Option<wire::PathMatch> {
    Some(wire::PathMatch {
        kind: Some(wire::path_match::Kind::Exact(path.into())),
    })
}

fn path_prefix(path: &str) -> Option<wire::PathMatch> {
    Some(wire::PathMatch {
        kind: Some(wire::path_match::Kind::Prefix(path.into())),
    })
}

fn value(name: &str, value: &str) -> wire::ValueMatch {
    wire::ValueMatch {
        name: name.into(),
        kind: Some(wire::value_match::Kind::Exact(value.into())),
    }
}

fn rule(name: &str, matches: Vec<wire::Match>) -> wire::Rule {
    wire::Rule {
        name: name.into(),
        matches,
        ..wire::Rule::default()
    }
}

fn route(name: &str, created: i64, rules: Vec<wire::Rule>) -> wire::Route {
    wire::Route {
        namespace: "shop".into(),
        name: name.into(),
        created,
        parents: vec![wire::Parent {
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            port: 0,
        }],
        rules,
    }
}

fn decode(route: wire::Route) -> Arc<Route> {
    Arc::new(Route::try_from(route).expect("a valid route"))
}

fn refusal(route: wire::Route) -> String {
    Route::try_from(route).expect_err("refused").to_string()
}

/// The name of the rule that `METHOD path?query` with headers meets.
fn met(table: &RouteTable, request: &str, headers: &[(&str, &str)]) -> Option<String> {
    let (method, target) = request.split_once(' ').expect("a method and a path");
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        })
        .fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        });
    let method: Method = method.parse().expect("a method");
    let facts = Facts {
        method: &method,
        path,
        query,
        headers: &headers,
    };
    table
        .find(&facts)
        .map(|found| found.rule.name.as_deref().unwrap_or("-").to_owned())
}

/// Request, headers, and the rule that it meets.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

#[test]
fn the_most_specific_match_wins() {
    let route = decode(route(
        "one",
        1,
        vec![
            rule("any", vec![]),
            rule(
                "short",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    ..Default::default()
                }],
            ),
            rule(
                "long",
                vec![wire::Match {
                    path: path_prefix("/a/b/"),
                    ..Default::default()
                }],
            ),
            rule(
                "exact",
                vec![wire::Match {
                    path: path_exact("/a/b"),
                    ..Default::default()
                }],
            ),
            rule(
                "method",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    method: "POST".into(),
                    ..Default::default()
                }],
            ),
            rule(
                "headers2",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    headers: vec![value("x", "1"), value("y", "2")],
                    ..Default::default()
                }],
            ),
            rule(
                "headers1",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    headers: vec![value("x", "1")],
                    query: vec![value("q", "1"), value("r", "1")],
                    ..Default::default()
                }],
            ),
            rule(
                "query1",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    query: vec![value("q", "1")],
                    ..Default::default()
                }],
            ),
            rule(
                "query2",
                vec![wire::Match {
                    path: path_prefix("/a"),
                    query: vec![value("q", "1"), value("r", "1")],
                    ..Default::default()
                }],
            ),
        ],
    ));
    let table = RouteTable::new([&route]);
    let cases: &[Case] = &[
        ("GET /", &[], "any"),
        ("GET /ab", &[], "any"),
        ("GET /A", &[], "any"),
        ("GET /a", &[], "short"),
        ("GET /a/", &[], "short"),
        ("GET /a/b", &[], "exact"),
        ("POST /a/b", &[("x", "1")], "exact"),
        ("GET /a/b/", &[], "long"),
        ("GET /a/b/c", &[("x", "1"), ("y", "2")], "long"),
        ("POST /a/c", &[("x", "1"), ("y", "2")], "method"),
        ("GET /a", &[("X", "1"), ("Y", "2")], "headers2"),
        ("GET /a?q=1&r=1", &[("x", "1")], "headers1"),
        ("GET /a?q=1", &[("x", "1")], "query1"),
        ("GET /a?q=1", &[], "query1"),
        ("GET /a?q=1&q=2&r=1", &[], "query2"),
        ("GET /a?q=2&q=1", &[], "short"),
        ("GET /a?Q=1", &[], "short"),
        ("GET /a?q=%31", &[], "query1"),
    ];
    for (request, headers, expected) in cases {
        assert_eq!(
            met(&table, request, headers).as_deref(),
            Some(*expected),
            "{request} {headers:?}"
        );
    }
}

#[test]
fn ties_go_to_the_oldest_then_the_name_then_the_first_rule() {
    let same = |name: &str| {
        vec![
            rule(&format!("{name}-0"), vec![]),
            rule(&format!("{name}-1"), vec![]),
        ]
    };
    let old = decode(route("z", 1, same("old")));
    let first = decode(route("b", 2, same("first")));
    let second = decode(route("c", 2, same("second")));
    assert_eq!(
        met(&RouteTable::new([&second, &first, &old]), "GET /", &[]).as_deref(),
        Some("old-0")
    );
    assert_eq!(
        met(&RouteTable::new([&second, &first]), "GET /", &[]).as_deref(),
        Some("first-0")
    );
}

#[test]
fn matches_are_alternatives_and_none_is_found_where_none_accepts() {
    let route = decode(route(
        "one",
        1,
        vec![rule(
            "r",
            vec![
                wire::Match {
                    path: path_exact("/x"),
                    ..Default::default()
                },
                wire::Match {
                    headers: vec![value("k", "v"), value("K", "other")],
                    ..Default::default()
                },
            ],
        )],
    ));
    let table = RouteTable::new([&route, &route]);
    assert_eq!(met(&table, "GET /x", &[]).as_deref(), Some("r"));
    // Of entries with one name the first counts; several lines are one value.
    assert_eq!(met(&table, "GET /y", &[("k", "v")]).as_deref(), Some("r"));
    assert_eq!(met(&table, "GET /y", &[("k", "v"), ("k", "w")]), None);
    assert_eq!(met(&table, "GET /y", &[]), None);
    assert_eq!(met(&RouteTable::new([]), "GET /", &[]), None);
}

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
    let route = decode(route(
        "one",
        1,
        vec![wire::Rule {
            backends,
            ..Default::default()
        }],
    ));
    let mut counts = [0; 6];
    for roll in 0..100 {
        let chosen = route.rules()[0].choose(|sum| {
            assert_eq!(sum, 100);
            roll
        });
        let Some(BackendTo::Service { port, .. }) = chosen.map(|(_, backend)| &backend.to) else {
            panic!("a service")
        };
        counts[usize::from(*port)] += 1;
    }
    assert_eq!(counts, [0, 0, 90, 0, 10, 0]);
    let none = decode(self::route(
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

#[test]
fn what_cannot_be_kept_is_refused_whole() {
    let with = |change: fn(&mut wire::Rule)| {
        let mut rule = wire::Rule::default();
        change(&mut rule);
        refusal(route("bad", 1, vec![wire::Rule::default(), rule]))
    };
    let cases: Vec<(String, &str)> = vec![
        (
            refusal(wire::Route {
                name: String::new(),
                ..route("x", 1, vec![])
            }),
            "name is missing",
        ),
        (
            with(|r| {
                r.matches = vec![wire::Match {
                    path: Some(wire::PathMatch { kind: None }),
                    ..Default::default()
                }];
            }),
            "path match",
        ),
        (
            with(|r| {
                r.matches = vec![wire::Match {
                    path: path_prefix("a"),
                    ..Default::default()
                }];
            }),
            "slash",
        ),
        (
            with(|r| {
                r.matches = vec![wire::Match {
                    method: "G T".into(),
                    ..Default::default()
                }];
            }),
            "method",
        ),
        (
            with(|r| {
                r.matches = vec![wire::Match {
                    headers: vec![value("a b", "")],
                    ..Default::default()
                }];
            }),
            "header name",
        ),
        (
            with(|r| {
                r.matches = vec![wire::Match {
                    headers: vec![wire::ValueMatch {
                        name: "a".into(),
                        kind: None,
                    }],
                    ..Default::default()
                }];
            }),
            "kind of a header match",
        ),
        (
            with(|r| r.matches = vec![wire::Match::default(); 129]),
            "too many matches: 129",
        ),
        (
            with(|r| r.filters = vec![wire::Filter { kind: None }]),
            "kind of a filter",
        ),
        (
            with(|r| {
                r.filters = vec![wire::Filter {
                    kind: Some(wire::filter::Kind::Redirect(wire::Redirect {
                        status: 200,
                        ..Default::default()
                    })),
                }];
            }),
            "status of a redirect",
        ),
        (
            with(|r| {
                r.filters = vec![wire::Filter {
                    kind: Some(wire::filter::Kind::Redirect(wire::Redirect {
                        scheme: "ftp".into(),
                        ..Default::default()
                    })),
                }];
            }),
            "scheme",
        ),
        (
            with(|r| {
                r.filters = vec![wire::Filter {
                    kind: Some(wire::filter::Kind::Redirect(wire::Redirect {
                        hostname: "a:1".into(),
                        ..Default::default()
                    })),
                }];
            }),
            "hostname",
        ),
        (
            with(|r| {
                r.filters = vec![wire::Filter {
                    kind: Some(wire::filter::Kind::ResponseHeaders(wire::HeaderModifier {
                        remove: vec!["Content-Length".into()],
                        ..Default::default()
                    })),
                }];
            }),
            "frames the message",
        ),
        (
            with(|r| r.backends = vec![wire::Backend::default()]),
            "target of a backend",
        ),
        (
            with(|r| {
                r.backends = vec![wire::Backend {
                    to: Some(wire::backend::To::Invalid(wire::Invalid {
                        status: 200,
                        reason: String::new(),
                    })),
                    ..Default::default()
                }];
            }),
            "not an error",
        ),
        (
            with(|r| {
                r.backends = vec![wire::Backend {
                    to: Some(wire::backend::To::Service(wire::ServicePort {
                        namespace: "a".into(),
                        hostname: "b".into(),
                        port: 65536,
                    })),
                    ..Default::default()
                }];
            }),
            "port",
        ),
    ];
    for (said, part) in cases {
        assert!(said.contains(part), "{said:?} should say {part:?}");
    }
}
