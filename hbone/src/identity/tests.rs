//! Tables of SPIFFE IDs and trust domains.

use proptest::prelude::*;

use super::InvalidSpiffeId::*;
use super::*;

#[test]
fn spiffe_ids() {
    let long_domain = format!("spiffe://{}/x", "a".repeat(256));
    let long = format!("spiffe://td/{}", "a".repeat(2048 - 11));
    let good = [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://td/a",
        "spiffe://td/A.b-C_9/...",
        "spiffe://1.2.3.4/x",
        "spiffe://a_b-c.0/x",
        "spiffe://-._/-._",
        "spiffe://td/.../..x/x..",
        &long[..2048],
        &long_domain.replacen("a/", "/", 1),
    ];
    for text in good {
        assert_eq!(
            text.parse::<SpiffeId>().map(|id| id.to_string()).as_deref(),
            Ok(text)
        );
    }
    let bad = [
        ("", Scheme),
        ("cluster.local/ns/x", Scheme),
        ("SPIFFE://td/x", Scheme),
        ("Spiffe://td/x", Scheme),
        (" spiffe://td/x", Scheme),
        ("spiffe:td/x", Scheme),
        ("spiffe:/td/x", Scheme),
        ("https://td/x", Scheme),
        (&long, TooLong),
        ("spiffe://", NoTrustDomain),
        ("spiffe:///x", NoTrustDomain),
        (&long_domain, TrustDomainTooLong),
        ("spiffe://Td/x", TrustDomainCharacter),
        ("spiffe://td:443/x", TrustDomainCharacter),
        ("spiffe://user@td/x", TrustDomainCharacter),
        ("spiffe://td?x/y", TrustDomainCharacter),
        ("spiffe://t%64/x", TrustDomainCharacter),
        ("spiffe://user:pass@td/x", TrustDomainCharacter),
        ("spiffe://td:/x", TrustDomainCharacter),
        ("spiffe://[::1]/x", TrustDomainCharacter),
        ("spiffe://td#x", TrustDomainCharacter),
        ("spiffe://td\\x", TrustDomainCharacter),
        ("spiffe://t d/x", TrustDomainCharacter),
        ("spiffe://t~d/x", TrustDomainCharacter),
        ("spiffe://b\u{fc}cher/x", TrustDomainCharacter),
        ("spiffe://td", NoPath),
        ("spiffe://td/", EmptySegment),
        ("spiffe://td//x", EmptySegment),
        ("spiffe://td/x/", EmptySegment),
        ("spiffe://td/./x", DotSegment),
        ("spiffe://td/x/..", DotSegment),
        ("spiffe://td/../x", DotSegment),
        ("spiffe://td/x?y", PathCharacter),
        ("spiffe://td/x:y", PathCharacter),
        ("spiffe://td/x~y", PathCharacter),
        ("spiffe://td/x@y", PathCharacter),
        ("spiffe://td/x\\y", PathCharacter),
        ("spiffe://td/x\n", PathCharacter),
        ("spiffe://td/x#y", PathCharacter),
        ("spiffe://td/%2e", PathCharacter),
        ("spiffe://td/x y", PathCharacter),
        ("spiffe://td/\u{e4}", PathCharacter),
        ("spiffe://td/x\0", PathCharacter),
    ];
    for (text, why) in bad {
        assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text}");
    }
}

#[test]
fn trust_domains() {
    for text in ["cluster.local", "a", "a_b-c.0", &"a".repeat(255)] {
        let domain = text.parse::<TrustDomain>();
        assert_eq!(domain.map(|d| d.to_string()).as_deref(), Ok(text));
    }
    for (text, why) in [
        ("", NoTrustDomain),
        (&*"a".repeat(256), TrustDomainTooLong),
        ("spiffe://td", TrustDomainCharacter),
        ("Td", TrustDomainCharacter),
        ("td/x", TrustDomainCharacter),
        ("td:443", TrustDomainCharacter),
        ("td ", TrustDomainCharacter),
    ] {
        assert_eq!(text.parse::<TrustDomain>(), Err(why), "{text}");
    }
}

#[test]
fn service_accounts() {
    let domain = TrustDomain::default();
    let id = SpiffeId::for_service_account(&domain, "shop", "web").unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(id.trust_domain(), domain);
    assert_eq!(id.path(), "/ns/shop/sa/web");
    assert_eq!(id.service_account(), Some(("shop", "web")));
    assert!(id.is_in(&domain) && !id.is_in(&"cluster".parse().unwrap()));
    for (namespace, name) in [
        ("", "x"),
        ("x", ""),
        ("a/sa/b", "x"),
        ("x", "y/z"),
        ("..", "x"),
    ] {
        assert!(SpiffeId::for_service_account(&domain, namespace, name).is_err());
    }
    for other in [
        "/ns/a",
        "/ns/a/sa/b/c",
        "/ns/a/b/sa/c",
        "/x/ns/a/sa/b",
        "/sa/b/ns/a",
    ] {
        let id: SpiffeId = format!("spiffe://td{other}").parse().unwrap();
        assert_eq!(id.service_account(), None, "{other}");
    }
}

#[test]
fn expectations_are_never_empty() {
    let id = |name: &str| -> SpiffeId { format!("spiffe://td/{name}").parse().unwrap() };
    assert_eq!(Expect::any_of([]), None);
    let both = Expect::any_of([id("b"), id("a"), id("b")]).unwrap();
    assert_eq!(Some(both.clone()), Expect::any_of([id("a"), id("b")]));
    assert!(both.contains(&id("a")) && both.contains(&id("b")) && !both.contains(&id("c")));
    assert_eq!(both.to_string(), "spiffe://td/a or spiffe://td/b");
    assert!(!Expect::one(id("a")).contains(&id("b")));
}

proptest! {
    #[test]
    fn parts_make_the_whole(domain in "[a-z0-9._-]{1,60}", path in "(/[a-zA-Z0-9_-]{1,20}){1,5}") {
        let text = format!("spiffe://{domain}{path}");
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(id.path(), path);
        prop_assert_eq!(id.trust_domain().to_string(), domain);
        prop_assert_eq!(id.as_str(), text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(spiffe://)?.{0,60}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str(), text);
        }
    }
}
