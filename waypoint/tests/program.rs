//! The program itself: what it refuses before it opens a socket.

use std::process::Command;

#[test]
fn without_its_environment_it_says_what_is_missing() {
    let ran = Command::new(env!("CARGO_BIN_EXE_waypoint"))
        .env_clear()
        .env("POD_NAMESPACE", "shop")
        .output()
        .expect("it runs");
    assert_eq!(ran.status.code(), Some(64));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("GATEWAY_NAME is not set"), "{said}");
}
