//! Routes are matched with the API's precedence.

#[path = "support/routes.rs"]
mod routes;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh::proto::waypoint as wire;
use mesh::route::{RequestView, RouteTable};

use routes::{decode, path_exact, path_prefix, route, value};

fn rule(name: &str, matches: Vec<wire::Match>) -> wire::Rule {
    wire::Rule {
        name: name.into(),
        matches,
        ..wire::Rule::default()
    }
}

fn at(path: Option<wire::PathMatch>) -> wire::Match {
    wire::Match {
        path,
        ..Default::default()
    }
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
    let request = RequestView {
        method: &method,
        path,
        query,
        headers: &headers,
    };
    table
        .find(&request)
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
            rule("short", vec![at(path_prefix("/a"))]),
            rule("long", vec![at(path_prefix("/a/b/"))]),
            rule("exact", vec![at(path_exact("/a/b"))]),
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
                at(path_exact("/x")),
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
