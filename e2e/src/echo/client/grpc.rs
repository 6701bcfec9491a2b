//! gRPC calls on one connection.

use anyhow::{Context, Result, anyhow};
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use super::{Ask, text};
use crate::echo::Answer;
use crate::echo::proto::EchoRequest;
use crate::echo::proto::echo_test_service_client::EchoTestServiceClient;

pub(super) use tonic::transport::Channel;

/// The largest answer taken.
const MAX_MESSAGE: usize = 256 << 20;

/// Connects without TLS; the URL's host and port are the calls' authority.
pub(super) async fn connect(ask: &Ask) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", ask.authority))
        .context("URL")?
        .tcp_nodelay(true);
    endpoint
        .connect()
        .await
        .with_context(|| format!("connect to {}", ask.authority))
}

/// One unary call. A status other than OK is an error.
pub(super) async fn ask(channel: &Channel, ask: &Ask) -> Result<Answer> {
    let mut client =
        EchoTestServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let mut request = tonic::Request::new(EchoRequest {
        message: ask.message.clone(),
    });
    *request.metadata_mut() = MetadataMap::from_headers(ask.headers.iter().cloned().collect());
    let response = client
        .echo(request)
        .await
        .map_err(|status| anyhow!("gRPC status {:?}: {}", status.code(), status.message()))?;
    let mut answer = ask.answer(200);
    let headers = response.metadata().clone().into_headers();
    answer.headers = headers
        .iter()
        .map(|(key, value)| (key.to_string(), text(value)))
        .collect();
    answer.body = response
        .into_inner()
        .message
        .lines()
        .map(str::to_owned)
        .collect();
    Ok(answer)
}
