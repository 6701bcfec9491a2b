use hbone::{Baggage, Target};
use mesh::balance::Reach;
use mesh::service::Service;

use super::*;
use crate::budget::{Budgets, Resource};
use crate::limits::Limits;

/// A client that the mesh does not know, and what it says of itself.
fn session(said: usize) -> Session {
    let word = |what: &str| Some(Arc::from(format!("{what}-{said}")));
    let service = Service {
        id: "shop/cart.shop.svc.cluster.local".parse().expect("a name"),
        name: "cart".into(),
        vips: Box::default(),
        ports: Vec::new(),
        waypoint: None,
        publish_not_ready: false,
        reach: Reach::default(),
        affinity: None,
        subject_alt_names: Vec::new(),
    };
    let to = To::Service {
        service: service.into(),
        port: 80,
    };
    let address = "10.0.0.9:4000".parse().expect("an address");
    let id: SpiffeId = "spiffe://cluster.local/ns/evil/sa/default"
        .parse()
        .expect("an id");
    let account = Budgets::new(&Limits::default()).account(&id);
    Session {
        cut: crate::cut::Cut::default(),
        client: Client {
            id,
            address,
            workload: None,
            baggage: Baggage {
                namespace: Some("kube-system".into()),
                workload_name: word("workload"),
                service_name: word("service"),
                service_version: word("version"),
                cluster: word("cluster"),
                ..Baggage::default()
            },
        },
        to,
        authority: Target::Addr(address),
        trace: None,
        place: account.take(Resource::Tunnels).expect("room"),
    }
}

fn shown(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("written");
    text
}

#[test]
fn nobodys_words_are_series() {
    let mut registry = Registry::default();
    let recorder = Recorder::new(Metrics::register(&mut registry));
    for number in 0..=u16::MAX {
        let session = session(number.into());
        recorder.request(&Ended {
            session: &session,
            to: &session.to,
            upstream: None,
            protocol: Protocol::Grpc,
            code: number,
            grpc: Some(number),
            flags: "-",
            received: 0,
            sent: 0,
            duration: Duration::ZERO,
        });
    }
    let text = shown(&registry);
    let of = |line: &&str| line.starts_with("istio_requests_total");
    let series = text.lines().filter(of).count();
    // 0, 100 to 599, and the rest; with a gRPC status of their own only the first few.
    assert!((502..=530).contains(&series), "{series}");
    assert!(text.contains("source_workload_namespace=\"evil\""));
    for word in [
        "kube-system",
        "workload-",
        "service-",
        "version-",
        "cluster-",
    ] {
        assert!(!text.contains(word), "{word}");
    }
    assert!(text.contains("response_code=\"unknown\",grpc_response_status=\"unknown\""));
}
