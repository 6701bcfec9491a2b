//! What a tunnel says about its client counts as far as it is proved.

mod support;

use mesh::proto::workload as words;
use mesh::proto::workload::AppProtocol;
use mesh::xds::ADDRESS_TYPE;
use support::app::{self, Client};
use support::{CLIENT, CLIENT_ADDR, Mesh, PEER, WAYPOINT, hostname, local, uid};

const WEB: &str = "10.96.0.1:80";
const OTHER: &str = "192.0.2.9:1234";

/// One request in a tunnel of `id` that says `client`: its line in the log, and what the endpoint took for the client.
async fn asks(mesh: &Mesh, id: &str, client: &str, path: &str) -> (String, String) {
    let pool = mesh.pool(id);
    let opened = mesh.open_as(&pool, WEB, client).await.expect("a tunnel");
    let answer = Client::h1_in(opened).await.get(path, &[]).await;
    let seen = answer.header("got-x-forwarded-for").expect("an address");
    let seen = seen.to_owned();
    (mesh.logged(&["\"target\":\"access\"", path]).await, seen)
}

/// A pod at the address of all connections that says it speaks the tunnel itself.
fn native(mesh: &Mesh, account: &str, service: &str) {
    let name = format!("shop/{}", hostname(service));
    let workload = words::Workload {
        uid: uid("client-1"),
        name: "client-1".into(),
        namespace: "shop".into(),
        addresses: vec![vec![127, 0, 0, 1].into()],
        service_account: account.into(),
        native_tunnel: true,
        services: [(name, words::PortList::default())].into(),
        ..Default::default()
    };
    let address = words::Address {
        r#type: Some(words::address::Type::Workload(workload)),
    };
    mesh.tell(ADDRESS_TYPE, &uid("client-1"), &address);
}

#[test]
fn another_address_than_the_clients_own_does_not_count() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let tunnels = app::pod(&mesh, 10, "v1").await;
        let (line, seen) = asks(&mesh, CLIENT, OTHER, "/foreign").await;
        assert!(line.contains("\"src.addr\":\"127.0.0.1:"), "{line}");
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
        assert_eq!(seen, PEER.to_string());
        let said = tunnels.borrow()[0].forwarded.clone().expect("the client");
        assert_eq!(said.client.ip(), PEER);

        // A second address of the same pod is its own.
        let (line, seen) = asks(&mesh, CLIENT, CLIENT_ADDR, "/own").await;
        assert!(line.contains(CLIENT_ADDR), "{line}");
        assert_eq!(seen, "10.1.0.7");
        // As is the connection's with the application's port, whether or not anything is known of the pod.
        mesh.forget(ADDRESS_TYPE, &uid("client-1"));
        let (line, _) = asks(&mesh, CLIENT, "127.0.0.1:1234", "/port").await;
        assert!(line.contains("\"src.addr\":\"127.0.0.1:1234\""), "{line}");
    });
}

#[test]
fn a_pod_of_this_gateway_speaks_for_others_and_nobody_who_only_says_that_he_is_a_proxy() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let denied = [
            ("client", CLIENT, "web", "/native"),
            // The account alone, and the service alone.
            ("waypoint", WAYPOINT, "web", "/account"),
            ("waypoint", CLIENT, "waypoint", "/place"),
        ];
        for (account, id, service, path) in denied {
            native(&mesh, account, service);
            let (line, seen) = asks(&mesh, id, OTHER, path).await;
            assert!(!line.contains(OTHER), "{path}: {line}");
            assert_eq!(seen, PEER.to_string(), "{path}");
        }
        native(&mesh, "waypoint", "waypoint");
        let (line, seen) = asks(&mesh, WAYPOINT, OTHER, "/relayed").await;
        assert!(line.contains(OTHER) && line.contains(WAYPOINT), "{line}");
        assert_eq!(seen, "192.0.2.9");
    });
}

#[test]
fn a_client_that_says_another_address_each_time_shares_its_connections_all_the_same() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        let tunnels = app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        for number in 1..=5 {
            let client = format!("192.0.2.{number}:1234");
            let opened = mesh.open_as(&pool, WEB, &client).await.expect("a tunnel");
            let mut client = Client::h1_in(opened).await;
            assert_eq!(client.get("/", &[]).await.body, "v1");
        }
        assert_eq!(tunnels.borrow().len(), 1);
    });
}
