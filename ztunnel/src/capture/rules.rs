//! Our nftables table: what it should hold, putting it there in one step, and comparing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, InetHookNumber, MetaKey, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage,
};

use super::expr::{self, Base, Expr};
use super::netlink::{self, Change};
use super::{
    CaptureError, Difference, HBONE, INBOUND, LOOP_MARK, MARK, MARK_MASK, OUTBOUND, PROBE_V4,
    PROBE_V6, Spec,
};

/// Whether the kernel can look for sockets in a rule. Found out by the first rules that are installed.
static LOOKS_FOR_SOCKETS: AtomicBool = AtomicBool::new(true);

/// The name of our table.
pub(super) const TABLE: &str = "ambit";

/// A chain with its place in the packet's way, and its rules.
#[derive(Debug)]
pub(super) struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: InetHookNumber,
    priority: i32,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    comment: &'static str,
    exprs: Vec<Expr>,
}

const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_DSTNAT: i32 = -100;

/// The table of an enrolled pod.
pub(super) fn redirecting(spec: &Spec) -> Vec<Chain> {
    let outbound = outbound(spec);
    let inbound = if spec.bypass_inbound {
        Vec::new()
    } else {
        inbound(spec)
    };
    table(outbound, inbound)
}

/// The table of a pod whose last captured connections are ending. An empty NAT chain still makes the
/// kernel translate the packets of connections it translated before.
pub(super) fn draining() -> Vec<Chain> {
    table(Vec::new(), Vec::new())
}

/// Installs the table of an enrolled pod, whatever is there, with what this kernel knows.
pub(super) fn redirect(spec: &Spec) -> Result<(), CaptureError> {
    let refused = match replace(&redirecting(spec)) {
        Err(refused @ CaptureError::Refused { .. }) => refused,
        done => return done,
    };
    if !LOOKS_FOR_SOCKETS.swap(false, Ordering::Relaxed) {
        return Err(refused);
    }
    let simpler = replace(&redirecting(spec));
    match simpler {
        Ok(()) => tracing::warn!(
            %refused,
            "this kernel cannot look for sockets in a rule (CONFIG_NFT_SOCKET): connections to ports of pods on which nobody listens are accepted and reset, not refused"
        ),
        // That was not the reason.
        Err(_) => LOOKS_FOR_SOCKETS.store(true, Ordering::Relaxed),
    }
    simpler
}

/// Replaces whatever table of ours there is, in one transaction.
pub(super) fn replace(chains: &[Chain]) -> Result<(), CaptureError> {
    let mut changes = clear();
    changes.push(Change::new("table", new_table()));
    for chain in chains {
        changes.push(Change::new(chain.name, chain.message()));
    }
    for chain in chains {
        for rule in &chain.rules {
            changes.push(Change::new(rule.comment, rule.message(chain.name)));
        }
    }
    netlink::commit(changes)
}

/// Removes our table, if it is there.
pub(super) fn remove() -> Result<(), CaptureError> {
    netlink::commit(clear())
}

/// Whether our table is there.
pub(super) fn is_installed() -> Result<bool, CaptureError> {
    Ok(tables()?.iter().any(|name| name == TABLE))
}

/// Whether any table is there, ours or not.
pub(super) fn any_table() -> Result<bool, CaptureError> {
    Ok(!tables()?.is_empty())
}

/// How the installed table differs from `wanted`.
pub(super) fn compare(wanted: &[Chain]) -> Result<Vec<Difference>, CaptureError> {
    if !is_installed()? {
        return Ok(vec![Difference::NoTable]);
    }
    let installed_chains = installed_chains()?;
    let installed_rules = installed_rules()?;
    let none = Vec::new();
    let mut differences = Vec::new();
    for chain in wanted {
        match installed_chains.get(chain.name) {
            Some(attributes) if chain.is(attributes) => {}
            _ => {
                differences.push(Difference::Chain(chain.name.into()));
                continue;
            }
        }
        let rules = installed_rules.get(chain.name).unwrap_or(&none);
        let same = chain.rules.iter().zip(rules);
        let index = same.take_while(|(a, b)| expr::same(&a.exprs, b)).count();
        if index < chain.rules.len().max(rules.len()) {
            let chain = chain.name.into();
            differences.push(Difference::Rules { chain, index });
        }
    }
    for name in installed_chains.into_keys() {
        if !wanted.iter().any(|chain| chain.name == name) {
            differences.push(Difference::ForeignChain(name));
        }
    }
    Ok(differences)
}

// === what we want ===

fn table(outbound: Vec<Rule>, inbound: Vec<Rule>) -> Vec<Chain> {
    vec![
        Chain {
            name: "tag",
            kind: "filter",
            hook: InetHookNumber::PreRouting,
            priority: PRIORITY_MANGLE,
            rules: vec![Rule::new(
                "from ztunnel through lo: tag the connection",
                [is_lo(MetaKey::Iif), mark_is(MARK), tag_connection()],
            )],
        },
        Chain {
            name: "loop",
            kind: "route",
            hook: InetHookNumber::LocalOut,
            priority: PRIORITY_MANGLE,
            rules: vec![Rule::new(
                "replies on tagged connections go back to ztunnel",
                [is_reply(), connection_is_tagged(), mark_for_loop()],
            )],
        },
        Chain {
            name: "outbound",
            kind: "nat",
            hook: InetHookNumber::LocalOut,
            priority: PRIORITY_DSTNAT,
            rules: outbound,
        },
        Chain {
            name: "inbound",
            kind: "nat",
            hook: InetHookNumber::PreRouting,
            priority: PRIORITY_DSTNAT,
            rules: inbound,
        },
    ]
}

fn outbound(spec: &Spec) -> Vec<Rule> {
    let accept = || vec![expr::accept()];
    let mut rules = vec![
        Rule::new(
            "loopback and the pod itself",
            [is_lo(MetaKey::Oif), accept()],
        ),
        Rule::new("ztunnel's own", [mark_is(MARK), accept()]),
        Rule::new("replies to ztunnel", [mark_is(LOOP_MARK), accept()]),
        Rule::new("to probes", [ipv4(16, &PROBE_V4.octets()), accept()]),
        Rule::new("to probes", [ipv6(24, &PROBE_V6.octets()), accept()]),
    ];
    for from_own in own(spec, End::Source) {
        rules.push(Rule::new(
            "new connections of the pod",
            [from_own, is_syn(), redirect_to(OUTBOUND)],
        ));
    }
    rules
}

fn inbound(spec: &Spec) -> Vec<Rule> {
    let accept = || vec![expr::accept()];
    let mut rules = vec![
        Rule::new("ztunnel's own", [mark_is(MARK), accept()]),
        Rule::new("from probes", [ipv4(12, &PROBE_V4.octets()), accept()]),
        Rule::new("from probes", [ipv6(8, &PROBE_V6.octets()), accept()]),
    ];
    for to_own in own(spec, End::Destination) {
        rules.push(Rule::new(
            "new plaintext connections to the pod itself",
            [
                to_own,
                is_syn(),
                port_is_not(HBONE),
                is_for_pod(),
                somebody_listens(),
                redirect_to(INBOUND),
            ],
        ));
    }
    rules
}

/// `lo` is interface 1 of every namespace.
fn is_lo(key: MetaKey) -> Vec<Expr> {
    vec![expr::meta(key), expr::eq(&1u32.to_ne_bytes())]
}

fn mark_is(mark: u32) -> Vec<Expr> {
    vec![
        expr::meta(MetaKey::Mark),
        expr::and(&MARK_MASK.to_ne_bytes()),
        expr::eq(&mark.to_ne_bytes()),
    ]
}

fn tag_connection() -> Vec<Expr> {
    vec![expr::load(&LOOP_MARK.to_ne_bytes()), expr::set_ct_mark()]
}

fn is_reply() -> Vec<Expr> {
    vec![expr::ct_direction(), expr::eq(&[1])]
}

fn connection_is_tagged() -> Vec<Expr> {
    vec![
        expr::ct_mark(),
        expr::and(&MARK_MASK.to_ne_bytes()),
        expr::eq(&LOOP_MARK.to_ne_bytes()),
    ]
}

fn mark_for_loop() -> Vec<Expr> {
    vec![
        expr::load(&LOOP_MARK.to_ne_bytes()),
        expr::set_meta(MetaKey::Mark),
    ]
}

fn nfproto(number: u8) -> Vec<Expr> {
    vec![expr::meta(MetaKey::Nfproto), expr::eq(&[number])]
}

fn ipv4(offset: u32, address: &[u8]) -> Vec<Expr> {
    let mut exprs = nfproto(NFPROTO_IPV4);
    exprs.extend([expr::payload(Base::Network, offset, 4), expr::eq(address)]);
    exprs
}

fn ipv6(offset: u32, address: &[u8]) -> Vec<Expr> {
    let mut exprs = nfproto(NFPROTO_IPV6);
    exprs.extend([expr::payload(Base::Network, offset, 16), expr::eq(address)]);
    exprs
}

/// Which address of a packet.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// The beginnings of the rules that together capture what has an address of the pod at this end.
fn own(spec: &Spec, end: End) -> Vec<Vec<Expr>> {
    let captured = |ip: &IpAddr| if ip.is_ipv4() { spec.ipv4 } else { spec.ipv6 };
    let is_own = |ip: IpAddr| match (ip, end) {
        (IpAddr::V4(v4), End::Source) => ipv4(12, &v4.octets()),
        (IpAddr::V4(v4), End::Destination) => ipv4(16, &v4.octets()),
        (IpAddr::V6(v6), End::Source) => ipv6(8, &v6.octets()),
        (IpAddr::V6(v6), End::Destination) => ipv6(24, &v6.octets()),
    };
    if spec.own.addresses().next().is_none() {
        return vec![family(spec)];
    }
    let own = spec.own.addresses().filter(captured);
    own.map(is_own).collect()
}

/// Restricts a rule to one family where the pod has only one.
fn family(spec: &Spec) -> Vec<Expr> {
    match (spec.ipv4, spec.ipv6) {
        (true, false) => nfproto(NFPROTO_IPV4),
        (false, true) => nfproto(NFPROTO_IPV6),
        _ => Vec::new(),
    }
}

/// A TCP packet with SYN and neither ACK, RST nor FIN.
fn is_syn() -> Vec<Expr> {
    const FIN_SYN_RST_ACK: u8 = 0x17;
    const SYN: u8 = 0x02;
    vec![
        expr::meta(MetaKey::L4Proto),
        expr::eq(&[IPPROTO_TCP]),
        expr::payload(Base::Transport, 13, 1),
        expr::and(&[FIN_SYN_RST_ACK]),
        expr::eq(&[SYN]),
    ]
}

fn port_is_not(port: u16) -> Vec<Expr> {
    vec![
        expr::payload(Base::Transport, 2, 2),
        expr::ne(&port.to_be_bytes()),
    ]
}

/// Not what the pod forwards for containers or machines inside it.
fn is_for_pod() -> Vec<Expr> {
    vec![
        expr::destination_type(),
        expr::eq(&expr::LOCAL.to_ne_bytes()),
    ]
}

/// Where nobody listens the kernel itself refuses, and whoever connects sees that at once. ztunnel could only accept, find
/// out, and reset: a probe that does no more than connect would never fail.
fn somebody_listens() -> Vec<Expr> {
    match LOOKS_FOR_SOCKETS.load(Ordering::Relaxed) {
        true => vec![expr::socket()],
        false => Vec::new(),
    }
}

fn redirect_to(port: u16) -> Vec<Expr> {
    vec![expr::load(&port.to_be_bytes()), expr::redirect()]
}

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

// === how it is said ===

impl Chain {
    fn hook(&self) -> [Hook; 2] {
        [
            Hook::Number(self.hook.into()),
            Hook::Priority(self.priority.cast_unsigned()),
        ]
    }

    fn message(&self) -> NfTablesMessage {
        NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(TABLE.into()),
                ChainAttribute::Name(self.name.into()),
                ChainAttribute::Hook(self.hook().into()),
                ChainAttribute::Type(self.kind.into()),
                ChainAttribute::Policy(NF_ACCEPT),
            ],
        })
    }

    fn is(&self, installed: &[ChainAttribute]) -> bool {
        let hook = self.hook();
        let hooked = |a: &ChainAttribute| matches!(a, ChainAttribute::Hook(h) if hook.iter().all(|x| h.contains(x)));
        installed.iter().any(hooked)
            && installed.contains(&ChainAttribute::Type(self.kind.into()))
            && installed.contains(&ChainAttribute::Policy(NF_ACCEPT))
    }
}

impl Rule {
    fn new<const N: usize>(comment: &'static str, parts: [Vec<Expr>; N]) -> Self {
        Self {
            comment,
            exprs: parts.into_iter().flatten().collect(),
        }
    }

    fn message(&self, chain: &str) -> NfTablesMessage {
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(TABLE.into()),
                RuleAttribute::Chain(chain.into()),
                RuleAttribute::Expressions(self.exprs.clone()),
                RuleAttribute::UserData(comment(self.comment)),
            ],
        })
    }
}

const NF_ACCEPT: u32 = 1;

/// A comment as `nft list` shows it: type 0, length, text, zero.
fn comment(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], text.as_bytes(), &[0]].concat()
}

fn table_message() -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.into())],
    }
}

fn new_table() -> NfTablesMessage {
    NfTablesMessage::NewTable(table_message())
}

/// Deletes the table whether it is there or not: what is created first can be deleted.
fn clear() -> Vec<Change> {
    vec![
        Change::new("table", new_table()),
        Change::new(
            "deleting the table",
            NfTablesMessage::DeleteTable(table_message()),
        ),
    ]
}

// === what is there ===

fn tables() -> Result<Vec<String>, CaptureError> {
    let all = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
    let names = netlink::dump(all)?.into_iter().filter_map(|m| match m {
        NfTablesMessage::NewTable(table) => table.attributes.into_iter().find_map(|a| match a {
            TableAttribute::Name(name) => Some(name),
            _ => None,
        }),
        _ => None,
    });
    Ok(names.collect())
}

fn installed_chains() -> Result<BTreeMap<String, Vec<ChainAttribute>>, CaptureError> {
    let ours = ChainAttribute::Table(TABLE.into());
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    let mut chains = BTreeMap::new();
    for message in netlink::dump(all)? {
        let NfTablesMessage::NewChain(chain) = message else {
            continue;
        };
        if !chain.attributes.contains(&ours) {
            continue;
        }
        let name = chain.attributes.iter().find_map(|a| match a {
            ChainAttribute::Name(name) => Some(name.clone()),
            _ => None,
        });
        chains.insert(name.unwrap_or_default(), chain.attributes);
    }
    Ok(chains)
}

fn installed_rules() -> Result<BTreeMap<String, Vec<Vec<Expr>>>, CaptureError> {
    let ours = RuleAttribute::Table(TABLE.into());
    let all = NfTablesMessage::GetRule(RuleMessage {
        attributes: vec![ours.clone()],
    });
    let mut rules: BTreeMap<String, Vec<Vec<Expr>>> = BTreeMap::new();
    for message in netlink::dump(all)? {
        let NfTablesMessage::NewRule(rule) = message else {
            continue;
        };
        if !rule.attributes.contains(&ours) {
            continue;
        }
        let (mut chain, mut exprs) = (String::new(), Vec::new());
        for attribute in rule.attributes {
            match attribute {
                RuleAttribute::Chain(name) => chain = name,
                RuleAttribute::Expressions(list) => exprs = list,
                _ => {}
            }
        }
        rules.entry(chain).or_default().push(exprs);
    }
    Ok(rules)
}
