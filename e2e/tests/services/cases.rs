//! The table: who asks for what, and who answers.

/// One question.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) from: Who,
    /// What is asked; `{POD}` stands for names of the scene.
    pub(crate) url: &'static str,
    /// Who answers where kube-proxy alone decides: pods by their label `version`, or how it fails.
    pub(crate) without: &'static str,
    /// In the mesh, where a transparent proxy cannot say the same: it has accepted before it knows.
    pub(crate) with: Option<&'static str>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) enum Who {
    /// A pod on worker-1.
    Client,
    /// A pod of worker-2's own network, which is in no mesh.
    Host,
    /// The endpoint `a` itself.
    A,
}

const REFUSED: &str = "refused";
const RESET: &str = "reset";

const fn case(name: &'static str, from: Who, url: &'static str, without: &'static str) -> Case {
    Case {
        name,
        from,
        url,
        without,
        with: None,
    }
}

const fn differs(
    name: &'static str,
    from: Who,
    url: &'static str,
    without: &'static str,
    with: &'static str,
) -> Case {
    Case {
        name,
        from,
        url,
        without,
        with: Some(with),
    }
}

use Who::{A, Client, Host};

pub(crate) const CASES: &[Case] = &[
    case("cluster IP", Client, "http://web/", "a b"),
    case(
        "cluster IP, from the host's network",
        Host,
        "http://web/",
        "a b",
    ),
    case(
        "cluster IP, from its own endpoint (hairpin)",
        A,
        "http://only-a/",
        "a",
    ),
    case(
        "target port by name, another number in each pod",
        Client,
        "http://named/",
        "a b",
    ),
    case("headless", Client, "http://headless:8080/", "one of a b"),
    differs(
        "headless, a port where nobody listens",
        Client,
        "http://headless:81/",
        REFUSED,
        RESET,
    ),
    case("an endpoint's own address", Client, "http://{a}:8080/", "a"),
    case(
        "an endpoint's own address, from the host's network",
        Host,
        "http://{a}:8080/",
        "a",
    ),
    differs(
        "an endpoint's own address, nobody listens",
        Client,
        "http://{a}:81/",
        REFUSED,
        RESET,
    ),
    case(
        "the same, from the host's network",
        Host,
        "http://{a}:81/",
        REFUSED,
    ),
    case(
        "a pod of the host's network",
        Client,
        "http://{host}:{server-port}/",
        "host",
    ),
    case(
        "a Service of pods of the host's network",
        Client,
        "http://hosts/",
        "host",
    ),
    differs("no endpoint", Client, "http://nobody/", REFUSED, RESET),
    case(
        "no endpoint, from the host's network",
        Host,
        "http://nobody/",
        REFUSED,
    ),
    differs("no ready endpoint", Client, "http://late/", REFUSED, RESET),
    case(
        "no ready endpoint, publishNotReadyAddresses",
        Client,
        "http://early/",
        "late",
    ),
    case(
        "no ready endpoint, one serving and terminating",
        Client,
        "http://leaving/",
        "leaving",
    ),
    case(
        "without selector, an EndpointSlice by pod",
        Client,
        "http://listed/",
        "a",
    ),
    case(
        "without selector, an EndpointSlice by address",
        Client,
        "http://bare/",
        "b",
    ),
    case(
        "without selector, two EndpointSlices, one endpoint unready",
        Client,
        "http://several/",
        "a b",
    ),
    case(
        "a selector and an EndpointSlice beside it",
        Client,
        "http://beside/",
        "a b",
    ),
    case("internalTrafficPolicy: Local", Client, "http://local/", "a"),
    case(
        "sessionAffinity: ClientIP",
        Client,
        "http://sticky/",
        "one of a b",
    ),
    case("external IP", Client, "http://{external}/", "a b"),
    case("load balancer's IP", Client, "http://{balancer}/", "a b"),
    case(
        "node port, from a pod",
        Client,
        "http://{worker-2}:{node-port}/",
        "a b",
    ),
    case(
        "node port, from the host's network",
        Host,
        "http://{worker-2}:{node-port}/",
        "a b",
    ),
    case("host port", Client, "http://{worker-1}:{host-port}/", "a"),
    case(
        "host port, from another node",
        Host,
        "http://{worker-1}:{host-port}/",
        "a",
    ),
    differs(
        "a port that the Service does not have",
        Client,
        "http://web:81/",
        REFUSED,
        RESET,
    ),
];
