//! The registry of watched kinds. A new kind is a file that implements [`Watched`] and one line below: its watch, table,
//! dirty set, readiness, line in the summary, group, version and plural follow from them.

use std::fmt::Debug;
use std::sync::Arc;

use kube::api::ApiResource;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::addresses::ByAddress;
use super::changes::{Resources, Write};
use super::common::Common;
use super::endpoints::SliceLookup;
use super::event::{ObjectEvent, WatchEvent};
use super::lookup::Lookup;
use super::names::Key;
use super::output::Output;
use super::pods::PodLookup;
use super::services::ServiceLookup;
use super::tables::{SecondaryIndex, Table};
use super::{Index, Settings, State};
use crate::gateway_api::GROUP;
use crate::index::desired::Writer;

/// What Kubernetes calls a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiKind {
    /// Empty for the core kinds.
    pub group: &'static str,
    /// Of the API.
    pub version: &'static str,
    /// `Pod`
    pub kind: &'static str,
    /// `pods`
    pub plural: &'static str,
    /// How much of an object is fetched.
    pub fetch: Fetch,
}

/// How much of an object is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// All of it.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// The part of a kind's objects that is watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchScope {
    /// Only in this namespace; for kinds that are read as `DynamicObject`.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: Option<String>,
    /// Field selector.
    pub fields: Option<String>,
}

/// An object as the API server sends it.
pub trait ApiObject:
    kube::Resource<DynamicType: ApiType> + DeserializeOwned + Clone + Debug + Send + 'static
{
}

/// What kube needs to know at run time about a kind.
pub trait ApiType: Clone + Send + Sync + 'static {
    /// For kinds that say it in their Rust type this is nothing.
    fn of(kind: &ApiKind, namespace: Option<&str>) -> Self;
}

/// One watched kind: what is kept of an object, and what follows from it.
pub(super) trait Watched: Stored {
    /// What the API server sends.
    type Object: ApiObject;
    /// How it is called there.
    const API: ApiKind;

    /// What is kept of an object; `None`: nothing, as if it were not there. Runs on the watch's task.
    fn parse(object: &Self::Object) -> Option<Self>;

    /// Which objects are watched.
    fn scope(_settings: &Settings) -> WatchScope {
        WatchScope::default()
    }

    /// The kinds whose watches must be as far as this change before it counts: something that it names, or that names it,
    /// may be on its way there. The table still holds what was before.
    fn waits_for(_state: &State, _key: &Key, _now: Option<&Self>) -> &'static [Kind] {
        &[]
    }

    /// Takes over what only the former version of the same object knows.
    fn inherit(&mut self, _before: &Self) {}

    /// Takes what it has in common with others from them.
    fn share(&mut self, _common: &mut Common) {}

    /// Marks what looks at this object. The table already holds `now`; the object itself is marked by the caller.
    fn touch(state: &mut State, key: &Key, before: Option<&Self>, now: Option<&Self>);

    /// Brings what is derived from the object up to date, before its resources and status are computed.
    fn derive(_state: &mut State, _key: &Key, _output: &mut Output) {}

    /// What proxies are told because of it.
    fn resources(_state: &State, _key: &Key) -> Resources {
        Resources::default()
    }

    /// The write that its status needs.
    fn status(_state: &State, _key: &Key) -> Option<Write> {
        None
    }

    /// Which replica writes that.
    fn writer(_state: &State, _key: &Key) -> Writer {
        Writer::Leader
    }
}

/// Where the registry keeps a kind.
pub(super) trait Stored: Debug + PartialEq + Send + Sync + Sized + 'static {
    /// Its name here.
    const KIND: Kind;
    /// What finds its objects by something else than their key.
    type Lookup: SecondaryIndex<Self>;
    /// Its objects.
    fn table(state: &State) -> &Table<Self>;
    /// Its objects.
    fn table_mut(state: &mut State) -> &mut Table<Self>;
}

/// Is shown each kind of the registry.
pub trait KindVisitor {
    /// One kind, and what makes the index's event of a watch's.
    fn visit<O: ApiObject>(
        &mut self,
        kind: Kind,
        scope: WatchScope,
        observe: fn(WatchEvent<O>) -> ObjectEvent,
    );
}

/// Each kind's name here, its field in the tables, the type that is kept of an object and what finds it by more than its key.
/// The order is that in which they are settled: what a kind's `derive` marks stands after it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $table:ident: $type:ty [$lookup:ty],)*) => {
        /// The watched kinds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// What Kubernetes calls it.
            pub fn api(self) -> &'static ApiKind {
                match self {
                    $(Self::$kind => &<$type as Watched>::API,)*
                }
            }
        }

        /// The objects of each kind.
        #[derive(Debug, Default)]
        pub(super) struct Tables {
            $(pub(super) $table: Table<$type>,)*
        }

        $(impl Stored for $type {
            const KIND: Kind = Kind::$kind;
            type Lookup = $lookup;

            fn table(state: &State) -> &Table<Self> {
                &state.tables.$table
            }

            fn table_mut(state: &mut State) -> &mut Table<Self> {
                &mut state.tables.$table
            }
        })*

        impl Tables {
            /// Whether every kind has told all of its objects once.
            pub(super) fn listed(&self) -> bool {
                $(self.$table.listed() &&)* true
            }

            /// Whether changes are set aside.
            pub(super) fn wait(&self) -> bool {
                $(!self.$table.ahead.is_empty() ||)* false
            }

            /// Everything is to be looked at again.
            pub(super) fn mark_all(&mut self) {
                $(self.$table.mark_all();)*
            }

            /// How much is known, by plural.
            pub(super) fn summary(&self) -> serde_json::Map<String, Value> {
                let mut all = serde_json::Map::new();
                $(all.insert(Kind::$kind.api().plural.to_owned(), self.$table.len().into());)*
                all
            }
        }

        impl State {
            /// Takes in what has waited long enough, of every kind.
            pub(super) fn settle_all_ahead(&mut self) {
                $(self.settle_ahead::<$type>();)*
            }

            /// A turn has passed.
            pub(super) fn turn_all(&mut self) {
                $(self.turn::<$type>();)*
            }
        }

        impl Index {
            /// Computes what is marked, kind after kind.
            pub(super) fn settle_kinds(&mut self) {
                $(self.settle_kind::<$type>();)*
            }
        }

        /// Shows each kind to the visitor.
        pub fn visit(settings: &Settings, visitor: &mut impl KindVisitor) {
            $(visitor.visit(
                Kind::$kind,
                <$type as Watched>::scope(settings),
                ObjectEvent::observe::<$type>,
            );)*
        }
    };
}

kinds! {
    /// v1
    Namespace => namespaces: super::namespaces::Namespace [Lookup<Key>],
    /// v1
    Node => nodes: super::nodes::Node [ByAddress],
    /// gateway.networking.k8s.io/v1
    GatewayClass => classes: super::gateways::class::Class [()],
    /// apps/v1
    Deployment => deployments: super::owners::Deployment [()],
    /// apps/v1
    ReplicaSet => replica_sets: super::owners::ReplicaSet [()],
    /// v1
    ServiceAccount => service_accounts: super::owners::ServiceAccount [()],
    /// gateway.networking.k8s.io/v1
    Gateway => gateways: super::gateways::Gateway [Lookup<Arc<str>>],
    /// v1
    Service => services: super::services::Service [ServiceLookup],
    /// discovery.k8s.io/v1
    EndpointSlice => slices: super::endpoints::Slice [SliceLookup],
    /// v1
    Pod => pods: super::pods::Pod [PodLookup],
    /// gateway.networking.k8s.io/v1
    HttpRoute => http_routes: super::routes::http::HttpRoute [()],
    /// v1
    ConfigMap => accepted: super::accepted::Kept [()],
}

// === impl ApiKind ===

impl ApiKind {
    /// A kind of Kubernetes' own first group.
    pub const fn core(kind: &'static str, plural: &'static str) -> Self {
        Self::of_group("", kind, plural)
    }

    /// A kind of the Gateway API.
    pub const fn gateway(kind: &'static str, plural: &'static str) -> Self {
        Self::of_group(GROUP, kind, plural)
    }

    /// A kind of this group, in version 1.
    pub const fn of_group(group: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            group,
            version: "v1",
            kind,
            plural,
            fetch: Fetch::Whole,
        }
    }

    /// The same kind, of which only metadata are fetched.
    pub const fn metadata(self) -> Self {
        Self {
            fetch: Fetch::Metadata,
            ..self
        }
    }

    /// `group/version`
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// For kube.
    pub fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

// === impl ApiObject, ApiType ===

impl<O> ApiObject for O where
    O: kube::Resource<DynamicType: ApiType> + DeserializeOwned + Clone + Debug + Send + 'static
{
}

impl ApiType for () {
    fn of(_kind: &ApiKind, _namespace: Option<&str>) -> Self {}
}

impl ApiType for ApiResource {
    fn of(kind: &ApiKind, namespace: Option<&str>) -> Self {
        let mut resource = kind.resource();
        if let Some(namespace) = namespace {
            // Which namespace is a part of the address, and kube lets only namespaced types say it.
            resource.plural = format!("namespaces/{namespace}/{}", resource.plural);
        }
        resource
    }
}
