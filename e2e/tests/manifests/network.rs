//! What a NetworkPolicy means, by Kubernetes' own words: enough of it to ask ours who gets in where.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A pod or an address that connects or is connected to.
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    pub(crate) ip: IpAddr,
}

/// Does any policy of the destination's namespace let this connection in? True for a destination that none selects.
pub(crate) fn admits(
    policies: &[NetworkPolicy],
    from: &End<'_>,
    to: &End<'_>,
    port: i32,
) -> Result<bool> {
    let mut selected = false;
    for policy in policies {
        if policy.metadata.namespace.as_deref() != Some(to.namespace) {
            continue;
        }
        let spec = policy.spec.as_ref().context("a policy without spec")?;
        let about = spec.pod_selector.as_ref();
        if !about.is_none_or(|selector| selects(selector, &labels(to))) {
            continue;
        }
        let types = spec.policy_types.clone().unwrap_or_default();
        ensure!(
            types == ["Ingress"],
            "only ingress is understood, not {types:?}"
        );
        selected = true;
        for rule in spec.ingress.iter().flatten() {
            if admits_port(rule, port) && admits_peer(rule, policy, from)? {
                return Ok(true);
            }
        }
    }
    Ok(!selected)
}

fn admits_port(rule: &NetworkPolicyIngressRule, port: i32) -> bool {
    let is = |one: &NetworkPolicyPort| {
        one.protocol.as_deref().unwrap_or("TCP") == "TCP"
            && one
                .port
                .as_ref()
                .is_none_or(|p| *p == IntOrString::Int(port))
    };
    rule.ports
        .as_deref()
        .is_none_or(|ports| ports.iter().any(is))
}

fn admits_peer(
    rule: &NetworkPolicyIngressRule,
    policy: &NetworkPolicy,
    from: &End<'_>,
) -> Result<bool> {
    let Some(peers) = &rule.from else {
        return Ok(true);
    };
    for peer in peers {
        if is_peer(peer, policy, from)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_peer(peer: &NetworkPolicyPeer, policy: &NetworkPolicy, from: &End<'_>) -> Result<bool> {
    if let Some(block) = &peer.ip_block {
        ensure!(
            peer.pod_selector.is_none() && peer.namespace_selector.is_none(),
            "an ipBlock stands alone"
        );
        return contains(block, from.ip);
    }
    let namespace = BTreeMap::from([("kubernetes.io/metadata.name", from.namespace)]);
    let of_namespace = match &peer.namespace_selector {
        Some(selector) => selects(selector, &namespace),
        None => policy.metadata.namespace.as_deref() == Some(from.namespace),
    };
    // An address that is no pod's is chosen by no selector.
    let is_pod = !from.namespace.is_empty();
    let of_pod = peer.pod_selector.as_ref();
    Ok(is_pod && of_namespace && of_pod.is_none_or(|selector| selects(selector, &labels(from))))
}

fn contains(block: &IPBlock, ip: IpAddr) -> Result<bool> {
    ensure!(block.except.is_none(), "exceptions are not understood");
    let (network, length) = block.cidr.split_once('/').context("no CIDR")?;
    let (network, length): (IpAddr, u32) = (network.parse()?, length.parse()?);
    Ok(match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            network.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            network.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    })
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<&str, &str>) -> bool {
    assert!(
        selector.match_expressions.is_none(),
        "expressions are not understood"
    );
    let wanted = selector.match_labels.iter().flatten();
    wanted
        .into_iter()
        .all(|(key, value)| labels.get(key.as_str()) == Some(&value.as_str()))
}

fn labels<'a>(end: &End<'a>) -> BTreeMap<&'a str, &'a str> {
    end.labels.iter().copied().collect()
}
