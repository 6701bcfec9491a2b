//! Where the roots are readable: one ConfigMap in each namespace in which a proxy runs.

/// The ConfigMap; the roots are in its `root-cert.pem`.
pub const CONFIG_MAP: &str = "ambit-ca-root-cert";
