//! A workload that is to be in the mesh and is not there, on the wire: an extension of our own, because the discovery API
//! has no word for it. Whoever does not know it passes over it, and sees a workload that may not receive traffic.

use crate::proto::workload::Extension;

/// The extension's name. It has no content.
const NAME: &str = "ambit.mesh/awaited";

/// Says that nobody of the mesh shall speak plaintext to the workload.
pub fn awaited() -> Extension {
    Extension {
        name: NAME.to_owned(),
        config: None,
    }
}

/// Whether [`awaited`] was said.
pub(super) fn read(extensions: &[Extension]) -> bool {
    extensions.iter().any(|one| one.name == NAME)
}
