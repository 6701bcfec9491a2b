//! How a client that the mesh's state does not name gets its name.

mod support;

use std::rc::Rc;

use mesh::proto::workload as words;
use mesh::proto::workload::AppProtocol;
use mesh::xds::ADDRESS_TYPE;
use support::app::{self, Client};
use support::{CLIENT, CLIENT_ADDR, Mesh, local, uid};

const WEB: &str = "10.96.0.1:80";
/// Where connections to a waypoint of the tests come from.
const PEER: [u8; 4] = [127, 0, 0, 1];
/// What their tunnels say: [`CLIENT_ADDR`].
const CLAIMED: [u8; 4] = [10, 1, 0, 7];

/// A pod of the client's account.
fn pod(mesh: &Mesh, name: &str, addresses: &[[u8; 4]]) {
    let workload = words::Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "shop".into(),
        addresses: addresses.iter().map(|ip| ip.to_vec().into()).collect(),
        service_account: "client".into(),
        ..Default::default()
    };
    let address = words::Address {
        r#type: Some(words::address::Type::Workload(workload)),
    };
    mesh.tell(ADDRESS_TYPE, &uid(name), &address);
}

/// One request of the client, and its line in the log.
async fn request(mesh: &Mesh, path: &str) -> String {
    let pool = mesh.pool(CLIENT);
    let mut client = Client::h1(mesh, &pool, WEB).await;
    assert_eq!(client.get(path, &[]).await.body, "v1");
    mesh.logged(&["\"target\":\"access\"", path]).await
}

#[test]
fn a_client_is_asked_for_by_the_address_that_it_has_and_not_by_one_that_it_claims() {
    local(async {
        let mesh = Mesh::start().await;
        mesh.forget(ADDRESS_TYPE, &uid("client-1"));
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let line = request(&mesh, "/unknown").await;
        assert!(
            line.contains(CLIENT_ADDR) && line.contains(CLIENT),
            "{line}"
        );
        assert!(!line.contains("src.workload"), "{line}");
        let asked = mesh.asked.borrow_mut().try_recv();
        assert_eq!(asked.as_deref(), Ok("/127.0.0.1"));

        // Another pod of its account is there: it is nobody's name.
        pod(&mesh, "client-1", &[PEER]);
        let line = request(&mesh, "/other").await;
        assert!(!line.contains("src.workload"), "{line}");
        // What is claimed is one of its own addresses, as of a pod with two families.
        pod(&mesh, "client-1", &[PEER, CLAIMED]);
        let line = request(&mesh, "/own").await;
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
        // Nor was what it claims ever asked for.
        assert!(mesh.asked.borrow_mut().try_recv().is_err());
    });
}

#[test]
fn the_first_tunnel_of_a_client_has_the_name_that_comes_in_time() {
    local(async {
        let mesh = Rc::new(Mesh::start().await);
        mesh.forget(ADDRESS_TYPE, &uid("client-1"));
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let told = Rc::downgrade(&mesh);
        let answer = move || {
            let mesh = told.upgrade().expect("the test goes on");
            pod(&mesh, "client-1", &[PEER, CLAIMED]);
        };
        *mesh.answer.borrow_mut() = Some(Box::new(answer));
        let line = request(&mesh, "/first").await;
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
    });
}
