//! One HTTP connection, and requests on it.

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Ask, Scheme, dial, text};
use crate::echo::Answer;

/// An answer's body is kept whole, so it may not be endless.
const MAX_BODY: usize = 256 << 20;

/// An open connection.
pub(super) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Whether the other side still takes requests on it, as far as it has said.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Http1(sender) => !sender.is_closed(),
            Self::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Opens a connection of the kind that `ask` wants.
    pub(super) async fn open(ask: &Ask) -> Result<Self> {
        match (ask.scheme, ask.http2) {
            (Scheme::Https, false) => Self::over(dial::tls(ask, b"http/1.1").await?, false).await,
            (Scheme::Https, true) => Self::over(dial::tls(ask, b"h2").await?, true).await,
            (_, http2) => Self::over(dial::tcp(ask).await?, http2).await,
        }
    }

    async fn over<S>(stream: S, http2: bool) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // How the connection ends is told to the request under way; the driver's own word adds nothing.
        if http2 {
            let (sender, driver) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            Ok(Self::Http2(sender))
        } else {
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            Ok(Self::Http1(sender))
        }
    }

    /// Asks; `last` says that nothing follows on this connection.
    pub(super) async fn ask(&mut self, ask: &Ask, last: bool) -> Result<Answer> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request(ask, false, last)?).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request(ask, true, last)?).await?
            }
        };
        read(ask, response).await
    }
}

fn request(ask: &Ask, http2: bool, last: bool) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::from(ask.message.clone()));
    request.method_mut().clone_from(&ask.method);
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static("ambit-echo"));
    for (key, value) in &ask.headers {
        headers.append(key, value.clone());
    }
    let host = match headers.remove(HOST) {
        Some(host) => host,
        None => HeaderValue::try_from(&ask.authority)?,
    };
    if http2 {
        let scheme = if ask.scheme == Scheme::Https {
            "https"
        } else {
            "http"
        };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(host.as_bytes())
            .path_and_query(&ask.path);
        *request.uri_mut() = uri.build().context("URL")?;
    } else {
        headers.insert(HOST, host);
        if last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        *request.uri_mut() = ask.path.parse().context("path")?;
    }
    Ok(request)
}

async fn read(ask: &Ask, response: Response<Incoming>) -> Result<Answer> {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.context("body cut off")?.into_data() {
            Ok(data) => {
                ensure!(
                    bytes.len() + data.len() <= MAX_BODY,
                    "a body of more than {MAX_BODY} bytes"
                );
                bytes.extend_from_slice(&data);
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    let mut answer = ask.answer(head.status.as_u16());
    answer.headers = pairs(&head.headers);
    answer.trailers = pairs(&trailers);
    answer.body = String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect();
    Ok(answer)
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(key, value)| (key.to_string(), text(value)))
        .collect()
}
