//! Routes are decoded whole or refused with a reason.

#[path = "support/routes.rs"]
mod routes;

use mesh::proto::waypoint as wire;
use mesh::route::Route;

use routes::{path_prefix, route, value};

fn refusal(route: wire::Route) -> String {
    Route::try_from(route).expect_err("refused").to_string()
}

/// What is said to a route with this rule beside a good one.
fn with(rule: wire::Rule) -> String {
    refusal(route("bad", 1, vec![wire::Rule::default(), rule]))
}

fn with_match(one: wire::Match) -> String {
    with(wire::Rule {
        matches: vec![one],
        ..Default::default()
    })
}

fn with_filter(kind: wire::filter::Kind) -> String {
    with(wire::Rule {
        filters: vec![wire::Filter { kind: Some(kind) }],
        ..Default::default()
    })
}

fn with_redirect(redirect: wire::Redirect) -> String {
    with_filter(wire::filter::Kind::Redirect(redirect))
}

fn with_backend(to: Option<wire::backend::To>) -> String {
    let backend = wire::Backend {
        to,
        ..Default::default()
    };
    with(wire::Rule {
        backends: vec![backend],
        ..Default::default()
    })
}

/// Each is refused, and what is said has this in it.
fn say(cases: impl IntoIterator<Item = (String, &'static str)>) {
    for (said, part) in cases {
        assert!(said.contains(part), "{said:?} should say {part:?}");
    }
}

#[test]
fn a_route_without_a_name_is_refused() {
    let nameless = wire::Route {
        name: String::new(),
        ..route("x", 1, vec![])
    };
    say([(refusal(nameless), "name is missing")]);
}

#[test]
fn matches_that_cannot_be_kept_are_refused() {
    let of_path = |path| wire::Match {
        path,
        ..Default::default()
    };
    let of_header = |header| wire::Match {
        headers: vec![header],
        ..Default::default()
    };
    let kindless = wire::ValueMatch {
        name: "a".into(),
        kind: None,
    };
    let method = wire::Match {
        method: "G T".into(),
        ..Default::default()
    };
    let many = wire::Rule {
        matches: vec![wire::Match::default(); 129],
        ..Default::default()
    };
    say([
        (
            with_match(of_path(Some(wire::PathMatch { kind: None }))),
            "path match",
        ),
        (with_match(of_path(path_prefix("a"))), "slash"),
        (with_match(method), "method"),
        (with_match(of_header(value("a b", ""))), "header name"),
        (with_match(of_header(kindless)), "kind of a header match"),
        (with(many), "too many matches: 129"),
    ]);
}

#[test]
fn filters_that_cannot_be_kept_are_refused() {
    let kindless = wire::Rule {
        filters: vec![wire::Filter { kind: None }],
        ..Default::default()
    };
    let redirect = wire::Redirect::default;
    let length = wire::HeaderModifier {
        remove: vec!["Content-Length".into()],
        ..Default::default()
    };
    say([
        (with(kindless), "kind of a filter"),
        (
            with_redirect(wire::Redirect {
                status: 200,
                ..redirect()
            }),
            "status of a redirect",
        ),
        (
            with_redirect(wire::Redirect {
                scheme: "ftp".into(),
                ..redirect()
            }),
            "scheme",
        ),
        (
            with_redirect(wire::Redirect {
                hostname: "a:1".into(),
                ..redirect()
            }),
            "hostname",
        ),
        (
            with_filter(wire::filter::Kind::ResponseHeaders(length)),
            "frames the message",
        ),
    ]);
}

#[test]
fn backends_that_cannot_be_kept_are_refused() {
    let harmless = wire::Invalid {
        status: 200,
        reason: String::new(),
    };
    let service = wire::ServicePort {
        namespace: "a".into(),
        hostname: "b".into(),
        port: 65536,
    };
    say([
        (with_backend(None), "target of a backend"),
        (
            with_backend(Some(wire::backend::To::Invalid(harmless))),
            "not an error",
        ),
        (
            with_backend(Some(wire::backend::To::Service(service))),
            "port",
        ),
    ]);
}
