//! What a rule or a backend does to a request or its response.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// One step of what is done to a request or its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Changes the headers of the request before it is sent on.
    RequestHeaders(HeaderModifier),
    /// Changes the headers of the response before it goes to the client.
    ResponseHeaders(HeaderModifier),
    /// Answers with a redirect; nothing is sent on.
    Redirect(Redirect),
}

/// Headers to overwrite, to append and to take away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// Replaces every line of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Adds a value to what is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes every line of the name.
    pub remove: Vec<HeaderName>,
}

/// Where a client is sent instead; what is absent stays as in the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The scheme of the location.
    pub scheme: Option<Scheme>,
    /// The host of the location.
    pub hostname: Option<Arc<str>>,
    /// How the path of the location is made.
    pub path: Option<PathModifier>,
    /// The port of the location; absent: the scheme's own if a scheme is given, else the service's.
    pub port: Option<u16>,
    /// The status of the answer.
    pub status: StatusCode,
}

/// A scheme that a redirect may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

/// How one path is made from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// The whole path is replaced.
    Full(Arc<str>),
    /// The prefix that matched is replaced.
    Prefix(Arc<str>),
}

// === impl HeaderModifier ===

impl HeaderModifier {
    /// Changes the headers as the user asked.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            append(headers, name, value);
        }
    }
}

/// What is there and what is added become one line, `old,new`; cookies cannot be joined and get a line each.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    let joined = match headers.get(name) {
        Some(old) if *name != http::header::SET_COOKIE => {
            let joined = [old.as_bytes(), b",", value.as_bytes()].concat();
            HeaderValue::from_bytes(&joined)
                .ok()
                .filter(|_| headers.get_all(name).iter().count() == 1)
        }
        _ => None,
    };
    match joined {
        Some(joined) => {
            headers.insert(name.clone(), joined);
        }
        None => {
            headers.append(name.clone(), value.clone());
        }
    }
}

// === impl Scheme ===

impl Scheme {
    /// The port that a URL of this scheme may leave out.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

// === impl PathModifier ===

impl PathModifier {
    /// The new path of a request whose `matched` prefix (without a closing slash) was met by `path`.
    pub fn apply(&self, path: &str, matched: &str) -> String {
        match self {
            Self::Full(full) => rooted(full),
            Self::Prefix(new) => {
                let rest = path.strip_prefix(matched).unwrap_or_default();
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                let new = new.trim_end_matches('/');
                match (
                    rest.is_empty(),
                    path.len() > matched.len() && path.ends_with('/'),
                ) {
                    (true, false) => rooted(new),
                    (true, true) => rooted(&format!("{new}/")),
                    (false, _) => rooted(&format!("{new}/{rest}")),
                }
            }
        }
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}
