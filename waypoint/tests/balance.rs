//! Which endpoint takes a request: near the client where the Service wants it, and none that has just failed.

mod support;

use hyper::StatusCode;
use mesh::proto::workload::load_balancing::{Mode, Scope};
use mesh::proto::workload::{self as words, AppProtocol};
use mesh::xds::ADDRESS_TYPE;
use support::app::{self, Client};
use support::{CLIENT, Mesh, Pod, hostname, local, uid};

const WEB: &str = "10.96.0.1:80";

/// A pod on a node, behind `web` at `ip(host)`; the client, where its connection comes from, if it has no host.
fn pod(mesh: &Mesh, name: &str, host: Option<u8>, node: &str) {
    let ip = match host {
        Some(host) => mesh.ip(host),
        None => std::net::Ipv4Addr::LOCALHOST.into(),
    };
    let port = words::Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    };
    let web = (
        format!("shop/{}", hostname("web")),
        words::PortList { ports: vec![port] },
    );
    let std::net::IpAddr::V4(v4) = ip else {
        panic!("{ip}")
    };
    let mut workload = words::Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.split('-').next().unwrap_or_default().into(),
        addresses: vec![v4.octets().to_vec().into()],
        node: node.into(),
        services: host.map(|_| web).into_iter().collect(),
        ..Default::default()
    };
    workload.set_tunnel_protocol(words::TunnelProtocol::Hbone);
    tell(mesh, &uid(name), words::address::Type::Workload(workload));
}

/// `web`, which stays on, or prefers, the client's node.
fn web(mesh: &Mesh, mode: Mode) {
    mesh.web(AppProtocol::Http11, &[]);
    let waypoint = words::gateway_address::Destination::Hostname(words::NamespacedHostname {
        namespace: "shop".into(),
        hostname: hostname("waypoint"),
    });
    let mut balancing = words::LoadBalancing {
        routing_preference: vec![Scope::Node.into()],
        ..Default::default()
    };
    balancing.set_mode(mode);
    let service = words::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: hostname("web"),
        addresses: vec![words::NetworkAddress {
            address: vec![10, 96, 0, 1],
            ..Default::default()
        }],
        ports: vec![words::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http11.into(),
        }],
        waypoint: Some(words::GatewayAddress {
            destination: Some(waypoint),
            hbone_mtls_port: 15008,
        }),
        load_balancing: Some(balancing),
        ..Default::default()
    };
    let name = format!("shop/{}", hostname("web"));
    tell(mesh, &name, words::address::Type::Service(service));
}

fn tell(mesh: &Mesh, name: &str, told: words::address::Type) {
    let address = words::Address { r#type: Some(told) };
    mesh.tell(ADDRESS_TYPE, name, &address);
}

#[test]
fn a_service_that_stays_on_its_clients_node_is_not_there_for_others() {
    local(async {
        let mesh = Mesh::start().await;
        pod(&mesh, "client-1", None, "n1");
        pod(&mesh, "v2", Some(11), "n2");
        app::pod(&mesh, 10, "v1").await;
        app::pod(&mesh, 11, "v2").await;
        web(&mesh, Mode::Strict);
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        let refused = client.get("/", &[]).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.body.contains("as near"), "{}", refused.body);
        web(&mesh, Mode::Failover);
        assert_eq!(client.get("/", &[]).await.body, "v2");
        pod(&mesh, "v1", Some(10), "n1");
        for mode in [Mode::Failover, Mode::Strict] {
            web(&mesh, mode);
            for _ in 0..20 {
                assert_eq!(client.get("/", &[]).await.body, "v1");
            }
        }
    });
}

#[test]
fn what_could_not_be_reached_is_not_tried_by_the_next_request() {
    local(async {
        let mesh = Mesh::start().await;
        // Nobody listens where v2 is said to be.
        mesh.web(AppProtocol::Http11, &["v1", "v2"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h1(&mesh, &pool, WEB).await;
        for _ in 0..60 {
            assert_eq!(client.get("/", &[]).await.body, "v1");
        }
        let lines = mesh.lines();
        let tried = lines.iter().filter(|l| l.contains("endpoint not reached"));
        // Once, or again after a second, and two, if all is that slow.
        let tried = tried.count();
        assert!(tried < 10, "{tried} of 60");
        // Who is there when nobody else is, is asked all the same.
        app::pod(&mesh, 11, "v2").await;
        mesh.forget(ADDRESS_TYPE, &uid("v1"));
        assert_eq!(client.get("/", &[]).await.body, "v2");
        // And has been reached: it is chosen like any other.
        mesh.pod(&Pod {
            name: "v1",
            account: "v1",
            ip: mesh.ip(10),
            services: &["web"],
            meshed: true,
            healthy: true,
            bound: false,
        });
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(client.get("/", &[]).await.body);
        }
        assert_eq!(seen.len(), 2);
    });
}
