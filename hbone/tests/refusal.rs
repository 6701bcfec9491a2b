//! Refusals and malformed requests: who is told what.

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use bytes::Bytes;
use hbone::{Error, Refusal, Request, Response};
use http::{Method, StatusCode};
use support::{Lab, local, raw, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
fn a_refusal_travels_with_code_and_reason() {
    local(async {
        let mut lab = Lab::new().await;
        let refusal = Refusal::new(
            StatusCode::UNAUTHORIZED,
            "policy_denied",
            "policy \u{201c}shop/deny-all\u{201d} denies\nthis at 100 %",
        );
        let reject = async {
            lab.served
                .incoming
                .recv()
                .await
                .unwrap()
                .reject(refusal.clone());
        };
        let request = request();
        let (opened, ()) = tokio::join!(lab.pool.open(&lab.to, &request), reject);
        let error = opened.unwrap_err();
        let Error::Refused(got) = &error else {
            panic!("{error}")
        };
        assert_eq!(
            (got.status, &*got.code),
            (StatusCode::UNAUTHORIZED, "policy_denied")
        );
        // Line breaks do not survive: a peer must not forge lines of our log.
        assert_eq!(
            got.reason,
            "policy \u{201c}shop/deny-all\u{201d} deniesthis at 100 %"
        );
        assert_eq!(error.status(), StatusCode::UNAUTHORIZED);
        assert!(!error.retryable());

        // The connection is as good as before.
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 1);
    });
}

#[test]
fn a_peer_that_gives_no_reason_yields_its_status() {
    local(async {
        let mut lab = Lab::new().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        lab.to.addr = listener.local_addr().unwrap();
        let stock = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut server = raw::server(tcp, &lab.ca, &h2::server::Builder::new()).await;
            let (_, mut respond) = server.accept().await.unwrap().unwrap();
            let denied = http::Response::builder().status(401).body(()).unwrap();
            respond.send_response(denied, true).unwrap();
            while server.accept().await.is_some() {}
        };
        let request = request();
        let error = tokio::select! {
            opened = lab.pool.open(&lab.to, &request) => opened.unwrap_err(),
            () = stock => panic!("the client left"),
        };
        let Error::Refused(got) = &error else {
            panic!("{error}")
        };
        assert_eq!(&*got.code, "http_401");
    });
}

#[test]
fn a_refusal_never_opens_a_tunnel() {
    local(async {
        let mut lab = Lab::new().await;
        let reject = async {
            let incoming = lab.served.incoming.recv().await.unwrap();
            incoming.reject(Refusal::new(StatusCode::OK, "confused", ""));
        };
        let request = request();
        let (opened, ()) = tokio::join!(lab.pool.open(&lab.to, &request), reject);
        assert!(matches!(opened.unwrap_err(), Error::Refused(_)));
    });
}

/// RFC 9113 §8.1: who is reset with an error may throw the answer away.
#[test]
fn a_refused_client_is_heard_out() {
    local(async {
        let mut lab = Lab::new().await;
        let mut raw = raw_client(&lab).await;
        let connect = || {
            let head = http::Request::builder().method(Method::CONNECT);
            head.uri("10.1.2.3:80").body(()).unwrap()
        };
        let (opened, mut other) = raw.send_request(connect(), false).unwrap();
        let incoming = lab.served.incoming.recv().await.unwrap();
        let tunnel = incoming.accept(Response::default()).unwrap();
        assert_eq!(opened.await.unwrap().status(), StatusCode::OK);
        let mut sends = Vec::new();
        // One that may still speak, and one that has ended already.
        for ended in [false, true] {
            let (answer, send) = raw.send_request(connect(), ended).unwrap();
            let incoming = lab.served.incoming.recv().await.unwrap();
            incoming.reject(Refusal::new(StatusCode::FORBIDDEN, "policy", "no"));
            assert_eq!(answer.await.unwrap().status(), StatusCode::FORBIDDEN);
            sends.push(send);
        }
        let mut refused = sends.swap_remove(0);
        refused.send_data(Bytes::from("late"), false).unwrap();
        // What was asked later is answered, so a reset would have come.
        let (later, _send) = raw.send_request(connect(), false).unwrap();
        drop(lab.served.incoming.recv().await.unwrap());
        assert!(later.await.unwrap_err().is_reset());
        let reset = poll_fn(|cx| Poll::Ready(refused.poll_reset(cx))).await;
        assert!(reset.is_pending(), "{reset:?}");
        // Nothing is left of it when the client has ended too.
        refused.send_data(Bytes::new(), true).unwrap();
        other.send_reset(h2::Reason::CANCEL);
        lab.served.drain.notify_waiters();
        drop(tunnel);
        lab.served.over.recv().await.unwrap();
    });
}

#[test]
fn an_unanswered_request_is_reset() {
    local(async {
        let mut lab = Lab::new().await;
        let forget = async { drop(lab.served.incoming.recv().await.unwrap()) };
        let request = request();
        let (opened, ()) = tokio::join!(lab.pool.open(&lab.to, &request), forget);
        let error = opened.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Reset {
                    processed: true,
                    ..
                }
            ),
            "{error}"
        );
    });
}

#[test]
fn malformed_heads_are_answered_and_never_surface() {
    local(async {
        let mut lab = Lab::new().await;
        let mut raw = raw_client(&lab).await;
        let connect = |authority: &str| {
            http::Request::builder()
                .method(Method::CONNECT)
                .uri(authority)
        };
        let heads = [
            ("another method", http::Request::get("https://10.1.2.3:80/")),
            ("no port", connect("10.1.2.3")),
            ("port zero", connect("10.1.2.3:0")),
            ("user", connect("user@10.1.2.3:80")),
            ("half an address", connect("10.1:80")),
            (
                "forwarded",
                connect("10.1.2.3:80").header("forwarded", "for=unknown"),
            ),
            (
                "baggage",
                connect("10.1.2.3:80").header("baggage", "nonsense"),
            ),
            (
                "traceparent",
                connect("10.1.2.3:80").header("traceparent", "00-0-0-0"),
            ),
            (
                "a header twice",
                connect("10.1.2.3:80")
                    .header("x-istio-source", "waypoint")
                    .header("x-istio-source", "gateway"),
            ),
        ];
        for (what, head) in heads {
            let (response, _send) = raw.send_request(head.body(()).unwrap(), false).unwrap();
            let pump = async { lab.served.incoming.recv().await };
            let response = tokio::select! {
                response = response => response.unwrap(),
                incoming = pump => panic!("{what}: {incoming:?}"),
            };
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{what}");
            assert_eq!(
                response.headers()["x-ambit-refusal"],
                "invalid_connect",
                "{what}"
            );
            assert!(!response.headers()["x-ambit-reason"].is_empty(), "{what}");
        }
        // The connection is as good as before.
        let (response, _send) = raw
            .send_request(connect("10.1.2.3:80").body(()).unwrap(), false)
            .unwrap();
        let incoming = lab.served.incoming.recv().await.unwrap();
        let address: SocketAddr = "10.1.2.3:80".parse().unwrap();
        assert_eq!(incoming.request, Request::to(address.into()));
        let _tunnel = incoming.accept(Response::default()).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn headers_without_end_are_refused() {
    local(async {
        let lab = Lab::new().await;
        let mut raw = raw_client(&lab).await;
        let head = http::Request::builder()
            .method(Method::CONNECT)
            .uri("10.1.2.3:80")
            .header("x-padding", "x".repeat(64 << 10))
            .body(())
            .unwrap();
        let (response, _send) = raw.send_request(head, false).unwrap();
        match response.await {
            Ok(response) => {
                assert_eq!(
                    response.status(),
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                );
            }
            Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
        }
    });
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    local(async {
        let mut lab = Lab::new().await;
        for garbage in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            &[0; 4096],
            &[22, 3, 1, 0, 5],
        ] {
            let mut tcp = TcpStream::connect(lab.served.addr).await.unwrap();
            tcp.write_all(garbage).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = tcp.read_to_end(&mut answer).await;
            assert!(!answer.windows(4).any(|w| w == b"HTTP"));
            let error = lab.served.errors.recv().await.unwrap();
            assert!(matches!(error, Error::Tls { .. }), "{error}");
        }
        drop(lab.tunnels().await);
    });
}

#[test]
fn garbage_inside_tls_ends_only_that_connection() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        let tcp = TcpStream::connect(lab.served.addr).await.unwrap();
        let mut tls = raw::client_tls(tcp, &lab.ca, b"h2").await;
        tls.write_all(&[b'x'; 100]).await.unwrap();
        let error = lab.served.errors.recv().await.unwrap();
        assert!(matches!(error, Error::Protocol(_)), "{error}");
        drop((near, far));
        drop(lab.tunnels().await);
    });
}

#[test]
fn who_does_not_speak_h2_is_refused() {
    local(async {
        let mut lab = Lab::new().await;
        let tcp = TcpStream::connect(lab.served.addr).await.unwrap();
        assert!(
            raw::try_client_tls(tcp, &lab.ca, b"http/1.1")
                .await
                .is_err()
        );
        assert!(matches!(
            lab.served.errors.recv().await.unwrap(),
            Error::Tls { .. }
        ));
    });
}

async fn raw_client(lab: &Lab) -> h2::client::SendRequest<Bytes> {
    raw::client(TcpStream::connect(lab.served.addr).await.unwrap(), &lab.ca).await
}
