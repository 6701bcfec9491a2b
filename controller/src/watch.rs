//! One line per kind: what Kubernetes says goes into the index.

use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use mesh::process::shutdown::Supervisor;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use crate::gateway_api::GROUP;
use crate::index::names::Key;
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
    let gateway = |kind: &str, plural: &str| {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            api_version: crate::gateway_api::API_VERSION.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::<DynamicObject>::all_with(client.clone(), &resource)
    };
    tasks.must_live(
        "watch namespaces",
        watch(
            "namespaces",
            Api::<core::Namespace>::all(client.clone()),
            to.clone(),
            Input::Namespace,
        ),
    );
    tasks.must_live(
        "watch nodes",
        watch(
            "nodes",
            Api::<core::Node>::all(client.clone()),
            to.clone(),
            Input::Node,
        ),
    );
    tasks.must_live(
        "watch pods",
        watch(
            "pods",
            Api::<core::Pod>::all(client.clone()),
            to.clone(),
            Input::Pod,
        ),
    );
    tasks.must_live(
        "watch services",
        watch(
            "services",
            Api::<core::Service>::all(client.clone()),
            to.clone(),
            Input::Service,
        ),
    );
    tasks.must_live(
        "watch slices",
        watch(
            "slices",
            Api::<EndpointSlice>::all(client.clone()),
            to.clone(),
            Input::EndpointSlice,
        ),
    );
    tasks.must_live(
        "watch classes",
        watch(
            "classes",
            gateway("GatewayClass", "gatewayclasses"),
            to.clone(),
            Input::GatewayClass,
        ),
    );
    tasks.must_live(
        "watch gateways",
        watch(
            "gateways",
            gateway("Gateway", "gateways"),
            to.clone(),
            Input::Gateway,
        ),
    );
    tasks.must_live(
        "watch routes",
        watch(
            "routes",
            gateway("HTTPRoute", "httproutes"),
            to.clone(),
            Input::HttpRoute,
        ),
    );
}

async fn watch<K>(kind: &'static str, api: Api<K>, to: Sender<Told>, input: fn(Event<K>) -> Input)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut all = Vec::new();
    let mut whole = false;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(watcher::Event::Init) => {
                all.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                all.push(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => Event::Reset(std::mem::take(&mut all)),
            Ok(watcher::Event::Apply(object)) => Event::Apply(Box::new(object)),
            Ok(watcher::Event::Delete(object)) => Event::Delete(Key::of(object.meta())),
            // Later, it is an API server that does not know its kinds yet: what is known stays.
            Err(error) if absent(&error) && !whole => {
                tracing::warn!(
                    kind,
                    "this kind is not installed: the mesh works without it, and looks for it again"
                );
                Event::Reset(Vec::new())
            }
            Err(error) => {
                tracing::warn!(kind, %error, "watch failed; trying again");
                continue;
            }
        };
        let reset = matches!(event, Event::Reset(_));
        if to.send(Told::Input(input(event))).await.is_err() {
            return;
        }
        if reset
            && !std::mem::replace(&mut whole, true)
            && to.send(Told::Whole(kind)).await.is_err()
        {
            return;
        }
    }
}

/// Whether the API server does not know the kind.
fn absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
