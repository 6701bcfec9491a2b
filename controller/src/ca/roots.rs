//! Where the roots are readable: one ConfigMap in each namespace in which a proxy runs.

/// The ConfigMap; the roots are in its `root-cert.pem`.
pub const CONFIG_MAP: &str = "ambit-ca-root-cert";
/// Beside them, where the mesh has revocation lists: what the ecosystem calls them, too.
pub const REVOCATIONS: &str = "ca-crl.pem";
/// On what we made, and on nothing that we did not.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "ambit");
