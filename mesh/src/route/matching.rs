//! Whether a request meets the conditions of a match, and how specific these are.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::percent_decode_str;

/// What a match may look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's path, as it came.
    pub path: &'a str,
    /// The request's query, without the question mark.
    pub query: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

/// Conditions of which all must hold. The default accepts everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The condition on the path.
    pub path: Path,
    /// The method must be this one.
    pub method: Option<Method>,
    /// Each header must have this value; no name twice.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Each query parameter must have this value; no name twice.
    pub query: Vec<(Arc<str>, Arc<str>)>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The path begins with these elements; kept without a closing slash, so that `""` accepts every path.
    Prefix(Arc<str>),
    /// The path is this one, byte for byte.
    Exact(Arc<str>),
}

/// How specific a match is; the greater one wins.
///
/// The order of the fields is the order of precedence of the Gateway API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Summary {
    exact: bool,
    path: usize,
    method: bool,
    headers: usize,
    query: usize,
}

// === impl Match ===

impl Match {
    /// Whether a request meets all conditions.
    pub fn accepts(&self, request: &RequestView<'_>) -> bool {
        self.path.accepts(request.path)
            && self
                .method
                .as_ref()
                .is_none_or(|method| method == request.method)
            && self
                .headers
                .iter()
                .all(|(name, value)| header_is(request.headers, name, value))
            && self
                .query
                .iter()
                .all(|(name, value)| query_is(request.query, name, value))
    }

    /// How specific the match is.
    pub fn summary(&self) -> Summary {
        let (exact, path) = match &self.path {
            Path::Exact(path) => (true, path.len()),
            Path::Prefix(prefix) => (false, prefix.len()),
        };
        Summary {
            exact,
            path,
            method: self.method.is_some(),
            headers: self.headers.len(),
            query: self.query.len(),
        }
    }
}

// === impl Path ===

impl Path {
    /// Whether a path meets the condition.
    pub fn accepts(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/')),
        }
    }
}

impl Default for Path {
    fn default() -> Self {
        Self::Prefix(Arc::from(""))
    }
}

/// Several lines of one header are one value with commas (RFC 9110 §5.3).
fn header_is(headers: &HeaderMap, name: &HeaderName, value: &HeaderValue) -> bool {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => false,
        (Some(only), None) => only == value,
        (Some(first), Some(second)) => {
            let mut joined = first.as_bytes().to_vec();
            for line in [second].into_iter().chain(lines) {
                joined.push(b',');
                joined.extend_from_slice(line.as_bytes());
            }
            joined == value.as_bytes()
        }
    }
}

/// Of a repeated parameter the first value counts.
fn query_is(query: Option<&str>, name: &str, value: &str) -> bool {
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| plain(key) == name)
        .is_some_and(|(_, found)| plain(found) == value)
}

fn plain(encoded: &str) -> Cow<'_, str> {
    if encoded.contains('+') {
        let spaced = encoded.replace('+', " ");
        Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
    } else {
        percent_decode_str(encoded).decode_utf8_lossy()
    }
}
