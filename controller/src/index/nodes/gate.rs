//! DECISION: may pods be scheduled on a node that joins? Not before its ztunnel serves it: a pod of the mesh that starts
//! earlier sends plaintext until it is captured.

use k8s_openapi::api::core::v1::Taint;

use super::super::State;
use super::super::desired::{Entry, Gate, Item, Wanted};
use super::super::names::{ECOSYSTEMS_NOT_READY, Key, NOT_READY};
use super::super::output::Output;
use super::Node;

/// Which of the two taints a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taints {
    ours: bool,
    ecosystems: bool,
}

// === impl Taints ===

impl Taints {
    pub(super) fn of(taints: Option<&Vec<Taint>>) -> Self {
        let has = |key: &str| taints.is_some_and(|all| all.iter().any(|taint| taint.key == key));
        Self {
            ours: has(NOT_READY),
            ecosystems: has(ECOSYSTEMS_NOT_READY),
        }
    }

    fn fit(self, gate: Gate) -> bool {
        match gate {
            Gate::Closed => self.ours,
            Gate::Open => !self.ours && !self.ecosystems,
            Gate::NotOurs => !self.ours,
        }
    }
}

/// Nothing: the node's gate stays as it is. That one's ztunnel is away for a moment closes no gate, because the CNI plugin
/// is there and holds new pods; and a node that is ready without a ztunnel pod is none that the DaemonSet wants.
fn decide(node_ready: bool, ztunnel_ready: Option<bool>) -> Option<Gate> {
    match (node_ready, ztunnel_ready) {
        (_, Some(true)) => Some(Gate::Open),
        (false, _) => Some(Gate::Closed),
        (true, Some(false)) => None,
        (true, None) => Some(Gate::NotOurs),
    }
}

// === impl State ===

impl State {
    /// Puts what is to be done about a node's taints into the table.
    pub(super) fn gate(&self, key: &Key, output: &mut Output) {
        let item = Item::Gate((*key.name).into());
        let node = self.tables.nodes.get(key);
        let wanted = node.and_then(|node| {
            let gate = self.wanted_gate(key, node)?;
            let fits = node.taints.fit(gate);
            (!fits).then(|| Wanted::Gate {
                uid: node.uid.clone(),
                gate,
            })
        });
        output.desire(item, wanted.map(Entry::leader));
    }

    fn wanted_gate(&self, key: &Key, node: &Node) -> Option<Gate> {
        if self.leaving || !self.settings.taint_joining_nodes {
            return Some(Gate::NotOurs);
        }
        decide(node.ready, self.ztunnel_ready(&key.name))
    }

    /// Whether the node's ztunnel serves; nothing, if there is none.
    fn ztunnel_ready(&self, node: &str) -> Option<bool> {
        let on_it = self.tables.pods.lookup().on_node(node);
        let ztunnels = on_it.filter_map(|key| {
            let pod = self.tables.pods.get(key)?;
            let is_ztunnel = !pod.finished && self.is_node_proxy(key, pod);
            is_ztunnel.then_some(pod.healthy)
        });
        ztunnels.reduce(|one, other| one || other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_open_where_the_mesh_serves_and_closed_while_the_node_joins() {
        for (node_ready, ztunnel, expected) in [
            (false, None, Some(Gate::Closed)),
            (false, Some(false), Some(Gate::Closed)),
            (true, Some(true), Some(Gate::Open)),
            // A ztunnel on the host's network serves before the kubelet has said that the node is ready.
            (false, Some(true), Some(Gate::Open)),
            // Being replaced, or never ready: as it was.
            (true, Some(false), None),
            (true, None, Some(Gate::NotOurs)),
        ] {
            assert_eq!(
                decide(node_ready, ztunnel),
                expected,
                "{node_ready} {ztunnel:?}"
            );
        }
    }

    #[test]
    fn nothing_is_to_be_done_where_the_taints_fit() {
        let of = |keys: &[&str]| {
            let taint = |key: &&str| Taint {
                key: (*key).to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            };
            Taints::of(Some(&keys.iter().map(taint).collect()))
        };
        for (taints, fits) in [
            (of(&["other"]), [false, true, true]),
            (of(&[NOT_READY]), [true, false, false]),
            (of(&[ECOSYSTEMS_NOT_READY]), [false, false, true]),
            (Taints::of(None), [false, true, true]),
        ] {
            let gates = [Gate::Closed, Gate::Open, Gate::NotOurs];
            assert_eq!(gates.map(|gate| taints.fit(gate)), fits, "{taints:?}");
        }
    }
}
