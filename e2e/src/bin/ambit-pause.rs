//! Holds a pod's namespaces open and buries its orphans.
#![expect(
    unsafe_code,
    reason = "two calls of the C library, which this one file is built without any crate to call"
)]

/// `SIGCHLD` and `SIG_IGN`: a parent that ignores its children's deaths has the kernel bury them.
const SIGCHLD: i32 = 17;
const SIG_IGN: usize = 1;
/// `SIGINT` and `SIGTERM`, by which a pod is asked to end.
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn pause() -> i32;
    fn _exit(status: i32) -> !;
}

extern "C" fn end(_: i32) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the handler is a function of the right type that only calls `_exit`, and stays for good.
    unsafe {
        signal(SIGCHLD, SIG_IGN);
        signal(SIGINT, end as *const () as usize);
        signal(SIGTERM, end as *const () as usize);
    }
    loop {
        // SAFETY: takes nothing and touches nothing.
        unsafe { pause() };
    }
}
