//! Keeps the generated protocol code (`src/gen`) equal to what `proto/` says; `AMBIT_REGENERATE=1` writes it anew.

use std::path::Path;

const PROTOS: [&str; 5] = [
    "workload.proto",
    "waypoint.proto",
    "node.proto",
    "discovery.proto",
    "certificate.proto",
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a temporary folder");
    let descriptors = protox::compile(PROTOS, [root.join("proto")]).expect("the protos compile");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .emit_rerun_if_changed(false)
        .bytes(".istio.workload.Workload.addresses")
        .bytes(".ambit.mesh.node.v1.Enrolment.addresses")
        .bytes(".envoy.service.discovery.v3.Resource.resource")
        // Ordered, so that equal resources have equal encodings, and so equal versions.
        .btree_map(".istio.workload.Workload.services")
        .compile_fds(descriptors)
        .expect("code is generated");

    let checked_in = root.join("src/gen");
    for entry in std::fs::read_dir(fresh.path()).expect("generated files") {
        let entry = entry.expect("a generated file");
        // What Google publishes comes with prost-types.
        if entry.file_name().to_string_lossy().starts_with("google.") {
            continue;
        }
        let target = checked_in.join(entry.file_name());
        let now = std::fs::read_to_string(entry.path()).expect("generated text");
        if std::env::var_os("AMBIT_REGENERATE").is_some() {
            std::fs::write(&target, now).expect("the checked-in file is writable");
        } else {
            let was = std::fs::read_to_string(&target).unwrap_or_default();
            assert!(
                was == now,
                "{} is stale: AMBIT_REGENERATE=1 cargo test -p mesh --test bootstrap",
                target.display()
            );
        }
    }
}
