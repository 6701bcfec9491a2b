//! Makes a GatewayClass of ours that does not exist.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::json;

use super::outcome::Outcome;
use crate::gateway_api::{API_VERSION, GROUP};
use crate::index::names::CONTROLLER_NAME;

/// Creates it. If somebody else was faster it stays theirs.
pub(super) async fn reconcile(client: &Client, name: &str) -> Outcome {
    let class = json!({
        "apiVersion": API_VERSION,
        "kind": "GatewayClass",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "ambit"}},
        "spec": {
            "controllerName": CONTROLLER_NAME,
            "description": "L7 proxy for what names it with istio.io/use-waypoint",
        },
    });
    let class: DynamicObject = match serde_json::from_value(class) {
        Ok(class) => class,
        Err(error) => return kube::Error::SerdeError(error).into(),
    };
    let created = classes(client).create(&PostParams::default(), &class).await;
    created.into()
}

/// All of them.
pub(crate) fn classes(client: &Client) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: "GatewayClass".to_owned(),
        plural: "gatewayclasses".to_owned(),
    };
    Api::all_with(client.clone(), &resource)
}
