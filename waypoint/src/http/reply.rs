//! What a client is told where no endpoint answers: a status and a short text, or the same in gRPC.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use crate::access_log::Record;

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The request goes nowhere.
    Failure {
        status: StatusCode,
        /// For metrics and logs, in the words of existing dashboards.
        flags: &'static str,
        /// For people.
        reason: Cow<'static, str>,
    },
    /// The client is sent elsewhere.
    Redirect {
        status: StatusCode,
        location: String,
    },
}

// === impl Reply ===

impl Reply {
    pub(crate) fn failure(
        status: StatusCode,
        flags: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Failure {
            status,
            flags,
            reason: reason.into(),
        }
    }

    /// The answer; `record` is closed by it.
    pub(crate) fn respond(self, mut record: Record) -> Response<ResponseBody> {
        match self {
            Self::Redirect { status, location } => {
                record.status(status);
                let mut response = Response::new(ResponseBody::text("", record));
                *response.status_mut() = status;
                // What is no header value came from the request's own path, whose bytes were accepted as one.
                if let Ok(location) = HeaderValue::from_str(&location) {
                    response.headers_mut().insert(header::LOCATION, location);
                }
                response
            }
            Self::Failure {
                status,
                flags,
                reason,
            } => {
                record.failed(flags, &reason);
                if record.is_grpc() {
                    grpc(status, &reason, record)
                } else {
                    text(status, &reason, record)
                }
            }
        }
    }
}

fn text(status: StatusCode, reason: &str, mut record: Record) -> Response<ResponseBody> {
    record.status(status);
    let mut response = Response::new(ResponseBody::text(format!("{reason}\n"), record));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

/// A failed call is an answered request whose status is in its headers ("trailers only").
fn grpc(status: StatusCode, reason: &str, mut record: Record) -> Response<ResponseBody> {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert("grpc-status", HeaderValue::from(grpc_code(status)));
    if let Ok(message) = HeaderValue::from_str(&escaped(reason)) {
        headers.insert("grpc-message", message);
    }
    record.status(StatusCode::OK);
    record.grpc_status(&headers);
    let mut response = Response::new(ResponseBody::text("", record));
    *response.headers_mut() = headers;
    response
}

/// gRPC's own mapping of HTTP statuses, except that a broken backend reference is UNAVAILABLE by the Gateway API.
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 500 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// `grpc-message` is percent-encoded.
fn escaped(reason: &str) -> String {
    reason
        .bytes()
        .map(|byte| match byte {
            b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_clients_read_the_status_of_the_gateway_api() {
        let codes = [
            (404, 12),
            (500, 14),
            (503, 14),
            (504, 14),
            (400, 13),
            (501, 2),
        ];
        for (status, code) in codes {
            assert_eq!(
                grpc_code(StatusCode::from_u16(status).expect("a status")),
                code,
                "{status}"
            );
        }
        assert_eq!(escaped("a b%\n\u{e9}"), "a b%25%0A%C3%A9");
    }
}
