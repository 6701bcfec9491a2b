//! The replica storm, short: what `make soak-control` does for minutes.

use std::time::Duration;

use anyhow::{Result, ensure};

/// At least, and until each replica was taken away in each way.
const STORM: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn replicas_come_and_go_and_nothing_is_lost() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let report = e2e::soak::run(&cluster, &client, STORM).await?;
    println!("{report}");
    ensure!(report.faults().is_empty(), "{}", report.faults().join("; "));
    Ok(())
}
