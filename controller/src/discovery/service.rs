//! The gRPC service: as `mesh::proto` describes it, but what it sends is encoded already.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use mesh::proto::discovery::DeltaDiscoveryRequest;
use mesh::xds::session::Push;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Discovery;

/// The one method of the aggregated discovery service that there is.
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Discovery as a server serves it.
#[derive(Clone)]
pub struct DiscoveryServer {
    discovery: Discovery,
    max_request: usize,
}

/// One call.
struct Call(Discovery);

/// What goes out on one stream.
pub(super) type Pushes = Pin<Box<dyn Stream<Item = Result<Push, Status>> + Send>>;

// === impl DiscoveryServer ===

impl DiscoveryServer {
    /// No message of a caller is longer than `max_request`.
    pub fn new(discovery: Discovery, max_request: usize) -> Self {
        Self {
            discovery,
            max_request,
        }
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self {
            discovery,
            max_request,
        } = self.clone();
        Box::pin(async move {
            if request.uri().path() != DELTA {
                let status = Status::unimplemented("only DeltaAggregatedResources is served");
                return Ok(status.into_http());
            }
            let codec = ProstCodec::<Push, DeltaDiscoveryRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(max_request), None);
            Ok(grpc.streaming(Call(discovery), request).await)
        })
    }
}

// === impl Call ===

impl StreamingService<DeltaDiscoveryRequest> for Call {
    type Response = Push;
    type ResponseStream = Pushes;
    type Future = BoxFuture<Response<Pushes>, Status>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let discovery = self.0.clone();
        Box::pin(async move { discovery.open(request).await.map(Response::new) })
    }
}
