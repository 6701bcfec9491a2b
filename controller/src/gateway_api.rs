//! The Gateway API objects the controller reads, after version 1.7; those of 1.6 are read too.
//!
//! The types have every field of the experimental channel, also those that are not served yet: such a field is refused by
//! name where it stands. A field that is not here at all is found by [`read`], with its path.

mod filters;
mod gateway;
mod http;
mod read;
mod references;

pub use self::filters::{
    Cors, ExternalAuth, Fraction, Header, HeaderModifier, HttpFilter, PathModifier, RequestMirror,
    RequestRedirect, UrlRewrite,
};
pub use self::gateway::{
    AllowedRoutes, GatewayClassSpec, GatewaySpec, Infrastructure, Listener, RouteNamespaces,
};
pub use self::http::{
    HttpBackendRef, HttpMatch, HttpRouteSpec, HttpRule, PathMatch, Retry, SessionPersistence,
    Timeouts, ValueMatch,
};
pub use self::read::{Unreadable, read};
pub use self::references::{BackendObjectRef, ObjectRef, ParentRef};

/// The API group of Gateway, GatewayClass and the routes.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The version in which all three kinds are read.
pub const API_VERSION: &str = "gateway.networking.k8s.io/v1";
