//! Events: what Kubernetes and the mesh tell a user about an object.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;

use super::Namespace;
use crate::probe;

/// Events shown when something did not come about.
const MAX_SHOWN: usize = 20;

impl Namespace {
    /// The Events about the object of this name, as `Reason: message`.
    pub async fn events(&self, object: &str) -> Result<Vec<String>> {
        let about = ListParams::default().fields(&format!("involvedObject.name={object}"));
        let events = self.api::<Event>().list(&about).await?;
        Ok(events.items.into_iter().map(|event| said(&event)).collect())
    }

    /// Waits for an Event about the object of this name that contains `text`.
    pub async fn wait_event(&self, object: &str, text: &str, within: Duration) -> Result<String> {
        let what = format!("an Event of {object} with {text:?}");
        probe::eventually(&what, within, async || {
            let all = self.events(object).await?;
            let found = all.iter().find(|event| event.contains(text)).cloned();
            ensure!(found.is_some(), "only {all:?}");
            Ok(found.unwrap_or_default())
        })
        .await
    }

    /// The warnings in this namespace, for an error about what did not come about in it.
    pub(super) async fn troubles(&self) -> String {
        let Ok(events) = self
            .api::<Event>()
            .list(&ListParams::default().fields("type=Warning"))
            .await
        else {
            return "its Events cannot be read".to_owned();
        };
        let all: Vec<String> = events
            .items
            .iter()
            .take(MAX_SHOWN)
            .map(|event| {
                format!(
                    "\n  {}: {}",
                    event.involved_object.name.as_deref().unwrap_or("?"),
                    said(event)
                )
            })
            .collect();
        if all.is_empty() {
            "no warning among its Events".to_owned()
        } else {
            format!("its warnings:{}", all.concat())
        }
    }
}

fn said(event: &Event) -> String {
    let text = |of: &Option<String>| of.clone().unwrap_or_default();
    format!("{}: {}", text(&event.reason), text(&event.message))
}
