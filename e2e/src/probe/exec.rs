//! Programs run in a pod's container, over the API server.

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a program left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

/// Runs `command` in the pod's first container and waits for its end.
pub(super) async fn exec(pods: &Api<Pod>, pod: &str, command: &[&str]) -> Result<Output> {
    let params = AttachParams::default().stdout(true).stderr(true);
    let mut process = pods
        .exec(pod, command.iter().copied(), &params)
        .await
        .context("exec")?;
    let (stdout, stderr) = (
        process.stdout().context("no stdout")?,
        process.stderr().context("no stderr")?,
    );
    let status = process.take_status().context("no status")?;
    let (stdout, stderr, status) = tokio::join!(text(stdout), text(stderr), status);
    Ok(Output {
        stdout: stdout?,
        stderr: stderr?,
        code: code(status.as_ref())?,
    })
}

/// Everything that comes, bytes that are no text replaced.
pub(super) async fn text(mut from: impl AsyncRead + Unpin) -> Result<String> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.context("output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The exit code as the kubelet reports it.
fn code(status: Option<&Status>) -> Result<i32> {
    let status = status.context("the stream ended without a status")?;
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status
        .details
        .as_ref()
        .and_then(|details| details.causes.as_ref());
    let exit = causes
        .into_iter()
        .flatten()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    exit.and_then(|cause| cause.message.as_ref()?.parse().ok())
        .ok_or_else(|| {
            anyhow!(
                "it did not run: {}",
                status.message.as_deref().unwrap_or("no reason given")
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_read() {
        let status = |json| serde_json::from_value::<Status>(json).expect("a status");
        assert_eq!(
            code(Some(&status(serde_json::json!({"status": "Success"})))).expect("ran"),
            0
        );
        let failed = status(serde_json::json!({
            "status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "64"}]},
        }));
        assert_eq!(code(Some(&failed)).expect("ran"), 64);
        let absent = status(serde_json::json!({"status": "Failure", "message": "no such file"}));
        assert!(
            code(Some(&absent))
                .expect_err("did not run")
                .to_string()
                .contains("no such file")
        );
        assert!(code(None).is_err());
    }
}
