//! The expressions our rules are made of, and whether the kernel's are the same.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

/// One expression of a rule, as it is on the wire.
pub(super) type Expr = ListAttribute<ExpressionAttribute>;

/// Loads a property of the packet.
pub(super) fn meta(key: MetaKey) -> Expr {
    Expressions::Meta(vec![
        Meta::DestinationRegister(Register::Reg1),
        Meta::Key(key),
    ])
    .into()
}

/// Sets a property of the packet to what is loaded.
pub(super) fn set_meta(key: MetaKey) -> Expr {
    Expressions::Meta(vec![Meta::Key(key), Meta::SourceRegister(Register::Reg1)]).into()
}

/// Loads `len` bytes of a header.
pub(super) fn payload(base: Base, offset: u32, len: u32) -> Expr {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base as u32),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
    .into()
}

/// Which header [`payload`] counts from.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

/// Keeps the bits of `mask` of what is loaded.
pub(super) fn and(mask: &[u8]) -> Expr {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
        Bitwise::Mask(DataAttribute::Value(mask.into())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
    .into()
}

/// Goes on only if what is loaded equals `value`.
pub(super) fn eq(value: &[u8]) -> Expr {
    compare(Operator::Equal, value)
}

/// Goes on only if what is loaded differs from `value`.
pub(super) fn ne(value: &[u8]) -> Expr {
    compare(Operator::NotEqual, value)
}

/// Loads a constant.
pub(super) fn load(value: &[u8]) -> Expr {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(value.into())),
    ])
    .into()
}

/// Lets the packet pass this chain.
pub(super) fn accept() -> Expr {
    const NF_ACCEPT: u32 = 1;
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(NF_ACCEPT),
        )])),
    ])
    .into()
}

/// Redirects the connection to the loaded port.
pub(super) fn redirect() -> Expr {
    other("redir", &[(1, REG1)])
}

/// Loads the tag of the packet's connection.
pub(super) fn ct_mark() -> Expr {
    other("ct", &[(1, REG1), (2, CT_MARK)])
}

/// Tags the packet's connection with what is loaded.
pub(super) fn set_ct_mark() -> Expr {
    other("ct", &[(2, CT_MARK), (4, REG1)])
}

/// Loads which way the packet goes (one byte): 0 as the connection was opened, 1 back.
pub(super) fn ct_direction() -> Expr {
    const CT_DIRECTION: u32 = 1;
    other("ct", &[(1, REG1), (2, CT_DIRECTION)])
}

/// Loads the type of the destination address (four bytes): [`LOCAL`] for the namespace's own.
pub(super) fn destination_type() -> Expr {
    const RESULT_ADDRTYPE: u32 = 3;
    const FLAG_DADDR: u32 = 2;
    other("fib", &[(1, REG1), (2, RESULT_ADDRTYPE), (3, FLAG_DADDR)])
}

/// Goes on only if a socket is there for the packet: of its connection, or one that listens.
pub(super) fn socket() -> Expr {
    const TRANSPARENT: u32 = 0;
    // What is loaded of the socket is of no interest. Where there is none, the rule ends here.
    other(SOCKET, &[(1, TRANSPARENT), (2, REG1)])
}

/// The one expression of ours that kernels are built without (`CONFIG_NFT_SOCKET`).
const SOCKET: &str = "socket";

/// `RTN_LOCAL`.
pub(super) const LOCAL: u32 = 2;

/// Whether the kernel's rule does what ours does. It adds attributes of its own, which do not count.
pub(super) fn same(ours: &[Expr], theirs: &[Expr]) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(a, b)| match (a, b) {
            (Expr::Element(a), Expr::Element(b)) => {
                a.iter().all(|a| b.iter().any(|b| covers(a, b)))
            }
            _ => false,
        })
}

const REG1: u32 = 1;
const CT_MARK: u32 = 3;

fn compare(operator: Operator, value: &[u8]) -> Expr {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.into())),
    ])
    .into()
}

/// An expression that the netlink crate does not know: numbered attributes with numbers in network order.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expr {
    Expressions::Other {
        expression_type: name.into(),
        attributes: attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().into()))
            .collect(),
    }
    .into()
}

fn covers(ours: &ExpressionAttribute, theirs: &ExpressionAttribute) -> bool {
    use Expressions as X;
    match (ours, theirs) {
        (ExpressionAttribute::Data(ours), ExpressionAttribute::Data(theirs)) => {
            match (ours, theirs) {
                (X::Bitwise(a), X::Bitwise(b)) => subset(a, b),
                (X::Cmp(a), X::Cmp(b)) => subset(a, b),
                (X::Immediate(a), X::Immediate(b)) => subset(a, b),
                (X::Meta(a), X::Meta(b)) => subset(a, b),
                (X::Payload(a), X::Payload(b)) => subset(a, b),
                (
                    X::Other {
                        expression_type: name,
                        attributes: a,
                    },
                    X::Other {
                        expression_type: other,
                        attributes: b,
                    },
                ) => name == other && subset(a, b),
                _ => false,
            }
        }
        (ours, theirs) => ours == theirs,
    }
}

fn subset<T: PartialEq>(ours: &[T], theirs: &[T]) -> bool {
    ours.iter().all(|a| theirs.contains(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rules_are_the_same_and_others_are_not() {
        let ours = vec![meta(MetaKey::Mark), eq(&[1, 0, 0, 0]), accept()];
        assert!(same(&ours, &ours.clone()));
        assert!(!same(&ours, &ours[..2]));
        let other_value = vec![meta(MetaKey::Mark), eq(&[2, 0, 0, 0]), accept()];
        assert!(!same(&ours, &other_value));
        let other_operator = vec![meta(MetaKey::Mark), ne(&[1, 0, 0, 0]), accept()];
        assert!(!same(&ours, &other_operator));
        assert!(!same(&[ct_mark()], &[set_ct_mark()]));
    }

    #[test]
    fn what_the_kernel_adds_does_not_count() {
        let ours = [redirect()];
        let theirs = [other("redir", &[(1, REG1), (3, 0)])];
        assert!(same(&ours, &theirs));
        assert!(!same(&theirs, &ours));
    }
}
