//! Turns what an HTTPRoute says into the rules a waypoint is told: all of it, or none with the field's name.

use mesh::proto::waypoint::{
    Backend, Filter, Header, HeaderModifier, Invalid, Match, PathMatch, Redirect, Rule,
    ServicePort, ValueMatch, backend, filter, path_match, redirect, value_match,
};

use super::Unresolved;
use crate::gateway_api as api;

/// A field that asks for what a waypoint does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub(super) struct Unsupported {
    field: String,
    problem: String,
}

type Result<T> = std::result::Result<T, Unsupported>;

/// All rules; `resolve` says where a backend is.
pub(super) fn rules(
    spec: &api::HttpRouteSpec,
    mut resolve: impl FnMut(&api::HttpBackendRef) -> std::result::Result<ServicePort, Unresolved>,
) -> Result<Vec<Rule>> {
    spec.rules
        .iter()
        .enumerate()
        .map(|(at, rule)| compile(&format!("rules[{at}]"), rule, &mut resolve))
        .collect()
}

fn compile(
    at: &str,
    rule: &api::HttpRule,
    resolve: &mut impl FnMut(&api::HttpBackendRef) -> std::result::Result<ServicePort, Unresolved>,
) -> Result<Rule> {
    let later = [
        ("timeouts", rule.timeouts.is_some()),
        ("retry", rule.retry.is_some()),
        ("sessionPersistence", rule.session_persistence.is_some()),
    ];
    if let Some((field, _)) = later.iter().find(|(_, set)| *set) {
        return unsupported(&format!("{at}.{field}"), "is not supported");
    }
    let matches = each(at, "matches", &rule.matches, matching)?;
    let filters = each(at, "filters", &rule.filters, filter)?;
    exclusive(at, &filters, &matches)?;
    let backends = each(at, "backendRefs", &rule.backend_refs, |at, backend| {
        let filters = each(at, "filters", &backend.filters, filter)?;
        if filters
            .iter()
            .any(|filter| matches!(filter.kind, Some(filter::Kind::Redirect(_))))
        {
            return unsupported(
                &format!("{at}.filters"),
                "a redirect stands in a rule, not in a backend",
            );
        }
        let weight = backend.weight.unwrap_or(1);
        let Ok(weight) = u32::try_from(weight) else {
            return unsupported(&format!("{at}.weight"), "must not be negative");
        };
        let to = match resolve(backend) {
            Ok(service) => backend::To::Service(service),
            Err(unresolved) => backend::To::Invalid(Invalid {
                status: 500,
                reason: unresolved.message,
            }),
        };
        Ok(Backend {
            weight,
            filters,
            to: Some(to),
        })
    })?;
    Ok(Rule {
        name: rule.name.clone().unwrap_or_default(),
        matches,
        filters,
        backends,
    })
}

/// What of a rule's filters cannot stand together.
fn exclusive(at: &str, filters: &[Filter], matches: &[Match]) -> Result<()> {
    let mut kinds: Vec<_> = filters
        .iter()
        .filter_map(|f| f.kind.as_ref())
        .map(std::mem::discriminant)
        .collect();
    let all = kinds.len();
    kinds.dedup();
    let repeated = (0..kinds.len()).any(|one| kinds[one + 1..].contains(&kinds[one]));
    if kinds.len() != all || repeated {
        return unsupported(&format!("{at}.filters"), "a filter stands once in a rule");
    }
    let prefix = filters.iter().any(|filter| {
        let Some(filter::Kind::Redirect(redirect)) = &filter.kind else {
            return false;
        };
        matches!(redirect.path, Some(redirect::Path::Prefix(_)))
    });
    let by_prefix = |one: &Match| {
        let path = one.path.as_ref().and_then(|path| path.kind.as_ref());
        matches!(path, None | Some(path_match::Kind::Prefix(_)))
    };
    if prefix && !matches.iter().all(by_prefix) {
        return unsupported(
            &format!("{at}.filters"),
            "ReplacePrefixMatch needs matches of type PathPrefix",
        );
    }
    Ok(())
}

fn matching(at: &str, from: &api::HttpMatch) -> Result<Match> {
    let path = match &from.path {
        None => None,
        Some(path) => Some(path_match(&format!("{at}.path"), path)?),
    };
    let headers = each(at, "headers", &from.headers, value)?;
    let query = each(at, "queryParams", &from.query_params, value)?;
    Ok(Match {
        path,
        method: from.method.clone().unwrap_or_default(),
        headers,
        query,
    })
}

fn path_match(at: &str, from: &api::PathMatch) -> Result<PathMatch> {
    let value = from.value.clone().unwrap_or_else(|| "/".to_owned());
    let slash = value.starts_with('/');
    let kind = match from.kind.as_deref().unwrap_or("PathPrefix") {
        "Exact" => path_match::Kind::Exact(value),
        "PathPrefix" => path_match::Kind::Prefix(value),
        other => return unsupported(&format!("{at}.type"), &format!("{other} is not supported")),
    };
    if !slash {
        return unsupported(&format!("{at}.value"), "must begin with a slash");
    }
    Ok(PathMatch { kind: Some(kind) })
}

fn value(at: &str, from: &api::ValueMatch) -> Result<ValueMatch> {
    match from.kind.as_deref().unwrap_or("Exact") {
        "Exact" => {}
        other => return unsupported(&format!("{at}.type"), &format!("{other} is not supported")),
    }
    Ok(ValueMatch {
        name: from.name.clone(),
        kind: Some(value_match::Kind::Exact(from.value.clone())),
    })
}

fn filter(at: &str, from: &api::HttpFilter) -> Result<Filter> {
    let missing = || unsupported(at, "the field that its type names is missing");
    let kind = match from.kind.as_str() {
        "RequestHeaderModifier" => match &from.request_header_modifier {
            Some(modifier) => filter::Kind::RequestHeaders(headers(modifier)),
            None => return missing(),
        },
        "ResponseHeaderModifier" => match &from.response_header_modifier {
            Some(modifier) => filter::Kind::ResponseHeaders(headers(modifier)),
            None => return missing(),
        },
        "RequestRedirect" => match &from.request_redirect {
            Some(to) => filter::Kind::Redirect(redirect(at, to)?),
            None => return missing(),
        },
        other => return unsupported(&format!("{at}.type"), &format!("{other} is not supported")),
    };
    Ok(Filter { kind: Some(kind) })
}

fn headers(from: &api::HeaderModifier) -> HeaderModifier {
    let list = |headers: &[api::Header]| {
        headers
            .iter()
            .map(|header| Header {
                name: header.name.clone(),
                value: header.value.clone(),
            })
            .collect()
    };
    HeaderModifier {
        set: list(&from.set),
        add: list(&from.add),
        remove: from.remove.clone(),
    }
}

fn redirect(at: &str, from: &api::RequestRedirect) -> Result<Redirect> {
    let scheme = from.scheme.clone().unwrap_or_default();
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        return unsupported(
            &format!("{at}.requestRedirect.scheme"),
            "must be http or https",
        );
    }
    let path = match &from.path {
        None => None,
        Some(path) => match (
            path.kind.as_str(),
            &path.replace_full_path,
            &path.replace_prefix_match,
        ) {
            ("ReplaceFullPath", Some(full), _) => Some(redirect::Path::Full(full.clone())),
            ("ReplacePrefixMatch", _, Some(prefix)) => Some(redirect::Path::Prefix(prefix.clone())),
            (other, ..) => {
                let problem = format!("{other} is not supported, or its field is missing");
                return unsupported(&format!("{at}.requestRedirect.path"), &problem);
            }
        },
    };
    let port = match from.port.map(u16::try_from) {
        None => 0,
        Some(Ok(port)) if port != 0 => port.into(),
        Some(_) => return unsupported(&format!("{at}.requestRedirect.port"), "is no port"),
    };
    let status = match from.status_code.unwrap_or(302) {
        code @ (301 | 302 | 303 | 307 | 308) => u32::try_from(code).unwrap_or(302),
        code => {
            let problem = format!("{code} is not supported");
            return unsupported(&format!("{at}.requestRedirect.statusCode"), &problem);
        }
    };
    Ok(Redirect {
        scheme,
        hostname: from.hostname.clone().unwrap_or_default(),
        path,
        port,
        status,
    })
}

fn each<A, B>(
    at: &str,
    field: &str,
    items: &[A],
    mut one: impl FnMut(&str, &A) -> Result<B>,
) -> Result<Vec<B>> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| one(&format!("{at}.{field}[{index}]"), item))
        .collect()
}

fn unsupported<T>(field: &str, problem: &str) -> Result<T> {
    Err(Unsupported {
        field: field.to_owned(),
        problem: problem.to_owned(),
    })
}
