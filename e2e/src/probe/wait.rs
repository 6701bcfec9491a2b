//! Waiting for objects to be as wished: by watching, with a deadline, and with the last state in the error.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::watch_object;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

/// Between two looks at what cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Watches an object until `done` says yes; `what` names that in the error, which carries the last status seen.
pub async fn wait_until<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    within: Duration,
    mut done: impl FnMut(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + Serialize + 'static,
{
    let mut last = None;
    let found = watch(api, name, within, |object: Option<&K>| {
        last = object.map(status);
        object.is_some_and(&mut done)
    })
    .await;
    match found? {
        Some(Some(object)) => Ok(object),
        _ => match last {
            Some(status) => bail!("{name} is not {what} after {within:?}; its status: {status}"),
            None => bail!("{name} is not {what} after {within:?}: it does not exist"),
        },
    }
}

/// Watches an object until there is none of that name.
pub async fn wait_gone<K>(api: Api<K>, name: &str, within: Duration) -> Result<()>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + Serialize + 'static,
{
    match watch(api, name, within, |object: Option<&K>| object.is_none()).await? {
        Some(_) => Ok(()),
        None => bail!("{name} is still there after {within:?}"),
    }
}

/// Waits until all replicas that a Deployment's present spec asks for are available, and no others are left.
pub async fn wait_available(api: Api<Deployment>, name: &str, within: Duration) -> Result<()> {
    wait_until(api, name, "available", within, available)
        .await
        .map(drop)
}

fn available(deployment: &Deployment) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation == deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted
    })
}

/// The object, or its absence, for which `done` said yes; none if the time is over.
async fn watch<K>(
    api: Api<K>,
    name: &str,
    within: Duration,
    mut done: impl FnMut(Option<&K>) -> bool,
) -> Result<Option<Option<K>>>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
{
    let mut changes = pin!(watch_object(api, name));
    let deadline = Instant::now() + within;
    loop {
        match tokio::time::timeout_at(deadline, changes.try_next()).await {
            Ok(Ok(Some(object))) if done(object.as_ref()) => return Ok(Some(object)),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => bail!("the watch of {name} ended"),
            // The watcher begins anew when it is polled again; an API server that is away may come back in time.
            Ok(Err(_)) => tokio::time::sleep(LOOK_AGAIN).await,
            Err(_) => return Ok(None),
        }
    }
}

/// Every condition in an object's status, those per parent included: type, status, reason, message.
pub fn conditions<K: Serialize>(object: &K) -> Vec<[String; 4]> {
    let object = serde_json::to_value(object).unwrap_or_default();
    let list = |value: &Value| {
        value
            .get("conditions")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let status = object.get("status").cloned().unwrap_or_default();
    let mut all = list(&status);
    for of in ["parents", "listeners"] {
        all.extend(
            status
                .get(of)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .flat_map(list),
        );
    }
    let text = |one: &Value, key| {
        one.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    all.iter()
        .map(|one| ["type", "status", "reason", "message"].map(|key| text(one, key)))
        .collect()
}

/// Is there a condition of this type with this status?
pub fn has_condition<K: Serialize>(object: &K, kind: &str, status: &str) -> bool {
    conditions(object)
        .iter()
        .any(|[k, s, ..]| k == kind && s == status)
}

fn status<K: Serialize>(object: &K) -> String {
    let object = serde_json::to_value(object).unwrap_or_default();
    object
        .get("status")
        .map_or_else(|| "none".to_owned(), Value::to_string)
}

/// Tries again and again until `attempt` succeeds: for what cannot be watched, such as an answer over the network.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        if Instant::now() + LOOK_AGAIN >= deadline {
            let last = last.unwrap_or_else(|| anyhow::anyhow!("no attempt came to an end"));
            return Err(last).with_context(|| format!("{what}: not within {within:?}"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_found_wherever_they_are() {
        let route = json!({"status": {"parents": [
            {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}]},
            {"conditions": [{"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"}]},
        ]}});
        assert!(has_condition(&route, "Accepted", "True"));
        assert!(!has_condition(&route, "ResolvedRefs", "True"));
        assert_eq!(conditions(&route)[1][2], "BackendNotFound");
        assert!(conditions(&json!({})).is_empty());
    }

    #[test]
    fn a_deployment_is_available_when_the_present_spec_is() {
        let deployment = |status: Value| -> Deployment {
            let object = json!({"metadata": {"generation": 2},
                "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
            serde_json::from_value(object).expect("a Deployment")
        };
        let full = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert!(available(&deployment(full.clone())));
        for (key, value) in [
            ("observedGeneration", 1),
            ("availableReplicas", 1),
            ("replicas", 3),
        ] {
            let mut part = full.clone();
            part[key] = value.into();
            assert!(!available(&deployment(part)), "{key}");
        }
    }

    #[tokio::test]
    async fn eventually_gives_the_last_reason() {
        let mut left = 3;
        let value = eventually("counting", Duration::from_secs(1), async || {
            left -= 1;
            ensure!(left == 0, "{left} left");
            Ok(7)
        });
        assert_eq!(value.await.expect("in time"), 7);
        let error = eventually(
            "never",
            Duration::from_millis(100),
            async || -> Result<()> { bail!("no") },
        );
        let error = format!("{:#}", error.await.expect_err("too late"));
        assert_eq!(error, "never: not within 100ms: no");
    }
}
