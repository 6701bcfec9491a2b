//! The Gateway API's own schemas: every field of 1.7 and of 1.6 is known, and what is not is named with its path.
//!
//! The fixtures hold each field of the experimental CRDs once, generated from their schemas.

use controller::gateway_api::{GatewayClassSpec, GatewaySpec, HttpRouteSpec, read};
use serde_json::{Value, json};

fn fixture(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn every_field_of_both_versions_is_known() {
    for routes in [
        include_str!("fixtures/httproute-1.6.3.json"),
        include_str!("fixtures/httproute-1.7.0.json"),
    ] {
        let route: HttpRouteSpec = read(&fixture(routes)).expect("known");
        let rule = &route.rules[0];
        assert!(rule.retry.is_some() && rule.timeouts.is_some());
        assert!(
            rule.session_persistence
                .as_ref()
                .is_some_and(|one| one.cookie.is_some())
        );
    }
    for gateways in [
        include_str!("fixtures/gateway-1.6.3.json"),
        include_str!("fixtures/gateway-1.7.0.json"),
    ] {
        let gateway: GatewaySpec = read(&fixture(gateways)).expect("known");
        assert!(gateway.listeners[0].tls.is_some());
    }
    for classes in [
        include_str!("fixtures/gatewayclass-1.6.3.json"),
        include_str!("fixtures/gatewayclass-1.7.0.json"),
    ] {
        read::<GatewayClassSpec>(&fixture(classes)).expect("known");
    }
}

#[test]
fn what_is_not_known_or_does_not_fit_is_named_with_its_path() {
    for (change, wanted) in [
        (json!({"newThing": 1}), "newThing is not known"),
        (
            json!({"parentRefs": [{"name": "a", "weight": 1}]}),
            "parentRefs[0].weight is not known",
        ),
        (
            json!({"rules": [{}, {"retry": {"budget": {}}, "filters": [{"type": "CORS", "cors": {"x": 1}}]}]}),
            "rules[1].filters[0].cors.x, rules[1].retry.budget are not known",
        ),
        (
            json!({"rules": [{"matches": [{"path": {"value": 7}}]}]}),
            "rules[0].matches[0].path.value: invalid type",
        ),
        (
            json!({"rules": [{"backendRefs": [{"port": 80}]}]}),
            "missing field `name`",
        ),
    ] {
        let error = read::<HttpRouteSpec>(&change)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(wanted), "{change}: {error}");
    }
}
