//! gRPC: the same lines as over HTTP, in the message.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Code, Request, Response, Status};

use crate::echo::proto::echo_test_service_server::EchoTestService;
use crate::echo::proto::{EchoRequest, EchoResponse};
use crate::echo::report::{Accepted, Lines, Wish};

/// The head of the call, which tonic does not keep.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) authority: String,
    pub(super) path: String,
}

/// One connection's service.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Accepted);

#[tonic::async_trait]
impl EchoTestService for Service {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let (lines, wish) = self.look(&request).await?;
        let mut text = lines;
        text.push_str("Echo=");
        text.push_str(&request.get_ref().message.replace('\n', " "));
        text.push('\n');
        if wish.size > 0 {
            text.push_str("Padding=");
            text.extend(std::iter::repeat_n('x', wish.size));
            text.push('\n');
        }
        Ok(Response::new(EchoResponse { message: text }))
    }

    type ChatStream = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

    async fn chat(
        &self,
        request: Request<tonic::Streaming<EchoRequest>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (message, _) = self.look(&request).await?;
        let first = stream::iter([Ok(EchoResponse { message })]);
        let back = request
            .into_inner()
            .map(|sent| sent.map(|EchoRequest { message }| EchoResponse { message }));
        Ok(Response::new(Box::pin(first.chain(back))))
    }
}

impl Service {
    /// The lines, and the wishes that apply to any call: the delay and the status.
    async fn look<T>(&self, request: &Request<T>) -> Result<(String, Wish), Status> {
        let head = request.extensions().get::<Head>().cloned();
        let headers = request.metadata().clone().into_headers();
        let wish = Wish::read(None, &headers)
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tokio::time::sleep(wish.delay).await;
        if let Some(code) = wish.status.filter(|code| *code != 0) {
            return Err(Status::new(
                Code::from_i32(code.into()),
                "as x-echo-status asked",
            ));
        }
        let Accepted { server, port, peer } = &self.0;
        let mut lines = Lines::default();
        lines.add("StatusCode", "200");
        lines.add("ServiceVersion", &server.version);
        lines.add("ServicePort", port.to_string());
        if let Some(head) = head {
            lines.add("Host", &head.authority);
            lines.add("RequestHeader", format!(":authority:{}", head.authority));
            lines.add("URL", head.path);
        }
        lines.add("Method", "POST");
        lines.add("Proto", "HTTP/2.0");
        lines.add("IP", peer.to_string());
        lines.headers(&headers, str::to_owned);
        lines.add("Hostname", &server.hostname);
        Ok((lines.into_text(), wish))
    }
}
