//! DECISION: which type may speak now. What is named comes before what names it, and goes after it.
//!
//! Routes name services and waypoints choose workloads by them, so on one stream: new and changed addresses, then
//! routes, then the removal of addresses. Types that name nothing of another speak whenever they have something to say.

use std::sync::Arc;

use crate::xds::{ADDRESS_TYPE, ROUTE_TYPE};

/// What of a type may be said now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// All of it.
    Everything,
    /// New and changed resources only.
    WithoutRemovals,
    /// Nothing yet.
    Nothing,
}

/// Decides for one type. `unsaid(type, removals_too)`: there is something of that type which the client was not sent
/// yet; `holds(type)`: something of that type is held back.
pub(super) fn turn(
    type_url: &str,
    unsaid: impl Fn(&str, bool) -> bool,
    holds: impl Fn(&str) -> bool,
) -> Turn {
    match type_url {
        // Until they are gone, routes may name what goes.
        ADDRESS_TYPE if unsaid(ROUTE_TYPE, true) || holds(ROUTE_TYPE) => Turn::WithoutRemovals,
        // It is enough that they were sent: a stream keeps its order.
        ROUTE_TYPE if unsaid(ADDRESS_TYPE, false) => Turn::Nothing,
        _ => Turn::Everything,
    }
}

/// Types in the order in which they are looked at: addresses before routes.
pub(super) fn sorted(types: impl Iterator<Item = Arc<str>>) -> Vec<Arc<str>> {
    let mut types: Vec<Arc<str>> = types.collect();
    types.sort_by_key(|type_url| &**type_url == ROUTE_TYPE);
    types
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::ENROLMENT_TYPE;

    #[test]
    fn what_is_named_comes_first_and_goes_last() {
        let (yes, no) = (true, false);
        // type, addresses to update, routes to change, routes held
        for (type_url, addresses, routes, held, expected) in [
            (ADDRESS_TYPE, yes, no, no, Turn::Everything),
            (ADDRESS_TYPE, yes, yes, no, Turn::WithoutRemovals),
            (ADDRESS_TYPE, no, yes, no, Turn::WithoutRemovals),
            (ADDRESS_TYPE, no, no, yes, Turn::WithoutRemovals),
            (ROUTE_TYPE, yes, yes, no, Turn::Nothing),
            (ROUTE_TYPE, no, yes, no, Turn::Everything),
            (ENROLMENT_TYPE, yes, yes, yes, Turn::Everything),
        ] {
            let unsaid = |of: &str, _| match of {
                ADDRESS_TYPE => addresses,
                ROUTE_TYPE => routes,
                other => panic!("{other} depends on nothing"),
            };
            let turn = turn(type_url, unsaid, |_| held);
            assert_eq!(turn, expected, "{type_url} {addresses} {routes} {held}");
        }
    }
}
