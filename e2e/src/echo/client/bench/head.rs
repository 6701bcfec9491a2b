//! The head of an HTTP/1.1 answer, as far as a load needs it: where it ends, whether it is good, how much follows.

use anyhow::{Context as _, Result, bail, ensure};

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The head's own bytes, the empty line included.
    pub(super) length: usize,
    /// The body's bytes.
    pub(super) body: usize,
}

impl Head {
    /// Reads it from the beginning of an answer; nothing while the end is not there yet.
    ///
    /// An answer that is no success, or does not say how long it is, is an error: a load counts only whole good ones.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default())
            .context("a head that is no text")?;
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 200"), "answered {status:?}");
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                bail!("what is {line:?} in a head?");
            };
            if name.eq_ignore_ascii_case("content-length") {
                let body = value.trim().parse().with_context(|| format!("{line:?}"))?;
                return Ok(Some(Self {
                    length: end + 4,
                    body,
                }));
            }
        }
        bail!("an answer that does not say how long it is")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-type: a\r\nContent-Length:  12\r\ndate: x\r\n\r\nhello";
        let length = answer.len() - b"hello".len();
        for cut in 0..length {
            let part = Head::parse(&answer[..cut]).expect("no error while it comes");
            assert_eq!(part, None, "{cut}");
        }
        let head = Head::parse(answer).expect("good");
        assert_eq!(head, Some(Head { length, body: 12 }));
    }

    #[test]
    fn what_is_no_success_or_has_no_length_is_refused() {
        for bad in [
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        ] {
            assert!(Head::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
