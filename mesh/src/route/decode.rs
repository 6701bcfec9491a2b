//! Decodes a route from the wire: whole, or not at all.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::filter::{Filter, HeaderModifier, PathModifier, Redirect, Scheme};
use super::matching::{Match, Path};
use super::{Backend, BackendTo, Parent, Route, RouteName, Rule};
use crate::names::ServiceName;
use crate::proto::waypoint as wire;

/// Services that one route may be attached to; the API allows 32.
const MAX_PARENTS: usize = 64;
/// Rules of one route; the API allows 16.
const MAX_RULES: usize = 64;
/// Matches of one rule; the API allows 64.
const MAX_MATCHES: usize = 128;
/// Header or query conditions of one match; the API allows 16.
const MAX_CONDITIONS: usize = 32;
/// Filters of one rule or backend; the API allows 16.
const MAX_FILTERS: usize = 32;
/// Backends of one rule; the API allows 16.
const MAX_BACKENDS: usize = 64;
/// Changes of each kind in one header modifier; the API allows 16.
const MAX_CHANGES: usize = 32;
/// The greatest weight that the API allows.
const MAX_WEIGHT: u32 = 1_000_000;
/// Bytes of a path, the API's limit.
const MAX_PATH: usize = 1024;

/// Statuses that a redirect may have.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// Headers that frame a message: changing them would change where it ends.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Why a route is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// Something that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// There is more of something than is allowed.
    #[error("too many {what}: {found}, at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many may come.
        most: usize,
    },
    /// A value cannot be what it should be.
    #[error("{what} {value:?} is not valid: {why}")]
    Value {
        /// What the value should be.
        what: &'static str,
        /// The value.
        value: String,
        /// Why it is not.
        why: &'static str,
    },
}

type Result<T> = std::result::Result<T, InvalidRoute>;

impl TryFrom<wire::Route> for Route {
    type Error = InvalidRoute;

    fn try_from(route: wire::Route) -> Result<Self> {
        at_most("parents", route.parents.len(), MAX_PARENTS)?;
        at_most("rules", route.rules.len(), MAX_RULES)?;
        Ok(Self {
            name: RouteName {
                namespace: present("namespace", route.namespace)?,
                name: present("name", route.name)?,
            },
            created: route.created,
            parents: route
                .parents
                .into_iter()
                .map(parent)
                .collect::<Result<_>>()?,
            rules: route
                .rules
                .into_iter()
                .map(|one| rule(one).map(Arc::new))
                .collect::<Result<_>>()?,
        })
    }
}

fn parent(parent: wire::Parent) -> Result<Parent> {
    let port = match parent.port {
        0 => None,
        some => Some(port(some)?),
    };
    Ok(Parent {
        service: service(parent.namespace, parent.hostname)?,
        port,
    })
}

fn rule(rule: wire::Rule) -> Result<Rule> {
    at_most("matches", rule.matches.len(), MAX_MATCHES)?;
    at_most("backends", rule.backends.len(), MAX_BACKENDS)?;
    let mut matches = rule
        .matches
        .into_iter()
        .map(conditions)
        .collect::<Result<Vec<_>>>()?;
    if matches.is_empty() {
        matches.push(Match::default());
    }
    Ok(Rule {
        name: Some(rule.name)
            .filter(|name| !name.is_empty())
            .map(Arc::from),
        matches,
        filters: filters(rule.filters)?,
        backends: rule
            .backends
            .into_iter()
            .map(backend)
            .collect::<Result<_>>()?,
    })
}

fn conditions(conditions: wire::Match) -> Result<Match> {
    at_most("header matches", conditions.headers.len(), MAX_CONDITIONS)?;
    at_most("query matches", conditions.query.len(), MAX_CONDITIONS)?;
    let mut found = Match {
        path: path(conditions.path)?,
        ..Match::default()
    };
    if !conditions.method.is_empty() {
        let method = Method::from_bytes(conditions.method.as_bytes());
        found.method =
            Some(method.map_err(|_| invalid("method", conditions.method, "not a token"))?);
    }
    for header in conditions.headers {
        let name = header_name(&header.name)?;
        let Some(wire::value_match::Kind::Exact(value)) = header.kind else {
            return Err(InvalidRoute::Missing("kind of a header match"));
        };
        // The API: of several entries with one name, only the first counts.
        if found.headers.iter().all(|(other, _)| *other != name) {
            found.headers.push((name, header_value(value)?));
        }
    }
    for param in conditions.query {
        let name = present("name of a query match", param.name)?;
        let Some(wire::value_match::Kind::Exact(value)) = param.kind else {
            return Err(InvalidRoute::Missing("kind of a query match"));
        };
        if found.query.iter().all(|(other, _)| *other != name) {
            found.query.push((name, Arc::from(value)));
        }
    }
    Ok(found)
}

fn path(path: Option<wire::PathMatch>) -> Result<Path> {
    let Some(path) = path else {
        return Ok(Path::default());
    };
    match path.kind {
        None => Err(InvalidRoute::Missing("kind of a path match")),
        Some(wire::path_match::Kind::Exact(exact)) => Ok(Path::Exact(absolute(exact)?)),
        Some(wire::path_match::Kind::Prefix(prefix)) => {
            let prefix = absolute(prefix)?;
            Ok(Path::Prefix(Arc::from(prefix.trim_end_matches('/'))))
        }
    }
}

fn absolute(path: String) -> Result<Arc<str>> {
    if path.len() > MAX_PATH {
        return Err(invalid("path", path, "too long"));
    }
    if !path.starts_with('/') {
        return Err(invalid("path", path, "it does not begin with a slash"));
    }
    Ok(Arc::from(path))
}

fn backend(backend: wire::Backend) -> Result<Backend> {
    if backend.weight > MAX_WEIGHT {
        return Err(invalid("weight", backend.weight.to_string(), "too great"));
    }
    let to = match backend.to {
        None => return Err(InvalidRoute::Missing("target of a backend")),
        Some(wire::backend::To::Service(to)) => BackendTo::Service {
            service: service(to.namespace, to.hostname)?,
            port: port(to.port)?,
        },
        Some(wire::backend::To::Invalid(to)) => BackendTo::Invalid {
            status: status(to.status)
                .filter(|status| status.is_client_error() || status.is_server_error())
                .ok_or_else(|| {
                    invalid(
                        "status of an invalid backend",
                        to.status.to_string(),
                        "not an error",
                    )
                })?,
            reason: Arc::from(to.reason),
        },
    };
    Ok(Backend {
        weight: backend.weight,
        to,
        filters: filters(backend.filters)?,
    })
}

fn filters(filters: Vec<wire::Filter>) -> Result<Vec<Filter>> {
    at_most("filters", filters.len(), MAX_FILTERS)?;
    filters.into_iter().map(filter).collect()
}

fn filter(filter: wire::Filter) -> Result<Filter> {
    match filter.kind {
        // Also what a newer controller sends and we do not know: refused, never skipped.
        None => Err(InvalidRoute::Missing("kind of a filter")),
        Some(wire::filter::Kind::RequestHeaders(change)) => {
            Ok(Filter::RequestHeaders(modifier(change)?))
        }
        Some(wire::filter::Kind::ResponseHeaders(change)) => {
            Ok(Filter::ResponseHeaders(modifier(change)?))
        }
        Some(wire::filter::Kind::Redirect(to)) => Ok(Filter::Redirect(redirect(to)?)),
    }
}

fn modifier(modifier: wire::HeaderModifier) -> Result<HeaderModifier> {
    at_most("headers to set", modifier.set.len(), MAX_CHANGES)?;
    at_most("headers to add", modifier.add.len(), MAX_CHANGES)?;
    at_most("headers to remove", modifier.remove.len(), MAX_CHANGES)?;
    let change =
        |header: wire::Header| Ok((changeable(&header.name)?, header_value(header.value)?));
    Ok(HeaderModifier {
        set: modifier
            .set
            .into_iter()
            .map(change)
            .collect::<Result<_>>()?,
        add: modifier
            .add
            .into_iter()
            .map(change)
            .collect::<Result<_>>()?,
        remove: modifier
            .remove
            .iter()
            .map(|name| changeable(name))
            .collect::<Result<_>>()?,
    })
}

fn redirect(redirect: wire::Redirect) -> Result<Redirect> {
    let scheme = match redirect.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => return Err(invalid("scheme", redirect.scheme, "neither http nor https")),
    };
    let code = if redirect.status == 0 {
        302
    } else {
        redirect.status
    };
    let status = status(code)
        .filter(|status| REDIRECTS.contains(&status.as_u16()))
        .ok_or_else(|| {
            invalid(
                "status of a redirect",
                code.to_string(),
                "not one of 301, 302, 303, 307, 308",
            )
        })?;
    let hostname = match redirect.hostname.as_str() {
        "" => None,
        host if host
            .parse::<http::uri::Authority>()
            .is_ok_and(|parsed| parsed.host() == host) =>
        {
            Some(Arc::from(host))
        }
        _ => return Err(invalid("hostname", redirect.hostname, "not a host")),
    };
    Ok(Redirect {
        scheme,
        hostname,
        path: redirect.path.map(path_modifier).transpose()?,
        port: if redirect.port == 0 {
            None
        } else {
            Some(port(redirect.port)?)
        },
        status,
    })
}

fn path_modifier(path: wire::redirect::Path) -> Result<PathModifier> {
    let (path, make): (String, fn(Arc<str>) -> PathModifier) = match path {
        wire::redirect::Path::Full(path) => (path, PathModifier::Full),
        wire::redirect::Path::Prefix(path) => (path, PathModifier::Prefix),
    };
    if path.len() > MAX_PATH {
        return Err(invalid("path", path, "too long"));
    }
    if HeaderValue::from_str(&path).is_err() || path.contains(['?', '#', ' ']) {
        return Err(invalid(
            "path",
            path,
            "it has characters that a path may not have",
        ));
    }
    Ok(make(Arc::from(path)))
}

// === the small parts ===

fn at_most(what: &'static str, found: usize, most: usize) -> Result<()> {
    if found > most {
        Err(InvalidRoute::TooMany { what, found, most })
    } else {
        Ok(())
    }
}

fn invalid(what: &'static str, value: String, why: &'static str) -> InvalidRoute {
    InvalidRoute::Value { what, value, why }
}

fn present(what: &'static str, value: String) -> Result<Arc<str>> {
    if value.is_empty() {
        Err(InvalidRoute::Missing(what))
    } else {
        Ok(Arc::from(value))
    }
}

fn service(namespace: String, hostname: String) -> Result<ServiceName> {
    Ok(ServiceName {
        namespace: present("namespace of a service", namespace)?,
        hostname: present("hostname of a service", hostname)?,
    })
}

fn port(port: u32) -> Result<u16> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| invalid("port", port.to_string(), "not between 1 and 65535"))
}

fn status(status: u32) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(status).ok()?).ok()
}

fn header_name(name: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| invalid("header name", name.to_owned(), "not a token"))
}

fn changeable(name: &str) -> Result<HeaderName> {
    let parsed = header_name(name)?;
    if FRAMING.contains(&parsed.as_str()) {
        return Err(invalid(
            "header name",
            name.to_owned(),
            "it frames the message and cannot be changed",
        ));
    }
    Ok(parsed)
}

fn header_value(value: String) -> Result<HeaderValue> {
    HeaderValue::from_str(&value).map_err(|_| {
        invalid(
            "header value",
            value,
            "it has characters that a header may not have",
        )
    })
}
