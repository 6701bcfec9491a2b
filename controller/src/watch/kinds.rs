//! What Kubernetes says goes into the index: one watch for each kind of the registry.

use std::ops::ControlFlow;
use std::time::Duration;

use kube::Client;
use kube::api::Api;
use mesh::process::shutdown::Supervisor;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, sleep_until};

use super::{Reporting, Watched};
use crate::index::event::{ObjectEvent, WatchEvent};
use crate::index::kinds::{self, ApiObject, ApiType, Kind, KindVisitor, WatchScope};
use crate::index::{Input, Settings};

/// Routes name Services, and each kind comes on a watch of its own, of which one may be late: a route waits so long for the
/// Service that was made before it. Until then the generation before it stays in force.
const ROUTES_WAIT: Duration = Duration::from_millis(100);
/// Events of routes that wait.
const WAITING: usize = 1024;

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

impl Starter<'_> {
    /// Hands events on when they are due, in the order in which they came.
    fn when_due(&mut self, kind: &'static str) -> Sender<(Instant, Input)> {
        let (wait, mut waiting) = mpsc::channel::<(Instant, Input)>(WAITING);
        let to = self.to.clone();
        self.tasks
            .must_live(format!("{kind} in order"), async move {
                while let Some((due, input)) = waiting.recv().await {
                    sleep_until(due).await;
                    if to.send(input).await.is_err() {
                        return;
                    }
                }
            });
        wait
    }
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
        let waits = (kind == Kind::HttpRoute).then(|| self.when_due(api.plural));
        let on = move |event| {
            let input = Input::Object(observe(event));
            let (to, waits) = (to.clone(), waits.clone());
            async move {
                let sent = match waits {
                    Some(waits) => waits
                        .send((Instant::now() + ROUTES_WAIT, input))
                        .await
                        .is_ok(),
                    None => to.send(input).await.is_ok(),
                };
                match sent {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
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
