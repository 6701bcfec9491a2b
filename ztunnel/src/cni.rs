//! The chained CNI plugin: `ztunnel cni`, its protocol with ztunnel, and its installation on the node.
//!
//! The container runtime runs the plugin for every new pod, before any of its containers. The plugin asks
//! the node's ztunnel and does not return before the pod is captured, or known to be none of ours, so that
//! there is no moment of plaintext. When no ztunnel answers, it holds only pods that may be in the mesh.

pub mod enrolled;
pub mod install;
pub mod plugin;
pub mod protocol;
pub mod server;

use std::path::Path;

/// The plugin's name in configuration, and its file name on the node.
pub const PLUGIN: &str = "ambit-cni";
/// Where ztunnel listens for the plugin, unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/ambit/cni.sock";
/// Where ztunnel keeps the list of enrolled namespaces, unless configured otherwise.
pub const DEFAULT_ENROLLED: &str = "/var/lib/ambit/namespaces.json";
/// The mesh's own namespace, unless configured otherwise.
pub const DEFAULT_SYSTEM_NAMESPACE: &str = "ambit-system";

/// Whether these command-line arguments ask for the plugin: under its file name, or `ztunnel cni`.
pub fn is_plugin(mut args: impl Iterator<Item = impl AsRef<std::ffi::OsStr>>) -> bool {
    let program = args.next();
    let name = program
        .as_ref()
        .and_then(|p| Path::new(p.as_ref()).file_name());
    name.is_some_and(|name| name == PLUGIN) || args.next().is_some_and(|a| a.as_ref() == "cni")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_when_it_is_the_plugin() {
        assert!(is_plugin(["/opt/cni/bin/ambit-cni"].iter()));
        assert!(is_plugin(["ztunnel", "cni"].iter()));
        assert!(!is_plugin(["/usr/local/bin/ztunnel"].iter()));
        assert!(!is_plugin(["ztunnel", "proxy", "cni"].iter()));
        assert!(!is_plugin(std::iter::empty::<&str>()));
    }
}
