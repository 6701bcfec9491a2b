//! What a proxy must change in a head: hop-by-hop headers, and where the host is written.

use http::header::{CONNECTION, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Version, request};

/// Belong to one connection whatever `connection` says (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Why a head cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    /// RFC 9110 §7.2: which one the endpoint would believe is anyone's guess.
    #[error("more than one host")]
    Hosts,
    /// Not an authority.
    #[error("the host is not valid")]
    Host,
    /// The path is none.
    #[error("the path is not valid")]
    Path,
}

/// Takes away what is between two neighbours only. `te: trailers` is what gRPC needs, and says it anew.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // What belongs to the message cannot be taken from it by calling it hop-by-hop.
        .filter(|name| *name != HOST && *name != TE && *name != http::header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| {
            line.split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The protocol that a client asks to change to (`connection: upgrade`), before it is stripped.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .any(|line| {
            line.split(',')
                .any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
        });
    let protocol = headers.get(UPGRADE).filter(|_| asked)?;
    // HTTP/2 is asked for by its preface; a server that is asked this way may answer as before.
    (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Writes the host that the client named in one place, the `host` header.
pub(crate) fn unify_host(head: &mut request::Parts) -> Result<(), BadHead> {
    if head.headers.get_all(HOST).iter().count() > 1 {
        return Err(BadHead::Hosts);
    }
    if let Some(authority) = head.uri.authority() {
        // `user@` is not for servers.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(|_| BadHead::Host)?;
        head.headers.insert(HOST, host);
    }
    Ok(())
}

/// Writes the head as the endpoint's version of HTTP wants it; `fallback` is the host where the client named none.
pub(crate) fn address(
    head: &mut request::Parts,
    http2: bool,
    fallback: &str,
) -> Result<(), BadHead> {
    let path = head
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    if http2 {
        let host = head.headers.remove(HOST);
        let host = host
            .as_ref()
            .map_or(fallback.as_bytes(), HeaderValue::as_bytes);
        let authority = Authority::try_from(host).map_err(|_| BadHead::Host)?;
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(authority)
            .path_and_query(path);
        head.uri = uri.build().map_err(|_| BadHead::Path)?;
        head.version = Version::HTTP_2;
    } else {
        if !head.headers.contains_key(HOST) {
            head.headers.insert(
                HOST,
                HeaderValue::from_str(fallback).map_err(|_| BadHead::Host)?,
            );
        }
        head.uri = Uri::from(path);
        head.version = Version::HTTP_11;
        join_cookies(&mut head.headers);
    }
    Ok(())
}

/// HTTP/2 may split cookies into lines, HTTP/1.1 must not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers
        .get_all(http::header::COOKIE)
        .iter()
        .nth(1)
        .is_none()
    {
        return;
    }
    let lines: Vec<&[u8]> = headers
        .get_all(http::header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Lines that were valid are valid joined.
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(http::header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_what_is_between_neighbours_goes() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Private, host"),
            ("connection", "close, te"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("x-public", "2"),
            ("host", "web"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, Trailers"),
            ("upgrade", "websocket"),
        ]);
        strip_hop_by_hop(&mut all);
        assert_eq!(
            all,
            headers(&[("x-public", "2"), ("host", "web"), ("te", "trailers")])
        );
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let cases = [
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket")][..],
                Some("websocket"),
            ),
            (&[("connection", "close"), ("upgrade", "websocket")], None),
            (&[("connection", "upgrade")], None),
            (
                &[
                    ("connection", "upgrade, http2-settings"),
                    ("upgrade", "h2c"),
                ],
                None,
            ),
        ];
        for (lines, expected) in cases {
            assert_eq!(
                upgrade(&headers(lines)),
                expected.map(HeaderValue::from_static),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_host_is_written_where_the_version_wants_it() {
        let (mut head, ()) = http::Request::get("http://web.shop/a?b=c")
            .body(())
            .expect("a request")
            .into_parts();
        unify_host(&mut head).expect("one host");
        assert_eq!(head.headers[HOST], "web.shop");
        let mut second = head.clone();
        address(&mut head, false, "fallback").expect("valid");
        assert_eq!(
            (head.uri.to_string().as_str(), &head.headers[HOST]),
            ("/a?b=c", &HeaderValue::from_static("web.shop"))
        );
        address(&mut second, true, "fallback").expect("valid");
        assert_eq!(second.uri, "http://web.shop/a?b=c");
        assert!(!second.headers.contains_key(HOST));
    }

    #[test]
    fn two_hosts_are_refused() {
        let (mut head, ()) = http::Request::get("/")
            .body(())
            .expect("a request")
            .into_parts();
        head.headers = headers(&[("host", "a"), ("host", "b")]);
        assert_eq!(unify_host(&mut head), Err(BadHead::Hosts));
    }
}
