//! One answer as the client prints it, and reads it back from its own output.

use std::fmt::{self, Write as _};

/// What one request got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The URL asked for.
    pub url: String,
    /// The headers sent on request (not those every request has).
    pub sent: Vec<(String, String)>,
    /// HTTP status; 200 for gRPC and TCP answers.
    pub status: u16,
    /// The answer's headers (gRPC: its metadata).
    pub headers: Vec<(String, String)>,
    /// The answer's trailers.
    pub trailers: Vec<(String, String)>,
    /// The body's lines, most of them `Key=Value` as the server saw the request.
    pub body: Vec<String>,
}

impl Answer {
    /// The first value of `key` among the body's lines.
    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields(key).next()
    }

    /// All values of `key` among the body's lines.
    pub fn fields<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.body.iter().filter_map(move |line| {
            line.split_once('=')
                .filter(|(k, _)| *k == key)
                .map(|(_, v)| v)
        })
    }

    /// The server's host name: its pod.
    pub fn hostname(&self) -> Option<&str> {
        self.field("Hostname")
    }

    /// A header as the server saw it; values of a repeated header are joined with `,`.
    pub fn request_header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .fields("RequestHeader")
            .filter_map(|line| {
                split_header(line)
                    .filter(|(k, _)| k.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v)
            })
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// Writes the answer to request `index` as lines, without a blank line after them.
    pub fn write(&self, index: usize, out: &mut impl fmt::Write) -> fmt::Result {
        writeln!(out, "[{index}] Url={}", self.url)?;
        for (key, value) in &self.sent {
            writeln!(out, "[{index}] Header={key}:{value}")?;
        }
        writeln!(out, "[{index}] StatusCode={}", self.status)?;
        for (key, value) in &self.headers {
            writeln!(out, "[{index}] ResponseHeader={key}:{value}")?;
        }
        for line in &self.body {
            writeln!(out, "[{index} body] {line}")?;
        }
        for (key, value) in &self.trailers {
            writeln!(out, "[{index}] ResponseTrailer={key}:{value}")?;
        }
        Ok(())
    }

    /// Every answer in a client's output, in the order of the output.
    pub fn parse_all(output: &str) -> Vec<Answer> {
        let mut answers: Vec<(&str, Answer)> = Vec::new();
        for line in output.lines() {
            let Some((mark, text)) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) else {
                continue;
            };
            let index = mark.strip_suffix(" body").unwrap_or(mark);
            if answers.last().is_none_or(|(last, _)| *last != index) {
                answers.push((index, Answer::default()));
            }
            if let Some((_, answer)) = answers.last_mut() {
                answer.read(mark.ends_with(" body"), text);
            }
        }
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn read(&mut self, body: bool, text: &str) {
        if body {
            self.body.push(text.to_owned());
            return;
        }
        let header = |value: &str| split_header(value).map(|(k, v)| (k.to_owned(), v.to_owned()));
        match text.split_once('=') {
            Some(("Url", value)) => value.clone_into(&mut self.url),
            Some(("Header", value)) => self.sent.extend(header(value)),
            Some(("StatusCode", value)) => self.status = value.parse().unwrap_or_default(),
            Some(("ResponseHeader", value)) => self.headers.extend(header(value)),
            Some(("ResponseTrailer", value)) => self.trailers.extend(header(value)),
            _ => {}
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(0, &mut text)?;
        f.write_char('\n')?;
        f.write_str(&text)
    }
}

/// Splits `K:V`; the key may be a pseudo header (`:authority`).
pub(crate) fn split_header(line: &str) -> Option<(&str, &str)> {
    let from = usize::from(line.starts_with(':'));
    let at = line.get(from..)?.find(':')? + from;
    Some((line.get(..at)?, line.get(at + 1..)?.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let one = Answer {
            url: "http://echo/a?b=c".into(),
            sent: vec![("X-A".into(), "1:2".into())],
            status: 503,
            headers: vec![("x-b".into(), "c".into())],
            trailers: vec![("x-t".into(), "1".into())],
            body: vec![
                "Hostname=pod-1".into(),
                "RequestHeader=:authority:echo:7070".into(),
                String::new(),
                "RequestHeader=X-A:1".into(),
                "RequestHeader=x-a:2".into(),
            ],
        };
        let mut out = String::new();
        for index in 0..2 {
            one.write(index, &mut out)
                .expect("a string takes everything");
            out.push('\n');
        }
        assert_eq!(Answer::parse_all(&out), [one.clone(), one.clone()]);
        assert_eq!(one.request_header("x-a").as_deref(), Some("1,2"));
        assert_eq!(
            one.request_header(":authority").as_deref(),
            Some("echo:7070")
        );
        assert_eq!(one.hostname(), Some("pod-1"));
    }
}
