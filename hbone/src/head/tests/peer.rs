//! Blocks of the `h2` crate, with its Huffman code and dynamic table, read by us; and ours read by it.

use http::{Request as HttpRequest, Response as HttpResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::frame::{Frame, PREFACE, Parser, StreamId};
use crate::frame::{put_headers, put_settings, put_settings_ack, setting};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The blocks of the next `count` HEADERS that come; each SETTINGS is acknowledged.
async fn blocks(io: &mut DuplexStream, parser: &mut Parser, count: usize) -> Vec<Vec<u8>> {
    let (mut blocks, mut chunk) = (Vec::new(), [0; 4096]);
    while blocks.len() < count {
        let read = io.read(&mut chunk).await.unwrap();
        assert_ne!(read, 0, "the peer is gone");
        let mut input = &chunk[..read];
        while let Some(frame) = parser.next(&mut input).unwrap() {
            match frame {
                Frame::Headers { .. } => blocks.push(parser.block().to_vec()),
                Frame::Settings(_) => {
                    let mut out = Vec::new();
                    put_settings_ack(&mut out);
                    io.write_all(&out).await.unwrap();
                }
                _ => {}
            }
        }
    }
    blocks
}

fn http_request() -> HttpRequest<()> {
    HttpRequest::connect("shop.default.svc.cluster.local:8080")
        .version(http::Version::HTTP_2)
        .header("forwarded", "for=\"[2001:db8::1]:4567\";host=shop")
        .header("baggage", "k8s.namespace.name=shop,k8s.deployment.name=web")
        .header("traceparent", TRACE)
        .header("x-istio-source", "gateway")
        .header("x-with-~", "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~")
        .body(())
        .unwrap()
}

fn our_request() -> Request {
    Request {
        target: "shop.default.svc.cluster.local:8080".parse().unwrap(),
        forwarded: "for=\"[2001:db8::1]:4567\";host=shop".parse().ok(),
        baggage: crate::Baggage {
            namespace: Some("shop".into()),
            workload_name: Some("web".into()),
            workload_type: Some("deployment".into()),
            ..crate::Baggage::default()
        },
        traceparent: TRACE.parse().ok(),
        source: Some(SourceKind::Gateway),
    }
}

/// The first block fills its table, the second uses it, and the third comes after our SETTINGS that
/// forbid one.
#[tokio::test]
async fn requests_of_h2() {
    let (theirs, mut ours) = duplex(1 << 16);
    let (mut client, connection) = h2::client::handshake(theirs).await.unwrap();
    tokio::spawn(connection);
    let mut preface = [0; PREFACE.len()];
    ours.read_exact(&mut preface).await.unwrap();
    assert_eq!(preface, PREFACE);
    let (mut parser, mut decoder) = (Parser::new(16 << 10), Decoder::new());
    let mut sent = Vec::new();
    for _ in 0..2 {
        sent.push(client.send_request(http_request(), false).unwrap());
    }
    let first = blocks(&mut ours, &mut parser, 2).await;
    assert!(first[1].len() * 4 < first[0].len(), "the table is used");
    for block in first {
        assert_eq!(request(&mut decoder, &block), Ok(our_request()));
    }

    let mut out = Vec::new();
    put_settings(&mut out, &[(setting::HEADER_TABLE_SIZE, 0)]);
    // An answer to the first, so that it is known when the settings before it have been read.
    let answer = crate::Response {
        baggage: our_request().baggage,
    };
    put_headers(
        &mut out,
        StreamId::new(1),
        &answer.to_block(),
        false,
        16 << 10,
    );
    ours.write_all(&out).await.unwrap();
    let (response, _) = sent.remove(0);
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()["baggage"],
        our_request().baggage.encode().unwrap()
    );

    decoder.set_limit(0);
    sent.push(client.send_request(http_request(), false).unwrap());
    for block in blocks(&mut ours, &mut parser, 1).await {
        assert_eq!(request(&mut decoder, &block), Ok(our_request()));
    }
}

#[tokio::test]
async fn ours_to_h2_and_its_answers() {
    let (theirs, mut ours) = duplex(1 << 16);
    let mut out = PREFACE.to_vec();
    put_settings(&mut out, &[]);
    for id in [1, 3, 5] {
        // Split as small as can be.
        put_headers(
            &mut out,
            StreamId::new(id),
            &our_request().to_block(),
            false,
            200,
        );
    }
    ours.write_all(&out).await.unwrap();
    let server = tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.unwrap();
        let refusal = HttpResponse::builder()
            .status(503)
            .header("x-ambit-refusal", "no_endpoint")
            .header("x-ambit-reason", "no endpoint of shop is healthy%0a");
        let opened = HttpResponse::builder().header("baggage", "cloud.region=r");
        for answer in [
            opened.body(()),
            refusal.body(()),
            HttpResponse::builder().status(204).body(()),
        ] {
            let (request, mut respond) = server.accept().await.unwrap().unwrap();
            let (head, _) = request.into_parts();
            let ours = our_request();
            assert_eq!(head.method, Method::CONNECT);
            assert_eq!(head.uri.to_string(), ours.target.to_string());
            assert_eq!(
                head.headers["forwarded"],
                ours.forwarded.unwrap().to_string()
            );
            assert_eq!(head.headers["baggage"], ours.baggage.encode().unwrap());
            assert_eq!(head.headers["traceparent"], TRACE);
            assert_eq!(head.headers["x-istio-source"], "gateway");
            assert_eq!(head.headers.len(), 4);
            respond.send_response(answer.unwrap(), true).unwrap();
        }
        while server.accept().await.is_some() {}
    });
    let (mut parser, mut decoder) = (Parser::new(16 << 10), Decoder::new());
    let mut answers = Vec::new();
    for block in blocks(&mut ours, &mut parser, 3).await {
        answers.push(response(&mut decoder, &block).unwrap());
    }
    let region = Some("r".into());
    let refusal = Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_endpoint",
        "no endpoint of shop is healthy",
    );
    let want = [
        Answer::Opened(Response {
            baggage: crate::Baggage {
                region,
                ..crate::Baggage::default()
            },
        }),
        Answer::Refused(refusal),
        Answer::Opened(Response::default()),
    ];
    assert_eq!(answers, want);
    drop(ours);
    server.await.unwrap();
}
