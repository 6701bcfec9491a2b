//! Serving on one core: all of its listeners, to the end of their last connection.

use std::rc::Rc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::limits::Limits;
use crate::listener;
use crate::proxy::{Core, Shared};

/// Serves on this thread, which must be in a `LocalRuntime` or `LocalSet`; returns when the process has closed and every connection has ended.
pub async fn serve(shared: Shared, limits: Limits, listeners: Vec<TcpListener>) {
    let core = Rc::new(Core::new(shared, limits));
    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn_local(listener::serve(Rc::clone(&core), listener));
    }
    let served = async { while serving.join_next().await.is_some() {} };
    let followed = core.leases.clone().follow(core.world.clone());
    tokio::pin!(served);
    tokio::select! {
        () = &mut served => {}
        // Nothing changes any more.
        () = followed => served.await,
    }
}
