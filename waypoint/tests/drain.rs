//! A waypoint that leaves loses nothing: running requests finish, clients are told, the process sees the end.

mod support;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response};
use mesh::proto::workload::AppProtocol;
use support::app::{self, Answer, Client, full};
use support::{CLIENT, Mesh, local};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use waypoint::proxy::Phase;

const WEB: &str = "10.96.0.1:80";
const V1: &str = "spiffe://cluster.local/ns/shop/sa/v1";

#[test]
fn running_requests_finish_and_then_the_proxy_ends() {
    local(async {
        let mut mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http2, &["v1"]);
        let (asked, was_asked) = oneshot::channel::<()>();
        let (go, gone) = oneshot::channel::<()>();
        let both = std::rc::Rc::new(std::cell::Cell::new(Some((asked, gone))));
        app::http(&mesh, 10, V1, move |_| {
            let both = both.take();
            async move {
                let (asked, gone) = both.expect("one request");
                asked.send(()).expect("waited for");
                gone.await.expect("told to go on");
                Response::new(full("late"))
            }
        })
        .await;
        let pool = mesh.pool(CLIENT);
        let mut client = Client::h2(&mesh, &pool, WEB).await;
        let request = Request::get("http://web/")
            .body(full(""))
            .expect("a request");
        let (answer, ()) = tokio::join!(client.send(request), async {
            was_asked.await.expect("asked");
            mesh.phase.send_replace(Phase::Draining);
            mesh.phase.send_replace(Phase::Closing);
            go.send(()).expect("waited for");
        });
        let answer: Bytes = answer
            .expect("an answer")
            .into_body()
            .collect()
            .await
            .expect("all")
            .to_bytes();
        assert_eq!(&answer[..], b"late");
        (&mut mesh.waypoint)
            .await
            .expect("the proxy ends by itself");
        TcpStream::connect(mesh.waypoint_addr())
            .await
            .expect_err("nobody listens");
    });
}

#[test]
fn while_it_drains_http_1_clients_are_told_and_new_ones_served() {
    local(async {
        let mut mesh = Mesh::start().await;
        mesh.web(AppProtocol::Http11, &["v1"]);
        app::pod(&mesh, 10, "v1").await;
        let pool = mesh.pool(CLIENT);
        let mut idle = Client::h1(&mesh, &pool, WEB).await;
        assert_eq!(idle.get("/", &[]).await.header("connection"), None);
        mesh.phase.send_replace(Phase::Draining);
        // A request that was on its way is answered, and the answer says to go.
        let answer = idle.get("/", &[]).await;
        assert_eq!(
            (&*answer.body, answer.header("connection")),
            ("v1", Some("close"))
        );
        let late = mesh.pool(CLIENT);
        let mut new = Client::h1(&mesh, &late, WEB).await;
        assert_eq!(new.get("/", &[]).await.body, "v1");
        let mut silent = Client::h1(&mesh, &late, WEB).await;
        mesh.phase.send_replace(Phase::Closing);
        (&mut mesh.waypoint)
            .await
            .expect("the proxy ends by itself");
        let request = Request::get("/")
            .header("host", "web")
            .body(full(""))
            .expect("a request");
        silent
            .send(request)
            .await
            .map(Answer::of)
            .map(drop)
            .expect_err("closed");
    });
}
