//! Whether a Gateway's name can be that of its Service, Deployment and ServiceAccount.

/// A DNS label has no more.
const MAX_LABEL: usize = 63;

/// Why objects cannot have this name; `None`: they can. A Service's name is a DNS-1035 label.
pub(super) fn unfit(name: &str) -> Option<String> {
    let problem = if name.len() > MAX_LABEL {
        format!("is longer than {MAX_LABEL} characters")
    } else if name.contains('.') {
        "has dots".to_owned()
    } else if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        "does not begin with a letter".to_owned()
    } else if name.ends_with('-')
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        "is not a DNS label".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "the waypoint's Service has the Gateway's name, and a Service cannot be called {name}: it {problem}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_service_can_have_is_told() {
        let long = "a".repeat(64);
        for (name, why) in [
            ("my.gateway", "dots"),
            ("0gate", "letter"),
            (&*long, "63"),
            ("gate-", "DNS label"),
        ] {
            let said = unfit(name).expect(name);
            assert!(said.contains(why), "{said}");
        }
        for name in ["gate", "g", "gate-0", &"a".repeat(63)] {
            assert_eq!(unfit(name), None, "{name}");
        }
    }
}
