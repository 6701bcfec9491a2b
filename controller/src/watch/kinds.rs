//! What Kubernetes says goes into the index: one watch for each kind of the registry.

use std::ops::ControlFlow;

use kube::Client;
use kube::api::Api;
use mesh::process::shutdown::Supervisor;
use tokio::sync::mpsc::Sender;

use super::{Reporting, Watched};
use crate::index::event::{ObjectEvent, WatchEvent};
use crate::index::kinds::{self, ApiObject, ApiType, Kind, KindVisitor, WatchScope};
use crate::index::{Input, Settings};

/// Starts every watch. Each must live.
pub fn all(
    client: &Client,
    settings: &Settings,
    to: &Sender<Input>,
    reporting: &Reporting,
    tasks: &mut Supervisor,
) {
    let mut starter = Starter {
        client,
        to,
        reporting,
        tasks,
    };
    kinds::visit(settings, &mut starter);
}

struct Starter<'a> {
    client: &'a Client,
    to: &'a Sender<Input>,
    reporting: &'a Reporting,
    tasks: &'a mut Supervisor,
}

impl KindVisitor for Starter<'_> {
    fn visit<O: ApiObject>(
        &mut self,
        kind: Kind,
        scope: WatchScope,
        observe: fn(WatchEvent<O>) -> ObjectEvent,
    ) {
        let api = kind.api();
        let watched = Watched {
            labels: scope.labels,
            fields: scope.fields,
            ..self.reporting.watched(kind)
        };
        let to = self.to.clone();
        let on = move |event| {
            let input = Input::Object(observe(event));
            let to = to.clone();
            async move {
                match to.send(input).await {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }
        };
        let objects = Api::<O>::all_with(
            self.client.clone(),
            &O::DynamicType::of(api, scope.namespace.as_deref()),
        );
        self.tasks
            .must_live(api.plural, super::watch(watched, objects, on));
    }
}
