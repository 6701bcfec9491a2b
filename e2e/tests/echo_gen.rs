//! The checked-in gRPC code is what `proto/echo.proto` says; `AMBIT_REGENERATE=1` writes it anew.

use std::path::Path;

#[test]
fn generated_code_is_current() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a scratch directory");
    let fds = protox::compile([home.join("proto/echo.proto")], [home.join("proto")])
        .expect("the proto compiles");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .compile_fds(fds)
        .expect("code is generated");
    let fresh =
        std::fs::read_to_string(fresh.path().join("proto.rs")).expect("one file is generated");
    let kept = home.join("src/echo/gen/proto.rs");
    if std::env::var_os("AMBIT_REGENERATE").is_some() {
        std::fs::write(&kept, &fresh).expect("the checked-in file is written");
    }
    let kept = std::fs::read_to_string(&kept).expect("the checked-in file is readable");
    assert!(
        fresh == kept,
        "stale: run AMBIT_REGENERATE=1 cargo test -p e2e --test echo_gen"
    );
}
