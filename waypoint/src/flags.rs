//! Response flags: in two letters why an answer is not the endpoint's own, as dashboards know them.

/// A request met no route.
pub(crate) const NO_ROUTE: &str = "NR";
/// There is no healthy endpoint.
pub(crate) const NO_ENDPOINT: &str = "UH";
/// No endpoint could be connected to.
pub(crate) const UNREACHABLE: &str = "UF";
/// An endpoint went away in mid-request.
pub(crate) const TERMINATED: &str = "UC";
/// The client went away.
pub(crate) const CLIENT_GONE: &str = "DC";
/// The request is not understood.
pub(crate) const BAD_REQUEST: &str = "DPE";
/// The client has its share of what all clients may have.
pub(crate) const OVERLOADED: &str = "OM";
/// What the client's connection stood on is gone: its certificate, or its place in the mesh. As node proxies say it.
pub(crate) const DENIED: &str = "DENY";
/// The backend reference does not resolve.
pub(crate) const NO_BACKEND: &str = "NC";
