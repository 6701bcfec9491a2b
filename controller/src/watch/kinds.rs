//! One line per kind: what Kubernetes says goes into the index.

use std::ops::ControlFlow;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource};
use kube::{Client, Resource};
use mesh::process::shutdown::Supervisor;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::{WatchEvent, Watched};
use crate::gateway_api::GROUP;
use crate::index::{Event, Input};

/// How many kinds are watched: the index is whole when each has told all of its objects once.
pub const KINDS: usize = 8;

/// What the watches say.
#[derive(Debug)]
pub enum Told {
    /// For the index.
    Input(Input),
    /// One kind has told all of its objects for the first time.
    Whole(&'static str),
}

/// Starts every watch. Each must live.
pub fn all(client: &Client, to: &Sender<Told>, tasks: &mut Supervisor) {
    macro_rules! core {
        ($kind:literal, $of:ty, $input:expr) => {
            let api = Api::<$of>::all(client.clone());
            tasks.must_live(
                concat!("watch ", $kind),
                kind($kind, api, to.clone(), $input),
            );
        };
    }
    macro_rules! gateway {
        ($kind:literal, $plural:literal, $input:expr) => {
            let api = Api::all_with(client.clone(), &gateway_resource($kind, $plural));
            let watch = kind($plural, api, to.clone(), $input);
            tasks.must_live(concat!("watch ", $plural), watch);
        };
    }
    core!("namespaces", core::Namespace, Input::Namespace);
    core!("nodes", core::Node, Input::Node);
    core!("pods", core::Pod, Input::Pod);
    core!("services", core::Service, Input::Service);
    core!("endpointslices", EndpointSlice, Input::EndpointSlice);
    gateway!("GatewayClass", "gatewayclasses", Input::GatewayClass);
    gateway!("Gateway", "gateways", Input::Gateway);
    gateway!("HTTPRoute", "httproutes", Input::HttpRoute);
}

fn gateway_resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: crate::gateway_api::API_VERSION.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

async fn kind<K>(kind: &'static str, api: Api<K>, to: Sender<Told>, input: fn(Event<K>) -> Input)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut all = Vec::new();
    let mut whole = false;
    let on = |event| {
        let event = match event {
            WatchEvent::Begin => {
                all.clear();
                None
            }
            WatchEvent::Item(object) => {
                all.push(object);
                None
            }
            WatchEvent::End { .. } => Some(Event::Reset(std::mem::take(&mut all))),
            WatchEvent::Absent => Some(Event::Reset(Vec::new())),
            WatchEvent::Apply(object) => Some(Event::Apply(Box::new(object))),
            WatchEvent::Delete { key, .. } => Some(Event::Delete(key)),
            WatchEvent::Progress { .. } => None,
        };
        let first = matches!(event, Some(Event::Reset(_))) && !std::mem::replace(&mut whole, true);
        let input = event.map(|event| Told::Input(input(event)));
        let said = input.into_iter().chain(first.then_some(Told::Whole(kind)));
        let said: Vec<Told> = said.collect();
        let to = to.clone();
        async move {
            for one in said {
                if to.send(one).await.is_err() {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        }
    };
    super::watch(Watched::all(kind), api, on).await;
}
