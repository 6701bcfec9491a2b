//! The routing rule and route that bring marked packets back through `lo`.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkMessage, NetlinkPayload,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{self, Channel};
use super::{CaptureError, Difference, Family, LOOP_MARK, MARK_MASK};

/// Our routing table.
const TABLE: u8 = 100;
/// Before the main table's rule (32766).
const PRIORITY: u32 = 32764;
/// `lo`, in every namespace.
const LO: u32 = 1;

/// Adds the rule and the route, where they are not there yet.
pub(super) fn add(family: Family) -> Result<(), CaptureError> {
    let create = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    change(create, RouteNetlinkMessage::NewRoute(route(family)), |e| {
        e.raw_os_error() == Some(libc::EEXIST)
    })
    .map_err(|source| refused(family, "route", source))?;
    change(create, RouteNetlinkMessage::NewRule(rule(family)), |e| {
        e.raw_os_error() == Some(libc::EEXIST)
    })
    .map_err(|source| refused(family, "routing rule", source))
}

/// Removes the rule and the route, where they are there.
pub(super) fn remove(family: Family) -> Result<(), CaptureError> {
    // Not there, or the family is not.
    let absent = |e: &io::Error| {
        matches!(
            e.raw_os_error(),
            Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
        )
    };
    change(
        NLM_F_ACK,
        RouteNetlinkMessage::DelRule(rule(family)),
        absent,
    )
    .map_err(|source| refused(family, "removing the routing rule", source))?;
    change(
        NLM_F_ACK,
        RouteNetlinkMessage::DelRoute(route(family)),
        absent,
    )
    .map_err(|source| refused(family, "removing the route", source))
}

/// What is missing.
pub(super) fn compare(family: Family) -> Result<Vec<Difference>, CaptureError> {
    let (wanted_rule, wanted_route) = (rule(family), route(family));
    let mut any = RuleMessage::default();
    any.header.family = address_family(family);
    let rules = dump(RouteNetlinkMessage::GetRule(any))?;
    let has_rule = rules.iter().any(|m| match m {
        RouteNetlinkMessage::NewRule(rule) => {
            rule.header.action == RuleAction::ToTable
                && wanted_rule
                    .attributes
                    .iter()
                    .all(|a| rule.attributes.contains(a))
        }
        _ => false,
    });
    let mut any = RouteMessage::default();
    any.header.address_family = address_family(family);
    let routes = dump(RouteNetlinkMessage::GetRoute(any))?;
    let has_route = routes.iter().any(|m| match m {
        RouteNetlinkMessage::NewRoute(route) => {
            route.header.kind == RouteType::Local
                && route.header.destination_prefix_length == 0
                && wanted_route
                    .attributes
                    .iter()
                    .all(|a| route.attributes.contains(a))
        }
        _ => false,
    });
    let mut missing = Vec::new();
    if !has_rule {
        missing.push(Difference::RoutingRule(family));
    }
    if !has_route {
        missing.push(Difference::Route(family));
    }
    Ok(missing)
}

fn rule(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.table = TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(LOOP_MARK),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Table(u32::from(TABLE)),
    ];
    rule
}

fn route(family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: address_family(family),
        table: TABLE,
        protocol: RouteProtocol::Static,
        scope: match family {
            Family::V4 => RouteScope::Host,
            Family::V6 => RouteScope::Universe,
        },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![
        RouteAttribute::Table(u32::from(TABLE)),
        RouteAttribute::Oif(LO),
    ];
    route
}

fn change(
    flags: u16,
    message: RouteNetlinkMessage,
    fine: impl Fn(&io::Error) -> bool,
) -> Result<(), Failure> {
    let mut channel = Channel::open(NETLINK_ROUTE).map_err(Failure::Before)?;
    let mut request = Vec::new();
    let message = NetlinkMessage::from(message);
    netlink::append(message, flags, 1, &mut request);
    channel.send(&request).map_err(Failure::Before)?;
    let answer = channel.acknowledged::<RouteNetlinkMessage>();
    match answer.map_err(Failure::Before)? {
        Err(error) if !fine(&error) => Err(Failure::Answer(error)),
        _ => Ok(()),
    }
}

fn dump(what: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, CaptureError> {
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let mut request = Vec::new();
    let message = NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(what));
    netlink::append(message, NLM_F_DUMP, 1, &mut request);
    channel.send(&request)?;
    channel.dump("the list of routes")
}

enum Failure {
    Before(CaptureError),
    Answer(io::Error),
}

fn refused(family: Family, what: &str, failure: Failure) -> CaptureError {
    match failure {
        Failure::Before(error) => error,
        Failure::Answer(source) => CaptureError::Refused {
            what: format!("{what} ({family})"),
            source,
        },
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
