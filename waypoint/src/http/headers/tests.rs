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
    let lines = [
        ("connection", "keep-alive, X-Private, host"),
        ("connection", "close, te, authorization, x-forwarded-for"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("http2-settings", "AAMAAABk"),
        ("x-private", "1"),
        ("authorization", "Bearer t"),
        ("x-forwarded-for", "192.0.2.1"),
        ("host", "web"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, Trailers"),
        ("upgrade", "websocket"),
    ];
    let mut request = headers(&lines);
    strip_request(&mut request);
    let left = [
        ("x-private", "1"),
        ("authorization", "Bearer t"),
        ("x-forwarded-for", "192.0.2.1"),
        ("host", "web"),
        ("te", "trailers"),
    ];
    assert_eq!(request, headers(&left));
}

#[test]
fn an_endpoint_says_itself_what_is_for_its_neighbour() {
    let mut response = headers(&[
        ("connection", "x-private, content-length"),
        ("x-private", "1"),
        ("content-length", "2"),
        ("x-public", "3"),
    ]);
    strip_response(&mut response);
    let left = [("content-length", "2"), ("x-public", "3")];
    assert_eq!(response, headers(&left));
}

#[test]
fn what_a_client_says_of_itself_is_seen_to_be_said_by_it() {
    let client = "10.1.0.7".parse().expect("an address");
    let cases: [(&[_], &[_]); 5] = [
        // In other letters.
        (
            &[
                ("x_forwarded_client_cert", "URI=spiffe://a/ns/b/sa/c"),
                ("x-forwarded_for", "192.0.2.1"),
                ("x_private", "1"),
            ],
            &[
                ("x_private", "1"),
                ("x-forwarded-for", "10.1.0.7"),
                ("x-forwarded-proto", "http"),
            ],
        ),
        // Nothing said.
        (
            &[],
            &[
                ("x-forwarded-for", "10.1.0.7"),
                ("x-forwarded-proto", "http"),
            ],
        ),
        // An identity: removed, however often.
        (
            &[
                ("x-forwarded-client-cert", "URI=spiffe://a/ns/b/sa/c"),
                ("x-forwarded-client-cert", "By=x"),
            ],
            &[
                ("x-forwarded-for", "10.1.0.7"),
                ("x-forwarded-proto", "http"),
            ],
        ),
        // What an ingress says stays.
        (
            &[
                ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
                ("x-forwarded-for", "192.0.2.3"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "example.org"),
                ("x-forwarded-port", "443"),
            ],
            &[
                (
                    "x-forwarded-for",
                    "192.0.2.1, 192.0.2.2, 192.0.2.3, 10.1.0.7",
                ),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "example.org"),
                ("x-forwarded-port", "443"),
            ],
        ),
        // What is no list of addresses is not cut either.
        (
            &[
                ("x-forwarded-for", "unknown"),
                ("forwarded", "for=_secret"),
                ("x-forwarded-proto", "h"),
            ],
            &[
                ("x-forwarded-for", "unknown, 10.1.0.7"),
                ("forwarded", "for=_secret"),
                ("forwarded", "for=10.1.0.7"),
                ("x-forwarded-proto", "h"),
            ],
        ),
    ];
    for (said, seen) in cases {
        let mut all = headers(said);
        introduce(&mut all, client);
        assert_eq!(all, headers(seen), "{said:?}");
    }
    let mut all = headers(&[("forwarded", "for=x")]);
    introduce(&mut all, "2001:db8::1".parse().expect("an address"));
    assert_eq!(all["x-forwarded-for"], "2001:db8::1");
    let last = all.get_all(FORWARDED).iter().next_back();
    assert_eq!(last.expect("ours"), "for=\"[2001:db8::1]\"");
}

#[test]
fn only_a_websocket_is_an_upgrade() {
    let cases: [(&[(_, _)], _); 10] = [
        (&[("connection", "Upgrade"), ("upgrade", "websocket")], true),
        (
            &[
                ("connection", "keep-alive, upgrade"),
                ("upgrade", " WebSocket"),
            ],
            true,
        ),
        (&[("connection", "close"), ("upgrade", "websocket")], false),
        (&[("connection", "upgrade")], false),
        (&[("connection", "upgrade"), ("upgrade", "h2c")], false),
        (&[("connection", "upgrade"), ("upgrade", "h2c,")], false),
        (&[("connection", "upgrade"), ("upgrade", "foo")], false),
        (
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            false,
        ),
        (
            &[("connection", "upgrade"), ("upgrade", "websocket/13")],
            false,
        ),
        (
            &[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("upgrade", "h2c"),
            ],
            false,
        ),
    ];
    for (lines, passes) in cases {
        assert_eq!(upgrade(&headers(lines)).is_some(), passes, "{lines:?}");
    }
}

#[test]
fn the_host_is_written_where_the_version_wants_it() {
    let (mut head, ()) = http::Request::get("http://web.shop/a?b=c")
        .version(Version::HTTP_2)
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
fn a_request_names_one_host() {
    const H1: Version = Version::HTTP_11;
    const H2: Version = Version::HTTP_2;
    let cases: [(_, _, &[_], _); 19] = [
        (H1, "/", &["web"], Ok(Some("web"))),
        (H1, "/", &["web.shop:8080"], Ok(Some("web.shop:8080"))),
        (H1, "/", &["[2001:db8::1]:80"], Ok(Some("[2001:db8::1]:80"))),
        (H1, "/", &["my_web"], Ok(Some("my_web"))),
        (H1, "/", &[], Err(BadHead::NoHost)),
        (H1, "http://web/", &[], Err(BadHead::NoHost)),
        (Version::HTTP_10, "/", &[], Ok(None)),
        (H2, "/", &[], Err(BadHead::NoHost)),
        (H1, "/", &["a", "b"], Err(BadHead::Hosts)),
        (H1, "/", &["a", "a"], Err(BadHead::Hosts)),
        (H2, "http://web/", &["a", "b"], Err(BadHead::Hosts)),
        (H1, "/", &[""], Err(BadHead::Host)),
        (H1, "/", &["a, b"], Err(BadHead::Host)),
        (H1, "/", &["a/b"], Err(BadHead::Host)),
        (H1, "/", &["web:http"], Err(BadHead::Host)),
        (H1, "/", &["me@web"], Err(BadHead::Host)),
        (H2, "http://me@web/", &[], Err(BadHead::Host)),
        // The line counts.
        (H1, "http://web/", &["other"], Ok(Some("web"))),
        (H2, "http://web/", &["other"], Ok(Some("web"))),
    ];
    for (version, uri, hosts, expected) in cases {
        let (mut head, ()) = http::Request::get(uri)
            .version(version)
            .body(())
            .expect("a request")
            .into_parts();
        for host in hosts {
            head.headers.append(HOST, HeaderValue::from_static(host));
        }
        let named = unify_host(&mut head).map(|()| {
            let host = head.headers.get(HOST);
            host.map(|host| host.to_str().expect("text").to_owned())
        });
        let expected = expected.map(|host| host.map(str::to_owned));
        assert_eq!(named, expected, "{version:?} {uri} {hosts:?}");
    }
}
