//! Where hyper's tasks run: on the core that their connection is on.

use std::future::Future;

use hyper::rt::Executor;

/// Spawns onto this core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExec;

// === impl LocalExec ===

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
