//! How a client that the mesh's state does not name gets its name.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use mesh::proto::workload::AppProtocol;
use mesh::xds::ADDRESS_TYPE;
use support::app::{self, Client};
use support::{CLIENT, CLIENT_ADDR, Mesh, PEER, local, uid};

const WEB: &str = "10.96.0.1:80";
/// The address that the client's tunnels say.
fn claimed() -> IpAddr {
    CLIENT_ADDR.parse::<SocketAddr>().expect("an address").ip()
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
            line.contains("\"src.addr\":\"127.0.0.1:") && line.contains(CLIENT),
            "{line}"
        );
        assert!(!line.contains("src.workload"), "{line}");
        let asked = mesh.asked.borrow_mut().try_recv();
        assert_eq!(asked.as_deref(), Ok("/127.0.0.1"));

        // The pod that the connection comes from has a name, whatever else is claimed.
        mesh.client(&[PEER]);
        let line = request(&mesh, "/other").await;
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
        assert!(!line.contains(CLIENT_ADDR), "{line}");
        // What is claimed is one of its own addresses, as of a pod with two families.
        mesh.client(&[PEER, claimed()]);
        let line = request(&mesh, "/own").await;
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
        assert!(line.contains(CLIENT_ADDR), "{line}");
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
            mesh.client(&[PEER, claimed()]);
        };
        *mesh.answer.borrow_mut() = Some(Box::new(answer));
        let line = request(&mesh, "/first").await;
        assert!(line.contains("\"src.workload\":\"client-1\""), "{line}");
    });
}
