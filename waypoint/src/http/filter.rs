//! What the filters of a rule and of the chosen backend do: to the request, to the response, or instead of both.

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mesh::route::{Filter, Match, Path, Redirect};

/// What a redirect starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The host that the client named, possibly with a port.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    /// The service's port.
    pub(crate) port: u16,
}

/// The redirect among filters, if one is there.
pub(crate) fn redirect<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> Option<&'a Redirect> {
    filters.into_iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect),
        Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => None,
    })
}

/// Changes the request's headers.
pub(crate) fn request<'a>(filters: impl IntoIterator<Item = &'a Filter>, headers: &mut HeaderMap) {
    for filter in filters {
        if let Filter::RequestHeaders(change) = filter {
            change.apply(headers);
        }
    }
}

/// Changes the response's headers.
pub(crate) fn response<'a>(filters: impl IntoIterator<Item = &'a Filter>, headers: &mut HeaderMap) {
    for filter in filters {
        if let Filter::ResponseHeaders(change) = filter {
            change.apply(headers);
        }
    }
}

/// Where a client is sent, and with which status.
pub(crate) fn location(
    redirect: &Redirect,
    matched: &Match,
    asked: &Asked<'_>,
) -> (StatusCode, String) {
    let scheme = redirect.scheme.unwrap_or(mesh::route::Scheme::Http);
    let host = match &redirect.hostname {
        Some(hostname) => hostname,
        None => bare(asked.host),
    };
    // The API: the given port, else that of the given scheme, else the service's.
    let port = redirect
        .port
        .unwrap_or_else(|| redirect.scheme.map_or(asked.port, |scheme| scheme.port()));
    let prefix = match &matched.path {
        Path::Prefix(prefix) => prefix,
        Path::Exact(exact) => exact,
    };
    let path = match &redirect.path {
        Some(change) => change.apply(asked.path, prefix),
        None => asked.path.to_owned(),
    };
    let mut location = format!("{scheme}://{host}");
    if port != scheme.port() {
        location.push_str(&format!(":{port}"));
    }
    location.push_str(&path);
    if let Some(query) = asked.query {
        location.push('?');
        location.push_str(query);
    }
    (redirect.status, location)
}

/// The host that a request names.
pub(crate) fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).map(HeaderValue::to_str)?.ok()
}

/// Without its port.
fn bare(host: &str) -> &str {
    // `[::1]:80` and `web:80` alike; what is no authority is left as it is.
    if host.parse::<Authority>().is_err() {
        return host;
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh::route::{PathModifier, Scheme};

    use super::*;

    const PLAIN: Redirect = Redirect {
        scheme: None,
        hostname: None,
        path: None,
        port: None,
        status: StatusCode::FOUND,
    };

    /// What `http://host/path` to a service's port becomes, where `/foo` was matched.
    fn sent(redirect: &Redirect, host: &str, target: &str, port: u16) -> String {
        let matched = Match {
            path: Path::Prefix(Arc::from("/foo")),
            ..Match::default()
        };
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        location(
            redirect,
            &matched,
            &Asked {
                host,
                path,
                query,
                port,
            },
        )
        .1
    }

    #[test]
    fn what_a_redirect_does_not_name_stays() {
        assert_eq!(
            sent(&PLAIN, "web", "/foo/bar?q=1", 80),
            "http://web/foo/bar?q=1"
        );
        assert_eq!(
            sent(&PLAIN, "web:8080", "/foo", 8080),
            "http://web:8080/foo"
        );
        assert_eq!(
            sent(&PLAIN, "[::1]:8080", "/foo", 8080),
            "http://[::1]:8080/foo"
        );
        let hostname = Redirect {
            hostname: Some("example.org".into()),
            ..PLAIN
        };
        assert_eq!(sent(&hostname, "web", "/foo", 80), "http://example.org/foo");
    }

    #[test]
    fn the_port_is_given_or_the_schemes_or_the_services() {
        let https = Redirect {
            scheme: Some(Scheme::Https),
            ..PLAIN
        };
        let http = Redirect {
            scheme: Some(Scheme::Http),
            ..PLAIN
        };
        let port = |port, redirect: &Redirect| Redirect {
            port: Some(port),
            ..redirect.clone()
        };
        let cases = [
            (https.clone(), "https://web/foo"),
            (http.clone(), "http://web/foo"),
            (port(8443, &https), "https://web:8443/foo"),
            (port(443, &https), "https://web/foo"),
            (port(80, &http), "http://web/foo"),
            (port(443, &http), "http://web:443/foo"),
            (port(80, &PLAIN), "http://web/foo"),
            (port(8083, &PLAIN), "http://web:8083/foo"),
        ];
        for (redirect, expected) in cases {
            assert_eq!(
                sent(&redirect, "web:8080", "/foo", 8080),
                expected,
                "{redirect:?}"
            );
        }
    }

    #[test]
    fn the_path_is_replaced_whole_or_by_prefix() {
        let full = Redirect {
            path: Some(PathModifier::Full("/all".into())),
            ..PLAIN
        };
        assert_eq!(sent(&full, "web", "/foo/bar?q=1", 80), "http://web/all?q=1");
        let prefix = Redirect {
            path: Some(PathModifier::Prefix("/new".into())),
            ..PLAIN
        };
        assert_eq!(sent(&prefix, "web", "/foo/bar", 80), "http://web/new/bar");
        assert_eq!(sent(&prefix, "web", "/foo", 80), "http://web/new");
    }
}
