//! Routes take effect and change live; answers of the waypoint's own.

mod support;

use std::collections::BTreeMap;

use hyper::StatusCode;
use mesh::proto::waypoint as wire;
use mesh::proto::workload::AppProtocol;
use support::app::{self, Client};
use support::{CLIENT, Mesh, Pod, Service, backend, local, rule};

const WEB: &str = "10.96.0.1:80";

fn header(name: &str, value: &str) -> wire::Header {
    wire::Header {
        name: name.into(),
        value: value.into(),
    }
}

fn filter(kind: wire::filter::Kind) -> wire::Filter {
    wire::Filter { kind: Some(kind) }
}

/// Services v1 and v2 with a pod each, and `web` in front.
async fn two_versions() -> Mesh {
    let mesh = Mesh::start().await;
    mesh.web(AppProtocol::Http11, &[]);
    for (host, name) in [(10, "v1"), (11, "v2")] {
        let vip = format!("10.96.1.{host}");
        mesh.service(&Service {
            name,
            vip: &vip,
            ports: &[(80, AppProtocol::Unknown)],
            bound: false,
        });
        let ip = mesh.ip(host);
        let services = &["web", name][..];
        mesh.pod(&Pod {
            name,
            account: name,
            ip,
            services,
            meshed: true,
            healthy: true,
            bound: false,
        });
        app::pod(&mesh, host, name).await;
    }
    mesh
}

#[test]
fn a_route_takes_effect_changes_and_goes_on_one_connection() {
    local(async {
        let mesh = two_versions().await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        // Without a route: the service itself.
        assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
        mesh.route("r", vec![rule("/", vec![backend("v1", 1)])]);
        assert_eq!(client.get("/", &[]).await.body, "v1");
        let mut beta = rule("/", vec![backend("v2", 1)]);
        beta.matches[0].headers = vec![wire::ValueMatch {
            name: "x-user".into(),
            kind: Some(wire::value_match::Kind::Exact("beta".into())),
        }];
        mesh.route("r", vec![rule("/", vec![backend("v1", 1)]), beta]);
        assert_eq!(client.get("/", &[("x-user", "beta")]).await.body, "v2");
        assert_eq!(client.get("/", &[("x-user", "alpha")]).await.body, "v1");
        // Attached and none matches: 404, never the service itself.
        mesh.route("r", vec![rule("/only", vec![backend("v1", 1)])]);
        let answer = client.get("/other", &[]).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (StatusCode::NOT_FOUND, Some("text/plain; charset=utf-8"))
        );
        mesh.logged(&[
            "\"target\":\"access\"",
            "\"status\":404",
            "\"response_flags\":\"NR\"",
        ])
        .await;
        mesh.unroute("r");
        assert_eq!(client.get("/other", &[]).await.status, StatusCode::OK);
    });
}

#[test]
fn weights_split_the_requests() {
    local(async {
        let mesh = two_versions().await;
        mesh.route(
            "r",
            vec![rule(
                "/",
                vec![backend("v1", 9), backend("v2", 1), backend("none", 0)],
            )],
        );
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..500 {
            *counts.entry(client.get("/", &[]).await.body).or_default() += 1;
        }
        // Of 500, 50 ± 5 sigma (6.7 each).
        assert!(
            counts["v2"].abs_diff(50) <= 34 && counts["v1"] + counts["v2"] == 500,
            "{counts:?}"
        );
    });
}

#[test]
fn filters_of_the_rule_and_of_the_chosen_backend_change_heads() {
    local(async {
        let mesh = two_versions().await;
        let mut backend = backend("v1", 1);
        backend.filters = vec![filter(wire::filter::Kind::RequestHeaders(
            wire::HeaderModifier {
                set: vec![header("x-backend", "v1")],
                add: vec![header("x-added", "two")],
                ..Default::default()
            },
        ))];
        let mut changed = rule("/", vec![backend]);
        changed.filters = vec![
            filter(wire::filter::Kind::RequestHeaders(wire::HeaderModifier {
                set: vec![header("X-Set", "new")],
                remove: vec!["x-gone".into()],
                ..Default::default()
            })),
            filter(wire::filter::Kind::ResponseHeaders(wire::HeaderModifier {
                add: vec![header("x-answer", "yes")],
                remove: vec!["x-line".into()],
                ..Default::default()
            })),
        ];
        mesh.route("r", vec![changed]);
        let pool = mesh.pool(CLIENT);
        for mut client in [
            Client::h1(&mesh, &pool, WEB).await,
            Client::h2(&mesh, &pool, WEB).await,
        ] {
            let sent = [("x-set", "old"), ("x-gone", "1"), ("x-added", "one")];
            let answer = client.get("/", &sent).await;
            assert_eq!(answer.header("got-x-set"), Some("new"));
            assert_eq!(answer.header("got-x-gone"), None);
            assert_eq!(answer.header("got-x-added"), Some("one,two"));
            assert_eq!(answer.header("got-x-backend"), Some("v1"));
            assert_eq!(answer.header("x-answer"), Some("yes"));
            assert_eq!(answer.header("x-line"), None);
        }
    });
}

#[test]
fn a_redirect_is_answered_here() {
    local(async {
        let mesh = two_versions().await;
        let mut away = rule("/old", vec![]);
        away.filters = vec![filter(wire::filter::Kind::Redirect(wire::Redirect {
            hostname: "example.org".into(),
            path: Some(wire::redirect::Path::Prefix("/new".into())),
            status: 301,
            ..Default::default()
        }))];
        mesh.route("r", vec![away]);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let answer = client.get("/old/page?q=1", &[]).await;
        assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(
            answer.header("location"),
            Some("http://example.org/new/page?q=1")
        );
    });
}

#[test]
fn broken_backends_get_their_share_of_errors() {
    local(async {
        let mesh = two_versions().await;
        let invalid = |weight| wire::Backend {
            weight,
            to: Some(wire::backend::To::Invalid(wire::Invalid {
                status: 500,
                reason: "no such service".into(),
            })),
            filters: vec![],
        };
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        mesh.route("r", vec![rule("/", vec![invalid(1), backend("v1", 0)])]);
        let answer = client.get("/", &[]).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer.body.contains("no such service"), "{}", answer.body);
        mesh.route("r", vec![rule("/", vec![])]);
        assert_eq!(
            client.get("/", &[]).await.status,
            StatusCode::INTERNAL_SERVER_ERROR
        );
        mesh.route("r", vec![rule("/", vec![backend("v1", 1), invalid(0)])]);
        assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
        mesh.route("r", vec![rule("/", vec![backend("v1", 1), invalid(1)])]);
        let mut failed = 0;
        for _ in 0..200 {
            failed += u32::from(client.get("/", &[]).await.status.is_server_error());
        }
        assert!((60..140).contains(&failed), "{failed} of 200");
    });
}

#[test]
fn without_an_endpoint_the_answer_is_503() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &[]);
        let ip = mesh.ip(10);
        let sick = Pod {
            name: "sick",
            account: "sick",
            ip,
            services: &["web"],
            meshed: true,
            healthy: false,
            bound: false,
        };
        mesh.pod(&sick);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(
            client.get("/", &[]).await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        mesh.logged(&["\"target\":\"access\"", "\"response_flags\":\"UH\""])
            .await;
        // Healthy, but nobody listens.
        mesh.pod(&Pod {
            healthy: true,
            bound: false,
            ..sick
        });
        let answer = client.get("/", &[]).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body.contains("dial_failed"), "{}", answer.body);
        mesh.logged(&["\"target\":\"access\"", "\"response_flags\":\"UF\""])
            .await;
    });
}

#[test]
fn a_dead_endpoint_costs_no_request_while_another_lives() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["dead", "live"]);
        app::pod(&mesh, 11, "live").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        for _ in 0..20 {
            assert_eq!(client.get("/", &[]).await.body, "live");
        }
    });
}

#[test]
fn grpc_clients_get_grpc_answers() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Grpc, &[]);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let call = [("content-type", "application/grpc"), ("te", "trailers")];
        let unavailable = client.get("/a.B/c", &call).await;
        assert_eq!(
            (unavailable.status, unavailable.header("grpc-status")),
            (StatusCode::OK, Some("14"))
        );
        mesh.route("r", vec![rule("/only", vec![])]);
        let unimplemented = client.get("/a.B/c", &call).await;
        assert_eq!(
            (unimplemented.status, unimplemented.header("grpc-status")),
            (StatusCode::OK, Some("12"))
        );
        assert_eq!(
            unimplemented.header("content-type"),
            Some("application/grpc")
        );
        mesh.logged(&["\"grpc_status\":12", "\"protocol\":\"grpc\""])
            .await;
        assert!(mesh.metrics().contains("grpc_response_status=\"12\""));
    });
}
