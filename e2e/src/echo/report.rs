//! What the server says it saw, as `Key=Value` lines, and what a request may wish of the answer.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::HeaderMap;

use super::flags;

/// The most padding one answer may carry: enough to fill every window on the way several times.
const MAX_SIZE: u32 = 64 << 20;
/// The longest an answer may be held back.
const MAX_DELAY: Duration = Duration::from_secs(600);

/// Who this server is; the same for every connection.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) version: String,
    pub(crate) hostname: String,
}

/// One accepted connection as its answers tell it.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) server: std::sync::Arc<Server>,
    pub(crate) port: u16,
    pub(crate) peer: IpAddr,
}

/// The lines of one answer.
#[derive(Debug, Default)]
pub(crate) struct Lines(String);

impl Lines {
    pub(crate) fn add(&mut self, key: &str, value: impl AsRef<str>) {
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(value.as_ref());
        self.0.push('\n');
    }

    /// One line per header value; `name` spells the header's name.
    pub(crate) fn headers(&mut self, headers: &HeaderMap, name: impl Fn(&str) -> String) {
        for (key, value) in headers {
            self.add(
                "RequestHeader",
                format!(
                    "{}:{}",
                    name(key.as_str()),
                    String::from_utf8_lossy(value.as_bytes())
                ),
            );
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// A header's name as HTTP/1.1 programs like to spell it: `x-user` is `X-User`.
pub(crate) fn canonical(name: &str) -> String {
    let mut start = true;
    name.chars()
        .map(|c| {
            let shown = if start { c.to_ascii_uppercase() } else { c };
            start = c == '-';
            shown
        })
        .collect()
}

/// What a request wishes of its answer, by query (`?status=503`) or header (`x-echo-status: 503`).
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Wish {
    /// HTTP status, or gRPC status code.
    pub(crate) status: Option<u16>,
    /// Wait so long before the answer begins.
    pub(crate) delay: Duration,
    /// Bytes of padding after the lines.
    pub(crate) size: usize,
    /// End with trailers.
    pub(crate) trailers: bool,
    /// Send the request's body back while it comes, instead of lines.
    pub(crate) stream: bool,
}

impl Wish {
    /// Reads the wishes; one that cannot be read refuses them all, by name.
    pub(crate) fn read(query: Option<&str>, headers: &HeaderMap) -> Result<Self> {
        let mut wish = Self::default();
        for pair in query.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "1"));
            wish.set(key, value)
                .with_context(|| format!("query {pair:?}"))?;
        }
        for (key, value) in headers {
            if let Some(name) = key.as_str().strip_prefix("x-echo-") {
                let value = value.to_str().unwrap_or("not text");
                wish.set(name, value)
                    .with_context(|| format!("header {key}: {value}"))?;
            }
        }
        Ok(wish)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "status" => self.status = Some(value.parse()?),
            "delay" => {
                self.delay = flags::duration(value)?;
                ensure!(self.delay <= MAX_DELAY, "longer than {MAX_DELAY:?}");
            }
            "size" => {
                let size = flags::number(value)?;
                ensure!(size <= MAX_SIZE, "more than {MAX_SIZE}");
                self.size = usize::try_from(size)?;
            }
            "trailers" => self.trailers = flags::boolean(value)?,
            "stream" => self.stream = flags::boolean(value)?,
            _ => {} // the application's own
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_come_by_query_and_header() {
        let mut headers = HeaderMap::new();
        headers.insert("x-echo-size", "10".parse().expect("value"));
        let wish =
            Wish::read(Some("status=503&delay=20ms&other=x&trailers"), &headers).expect("readable");
        let expected = Wish {
            status: Some(503),
            delay: Duration::from_millis(20),
            size: 10,
            trailers: true,
            stream: false,
        };
        assert_eq!(wish, expected);
        for bad in [
            "status=x",
            "delay=1",
            "delay=1h",
            "size=-1",
            "size=99999999999",
            "trailers=maybe",
        ] {
            assert!(Wish::read(Some(bad), &HeaderMap::new()).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_spelled_as_go_does() {
        assert_eq!(canonical("x-header-set"), "X-Header-Set");
        assert_eq!(canonical("te"), "Te");
    }
}
