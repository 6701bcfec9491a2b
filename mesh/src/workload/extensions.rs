//! What the discovery API has no word for, said of a workload by extensions of our own. Whoever does not know them passes
//! over them, and sees a workload that may not receive traffic.

use crate::proto::workload::Extension;

/// It is to be in the mesh and is not there. No content.
const AWAITED: &str = "ambit.mesh/awaited";
/// It is on its way out and still serves. No content.
const DRAINING: &str = "ambit.mesh/draining";

/// Says that nobody of the mesh shall speak plaintext to the workload.
pub fn awaited() -> Extension {
    named(AWAITED)
}

/// Says that the workload takes traffic where nobody else is left to take it, as a Kubernetes endpoint that is serving and
/// terminating (KEP-1669).
pub fn draining() -> Extension {
    named(DRAINING)
}

/// Whether [`awaited`] was said.
pub(super) fn is_awaited(extensions: &[Extension]) -> bool {
    extensions.iter().any(|one| one.name == AWAITED)
}

/// Whether [`draining`] was said.
pub(super) fn is_draining(extensions: &[Extension]) -> bool {
    extensions.iter().any(|one| one.name == DRAINING)
}

fn named(name: &str) -> Extension {
    Extension {
        name: name.to_owned(),
        config: None,
    }
}
