//! Which addresses of the API server are watched, and how much of each object is fetched.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/replica.rs"]
mod replica;

use controller::index::kinds::{Fetch, Kind};
use kube::api::{Api, DynamicObject};

use self::kubernetes::{Call, Cluster};
use self::replica::Replica;

/// Where Kubernetes has each kind, and how much of it the index reads.
const INDEXED: &[(Kind, &str, Fetch)] = &[
    (Kind::Namespace, "/api/v1/namespaces", Fetch::Whole),
    (Kind::Node, "/api/v1/nodes", Fetch::Whole),
    (
        Kind::GatewayClass,
        "/apis/gateway.networking.k8s.io/v1/gatewayclasses",
        Fetch::Whole,
    ),
    (
        Kind::Deployment,
        "/apis/apps/v1/deployments",
        Fetch::Metadata,
    ),
    (
        Kind::ReplicaSet,
        "/apis/apps/v1/replicasets",
        Fetch::Metadata,
    ),
    (
        Kind::ServiceAccount,
        "/api/v1/serviceaccounts",
        Fetch::Metadata,
    ),
    (
        Kind::Gateway,
        "/apis/gateway.networking.k8s.io/v1/gateways",
        Fetch::Whole,
    ),
    (Kind::Service, "/api/v1/services", Fetch::Whole),
    (
        Kind::EndpointSlice,
        "/apis/discovery.k8s.io/v1/endpointslices",
        Fetch::Whole,
    ),
    (Kind::Pod, "/api/v1/pods", Fetch::Whole),
    (
        Kind::HttpRoute,
        "/apis/gateway.networking.k8s.io/v1/httproutes",
        Fetch::Whole,
    ),
    // Of the mesh's own namespace only.
    (
        Kind::ConfigMap,
        "/api/v1/namespaces/ambit-system/configmaps",
        Fetch::Whole,
    ),
];

/// What the reconciler looks after, of which it reads metadata alone.
const MADE: &[&str] = &[
    "/apis/apps/v1/deployments",
    "/api/v1/services",
    "/api/v1/serviceaccounts",
    "/api/v1/configmaps",
];

/// Lists and watches of an address, by how much they fetch: `list`, `watch`, each twice over.
fn fetched(calls: &[Call], path: &str, how: Fetch) -> [bool; 2] {
    ["LIST", "WATCH"].map(|verb| {
        let mut calls = calls.iter();
        calls.any(|call| {
            let metadata = call.accept.contains("as=PartialObjectMetadata");
            call.verb == verb && call.path == path && metadata == (how == Fetch::Metadata)
        })
    })
}

#[tokio::test(start_paused = true)]
async fn every_kind_is_watched_where_kubernetes_has_it_and_no_more_of_it_is_fetched_than_is_read() {
    let cluster = Cluster::new();
    let _replica = Replica::start(&cluster, "controller-0");
    cluster
        .until("all is watched", |cluster| {
            let watches = cluster.called("WATCH", "*");
            watches.len() == INDEXED.len() + MADE.len()
        })
        .await;
    let calls = cluster.calls();
    assert_eq!(INDEXED.len(), Kind::ALL.len(), "a kind is not in the table");
    for (kind, path, fetch) in INDEXED {
        assert_eq!(kind.api().fetch, *fetch, "{kind:?}");
        assert_eq!(fetched(&calls, path, *fetch), [true; 2], "{kind:?}");
        let made = MADE.contains(path);
        if *fetch == Fetch::Metadata || !made {
            let other = match fetch {
                Fetch::Whole => Fetch::Metadata,
                Fetch::Metadata => Fetch::Whole,
            };
            assert_eq!(fetched(&calls, path, other), [false; 2], "{kind:?}");
        }
    }
    for path in MADE {
        assert_eq!(fetched(&calls, path, Fetch::Metadata), [true; 2], "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_to_is_where_it_is_watched() {
    let client = Cluster::new().client();
    for (kind, path, _) in INDEXED {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.api().resource());
        let path = path.replace("/namespaces/ambit-system/", "/");
        assert_eq!(api.resource_url(), path, "{kind:?}");
    }
}
