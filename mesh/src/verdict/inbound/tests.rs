use super::*;
use crate::sample::{Sample, addr, hostname, id, own, serves};

fn pod() -> Pod {
    own("shop-0", &["10.0.0.2", "fd00::2"])
}

fn tunnelled(target: &str, from: &str) -> Result<Admitted, Refusal> {
    let world = Sample::default()
        .service("shop", "10.96.0.1", |_| ())
        .pod("shop-0", "10.0.0.2", |w| serves(w, "shop", 80, 8080))
        .world();
    let peer = Peer {
        id: id("client"),
        addr: addr(from),
    };
    let local = "10.0.0.2".parse().unwrap();
    let target: Target = target.parse().unwrap();
    world
        .look(|world| tunnel(&peer, &target, local, &pod(), world))
        .map(|entry| entry.admitted)
}

#[test]
fn only_what_is_the_pods_own_is_refused_nothing() {
    let (shop, empty) = (hostname("shop"), hostname("empty"));
    for (target, code) in [
        ("10.0.0.3:8080".to_owned(), "not_my_address"),
        ("127.0.0.1:8080".into(), "not_my_address"),
        ("10.96.0.1:80".into(), "not_my_address"),
        ("10.0.0.2:15001".into(), "illegal_port"),
        ("10.0.0.2:15006".into(), "illegal_port"),
        ("10.0.0.2:15008".into(), "illegal_port"),
        ("10.0.0.2:15053".into(), "illegal_port"),
        (format!("{shop}:81"), "not_my_service"),
        (format!("{empty}:80"), "not_my_service"),
        ("other.example:80".into(), "not_my_service"),
    ] {
        let refusal = tunnelled(&target, "10.0.0.1:5000").unwrap_err();
        assert_eq!(refusal.code(), code, "{target}");
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST);
    }
    for (target, to) in [
        ("10.0.0.2:8080".to_owned(), "10.0.0.2:8080"),
        ("[fd00::2]:8080".into(), "[fd00::2]:8080"),
        (format!("{shop}:80"), "10.0.0.2:8080"),
    ] {
        let admitted = tunnelled(&target, "10.0.0.1:5000").unwrap();
        assert_eq!(admitted.to(), addr(to), "{target}");
    }
}

#[test]
fn the_application_sees_its_client_except_where_that_is_itself() {
    let from = |peer| tunnelled("10.0.0.2:8080", peer).unwrap().from();
    assert_eq!(from("10.0.0.1:5000"), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(
        from("[::ffff:10.0.0.1]:5000"),
        Some("10.0.0.1".parse().unwrap())
    );
    assert_eq!(from("10.0.0.2:5000"), None);
    assert_eq!(from("127.0.0.1:5000"), None);
}

#[test]
fn plaintext_reaches_the_pods_own_ports_only() {
    let judged = |dst| plaintext("10.0.0.9".parse().unwrap(), OrigDst(addr(dst)), &pod());
    assert_eq!(judged("10.0.0.2:8080").unwrap().to(), addr("10.0.0.2:8080"));
    assert_eq!(
        judged("10.0.0.3:8080").unwrap_err().code(),
        "not_my_address"
    );
    assert_eq!(judged("10.0.0.2:15006").unwrap_err().code(), "illegal_port");
}
