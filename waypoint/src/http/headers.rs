//! What a proxy must change in a head: hop-by-hop headers, what is said of the client, and where the host is written.

use std::net::IpAddr;

use http::header::{CONNECTION, FORWARDED, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Version, request};

/// Belong to one connection whatever `connection` says (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
    // Goes with `upgrade: h2c`, which is never passed on.
    HeaderName::from_static("http2-settings"),
];

/// Whose certificate a proxy in front has seen. Here it would be a client's own word.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The addresses that a request came by, the last proxy's witness last.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The scheme that the first client used.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The one protocol that a connection may be changed to.
const WEBSOCKET: &[u8] = b"websocket";

/// Why a head cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    /// RFC 9112 §3.2: an HTTP/1.1 request without one is refused, and so is HTTP/2 without an authority.
    #[error("the request names no host")]
    NoHost,
    /// RFC 9110 §7.2: which one the endpoint would believe is anyone's guess.
    #[error("the request names more than one host")]
    Hosts,
    /// Not `host` or `host:port`.
    #[error("the request's host is not valid")]
    Host,
    /// The path is none.
    #[error("the path is not valid")]
    Path,
}

/// Takes from a request what is between two neighbours only.
///
/// What `connection` lists is not taken away besides. By RFC 9110 §7.6.1 a client lists headers that are for its
/// neighbour; but a proxy before us that passes `connection` on (as many do for the sake of WebSockets) lets its clients
/// list what that proxy has added, and we would remove it: `x-real-ip`, `authorization`, any name. A header that its
/// sender did not want passed on does no harm at the endpoint, since it is named hop-by-hop there no longer.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    strip(headers, &[]);
}

/// Takes from a response what is between two neighbours only, with what `connection` lists: all of it is the endpoint's
/// own.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = options(headers)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // What belongs to the message cannot be taken from it by calling it hop-by-hop.
        .filter(|name| *name != TE && *name != http::header::CONTENT_LENGTH)
        .collect();
    strip(headers, &named);
}

/// `te: trailers` is what gRPC needs, and says it anew.
fn strip(headers: &mut HeaderMap, named: &[HeaderName]) {
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let trailers = list(headers, &TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Says to the endpoint who the client is, and lets the client say no more than it may.
///
/// `x-forwarded-client-cert` goes: it is a proxy's witness of an identity, and no proxy of the mesh writes it.
/// `x-forwarded-for` gets the client's address at its end, whatever was there: the last entry is ours, those before it are
/// the word of whoever wrote them (an ingress in the mesh, or a client that invents). A `forwarded` (RFC 7239) gets an
/// element alike, where one came. `-proto`, `-host` and `-port` are an ingress's to set and stay; a request without
/// `-proto` came as plain HTTP, and stock waypoints say so, too.
pub(crate) fn introduce(headers: &mut HeaderMap, client: IpAddr) {
    headers.remove(CLIENT_CERT);
    let disguised: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_disguised(name))
        .cloned()
        .collect();
    for name in disguised {
        headers.remove(name);
    }
    // Lines that were valid are valid joined.
    if let Ok(hops) = HeaderValue::try_from(hops(headers, client)) {
        headers.insert(FORWARDED_FOR, hops);
    }
    if headers.contains_key(FORWARDED) {
        let element = match client {
            IpAddr::V4(ip) => format!("for={ip}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
        };
        if let Ok(element) = HeaderValue::from_str(&element) {
            headers.append(FORWARDED, element);
        }
    }
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
}

/// `x_forwarded_for` and its like: to an application behind a CGI-like interface (WSGI, Rack, PHP) it is the header with
/// hyphens, written by the client.
fn is_disguised(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_') && name.replace('_', "-").starts_with("x-forwarded-")
}

/// What was said of a request's way, and the client's address behind it.
fn hops(headers: &HeaderMap, client: IpAddr) -> Vec<u8> {
    let mut hops = Vec::new();
    let lines = headers.get_all(FORWARDED_FOR).iter();
    for line in lines.filter(|line| !line.is_empty()) {
        hops.extend_from_slice(line.as_bytes());
        hops.extend_from_slice(b", ");
    }
    hops.extend_from_slice(client.to_string().as_bytes());
    hops
}

/// The protocol that a client asks to change to (`connection: upgrade`), before it is stripped: `websocket`, as with
/// stock waypoints. A request that asks for another is passed on without asking, and answered as such: what follows a 101
/// is bytes that nobody judges any more.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let mut protocols = headers.get_all(UPGRADE).iter().filter(|_| asked);
    let (first, second) = (protocols.next(), protocols.next());
    first
        .filter(|protocol| second.is_none() && is_websocket(protocol))
        .cloned()
}

/// Whether a value of `upgrade` is that protocol and no other.
pub(crate) fn is_websocket(protocol: &HeaderValue) -> bool {
    let named = protocol.as_bytes().trim_ascii();
    named.eq_ignore_ascii_case(WEBSOCKET)
}

/// The options that `connection` lists.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    list(headers, &CONNECTION)
}

/// The members of a header that is a list.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
}

/// Writes the host that the client named in one place, the `host` header. Only HTTP/1.0 may name none.
///
/// Where the request's own line has an authority, it counts (RFC 9112 §3.2.2, RFC 9113 §8.3.1): a `host` that says something
/// else goes, and the endpoint sees what was routed by.
pub(crate) fn unify_host(head: &mut request::Parts) -> Result<(), BadHead> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(BadHead::Hosts);
    }
    if host.is_none() && head.version == Version::HTTP_11 {
        return Err(BadHead::NoHost);
    }
    match (head.uri.authority(), host) {
        (Some(authority), _) => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHead::Host)?;
            if !is_host(&host) {
                return Err(BadHead::Host);
            }
            head.headers.insert(HOST, host);
            Ok(())
        }
        (None, Some(host)) if is_host(host) => Ok(()),
        (None, Some(_)) => Err(BadHead::Host),
        (None, None) if head.version < Version::HTTP_11 => Ok(()),
        (None, None) => Err(BadHead::NoHost),
    }
}

/// `host` or `host:port`: no `user@`, and not nothing (RFC 9110 §4.2.4, §7.2).
fn is_host(value: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(value.as_bytes()) else {
        return false;
    };
    let (all, host) = (authority.as_str(), authority.host());
    let Some(rest) = all.strip_prefix(host) else {
        return false; // `user@`
    };
    let port = rest.strip_prefix(':').unwrap_or_default();
    !host.is_empty()
        && rest.is_empty() == port.is_empty()
        && port.bytes().all(|digit| digit.is_ascii_digit())
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
mod tests;
