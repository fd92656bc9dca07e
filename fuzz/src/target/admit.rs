//! Packets of a peer at the receiver: source, destination, filter, and the way to the door.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_engine::{Admit, ChecksumState, DropReason, Transport};

use crate::mutate::mutate;
use crate::packet::{Flow, TCP, Tcp, UDP};
use crate::pair::{self, DOOR, LOCAL, Pair};
use crate::reference::{Part, Upper, View, clamped, transport_sum, view};
use crate::tape::Tape;
use crate::{Target, corpus};

#[derive(Default)]
pub(crate) struct Admission {
    pair: Pair,
}

impl Target for Admission {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let before = hostile_packet(tape, (1, 2));
        let mut after = before.clone();
        let admit = self.pair.admit(&mut after);
        let expected = judge(&before);
        match (&admit, expected) {
            (Admit::Deliver, Verdict::Deliver { port }) => {
                let change = port.map(|port| (2, port));
                let told = clamped(&before, pair::PATH_MTU);
                assert_only_change((&before, told), &after, change, ChecksumState::Complete);
            }
            (Admit::Drop(_), Verdict::Drop) => assert_eq!(after, before),
            // A flow table that forgets and collides decides about these; `fragment` looks at them.
            (Admit::Deliver | Admit::Drop(DropReason::Filtered), Verdict::Behind) => {
                assert_eq!(after, before);
            }
            (Admit::Deliver | Admit::Consumed(_) | Admit::Drop(_), _) => {
                panic!("{admit:?} but {expected:?}: {before:02x?}")
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// With the destination port rewritten to this one.
    Deliver {
        port: Option<u16>,
    },
    Drop,
    /// More of a fragmented packet.
    Behind,
}

/// What node 2 must do with a packet of node 1, when it has sent nothing itself.
pub(crate) fn judge(packet: &[u8]) -> Verdict {
    let Some(View { src, dst, part, .. }) = view(packet) else {
        return Verdict::Drop;
    };
    let (from, own) = (pair::overlay(1), pair::overlay(2));
    let is_ours = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (src, dst) == (from.0, own.0),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (src, dst) == (from.1, own.1),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    if !is_ours {
        return Verdict::Drop;
    }
    let upper = match part {
        Part::Whole(upper) | Part::First(_, upper) => upper,
        Part::Later(_) => return Verdict::Behind,
    };
    if !pair::is_allowed(upper) || is_hidden(upper) {
        return Verdict::Drop;
    }
    let mut doors = DOOR.iter();
    let port = match upper {
        Upper::Tcp(port) => doors
            .find(|(door, _)| *door == port)
            .map(|(_, hidden)| *hidden),
        Upper::Udp(_)
        | Upper::EchoRequest
        | Upper::EchoReply
        | Upper::IcmpError
        | Upper::Other(_) => None,
    };
    Verdict::Deliver { port }
}

/// Whether a packet became what it should be but for a port, by its place in the transport header, and a checksum that
/// follows. A checksum that was off stays off by as much, and UDP's sign for none stays.
pub(crate) fn assert_only_change(
    (before, mut expected): (&[u8], Vec<u8>),
    after: &[u8],
    change: Option<(usize, u16)>,
    state: ChecksumState,
) {
    if change.is_none() && expected == before {
        assert_eq!(after, before);
        return;
    }
    let view = view(before).unwrap();
    let (protocol, field) = match view.part {
        Part::Whole(Upper::Udp(_)) | Part::First(_, Upper::Udp(_)) => (UDP, view.transport_at + 6),
        Part::Whole(_) | Part::First(..) | Part::Later(_) => (TCP, view.transport_at + 16),
    };
    if let Some((port_at, port)) = change {
        let at = view.transport_at + port_at;
        expected[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }
    let has_none = protocol == UDP && before[field..field + 2] == [0, 0];
    if state == ChecksumState::Partial || has_none {
        assert_eq!(after, expected);
        return;
    }
    assert!(protocol == TCP || after[field..field + 2] != [0, 0]);
    let sum = |packet: &[u8]| transport_sum(packet, view.transport_at, protocol) % 0xffff;
    assert_eq!(sum(after), sum(before));
    expected[field..field + 2].copy_from_slice(&after[field..field + 2]);
    assert_eq!(after, expected);
}

/// A packet from one node to another, mangled.
pub(crate) fn hostile_packet(tape: &mut Tape<'_>, (from, to): (u8, u8)) -> Vec<u8> {
    let ports = [
        11_434, 80, 53, 1000, 1005, 22, 0, 41_434, 41_080, 40_053, 40_434, 65_535,
    ];
    let mut packet = match tape.below(8) {
        7 => {
            let len = tape.below(120);
            tape.bytes(len)
        }
        4..7 => tape.pick(corpus::packets()).clone(),
        _ => {
            let mut flow = Flow::draw(tape);
            flow.ports = (*tape.pick(&ports), *tape.pick(&ports));
            if tape.chance(2) {
                std::mem::swap(&mut flow.ports.0, &mut flow.ports.1);
            }
            let len = tape.below(40);
            let tcp = Tcp {
                seq: tape.u32(),
                flags: tape.u8(),
                ..Tcp::default()
            };
            flow.packet(&tcp, tape.u16(), &tape.bytes(len))
        }
    };
    if tape.chance(4) {
        wrap(tape, &mut packet);
    }
    mutate(tape, &mut packet, 3, corpus::packets());
    // A wrong address hides everything else; most packets have right ones.
    if !tape.chance(8) {
        readdress(&mut packet, pair::overlay(from), pair::overlay(to));
    }
    packet
}

/// Puts extension headers before an IPv6 packet's payload.
fn wrap(tape: &mut Tape<'_>, packet: &mut Vec<u8>) {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return;
    }
    for _ in 0..=tape.below(5) {
        let kind = *tape.pick(&[60, 0, 44, 60, 43, 51, 60]);
        let n_words = if kind == 44 { 0 } else { tape.below(3) };
        let mut extension = tape.bytes(8 + n_words * 8);
        extension[0] = packet[6];
        if kind == 44 {
            let place = *tape.pick(&[0_u16, 0, 1, 8, 9, 0xfff8]);
            extension[2..4].copy_from_slice(&place.to_be_bytes());
        } else {
            extension[1] = u8::try_from(n_words).unwrap();
        }
        packet[6] = kind;
        packet.splice(40..40, extension);
    }
}

/// Writes the addresses of two nodes where they belong, and keeps the checksums as they are.
pub(crate) fn readdress(packet: &mut [u8], from: (Ipv4Addr, Ipv6Addr), to: (Ipv4Addr, Ipv6Addr)) {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            packet[12..16].copy_from_slice(&from.0.octets());
            packet[16..20].copy_from_slice(&to.0.octets());
        }
        Some(6) if packet.len() >= 40 => {
            packet[8..24].copy_from_slice(&from.1.octets());
            packet[24..40].copy_from_slice(&to.1.octets());
        }
        _ => {}
    }
}

/// Whether it goes to a port where only the node's own translation leads.
fn is_hidden(upper: Upper) -> bool {
    let mut local = LOCAL.iter();
    match upper {
        Upper::Tcp(port) => {
            local.any(|(kind, _, hidden)| *kind == Transport::Tcp && *hidden == port)
                || DOOR.iter().any(|(_, hidden)| *hidden == port)
        }
        Upper::Udp(port) => {
            local.any(|(kind, _, hidden)| *kind == Transport::Udp && *hidden == port)
        }
        Upper::EchoRequest | Upper::EchoReply | Upper::IcmpError | Upper::Other(_) => false,
    }
}
