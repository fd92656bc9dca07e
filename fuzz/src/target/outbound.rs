//! Packets of this machine: to peers, to the service address, to nowhere.

use std::net::IpAddr;

use mesh_engine::{ChecksumState, Outbound, Transport};

use super::admit::{assert_only_change, hostile_packet, readdress};
use crate::Target;
use crate::pair::{self, DOOR, LOCAL, Pair};
use crate::reference::{Part, Upper, View, clamped, view};
use crate::tape::Tape;

#[derive(Default)]
pub(crate) struct Outward {
    pair: Pair,
}

/// What must become of a packet: the port that changes, by its place in the transport header.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Peer(Option<(usize, u16)>),
    Reflect(Option<(usize, u16)>),
    Drop,
}

impl Target for Outward {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let mut before = hostile_packet(tape, (2, 1));
        if tape.chance(2) {
            readdress(&mut before, pair::overlay(2), pair::service());
        }
        let state = *tape.pick(&[ChecksumState::Complete, ChecksumState::Partial]);
        let mut after = before.clone();
        let outbound = self.pair.planes[1].outbound(self.pair.now, &mut after, state);
        let expected = judge(&before);
        let (told, change) = match (&outbound, expected) {
            (Outbound::Drop(_), Verdict::Drop) => (before.clone(), None),
            (Outbound::Peer(peer), Verdict::Peer(change)) => {
                assert!(*peer == self.pair.peers[1]);
                (clamped(&before, pair::PATH_MTU), change)
            }
            (Outbound::Reflect, Verdict::Reflect(change)) => {
                // It goes back from the service to this machine; turned once more, only the port differs.
                let (service, own) = (pair::service(), pair::overlay(2));
                let mut turned = after.clone();
                readdress(&mut turned, service, own);
                assert_eq!(turned, after);
                readdress(&mut after, own, service);
                (before.clone(), change)
            }
            (Outbound::Drop(_) | Outbound::Peer(_) | Outbound::Reflect, _) => {
                panic!("{outbound:?} but {expected:?}: {before:02x?}")
            }
        };
        assert_only_change((&before, told), &after, change, state);
    }
}

fn judge(packet: &[u8]) -> Verdict {
    let Some(View {
        src,
        dst,
        part,
        transport_at,
    }) = view(packet)
    else {
        return Verdict::Drop;
    };
    let is = |ip: IpAddr, (v4, v6)| match ip {
        IpAddr::V4(ip) => ip == v4,
        IpAddr::V6(ip) => ip == v6,
    };
    if !is(src, pair::overlay(2)) {
        return Verdict::Drop;
    }
    let src_port = || u16::from_be_bytes([packet[transport_at], packet[transport_at + 1]]);
    let flow = match part {
        Part::Whole(Upper::Tcp(port)) | Part::First(_, Upper::Tcp(port)) => {
            Some((Transport::Tcp, src_port(), port))
        }
        Part::Whole(Upper::Udp(port)) | Part::First(_, Upper::Udp(port)) => {
            Some((Transport::Udp, src_port(), port))
        }
        Part::Whole(_) | Part::First(..) | Part::Later(_) => None,
    };
    if is(dst, pair::service()) {
        return match (part, flow) {
            (Part::Whole(Upper::EchoRequest | Upper::EchoReply), _) => Verdict::Reflect(None),
            (Part::Whole(_), Some((transport, src_port, dst_port))) => {
                let all = || LOCAL.iter().filter(|(kind, _, _)| *kind == transport);
                let by_hidden = all().find(|(_, _, hidden)| *hidden == src_port);
                let by_port = all().find(|(_, port, _)| *port == dst_port);
                match (by_hidden, by_port) {
                    (Some((_, port, _)), _) => Verdict::Reflect(Some((0, *port))),
                    (None, Some((_, _, hidden))) => Verdict::Reflect(Some((2, *hidden))),
                    (None, None) => Verdict::Drop,
                }
            }
            (Part::Whole(_) | Part::First(..) | Part::Later(_), _) => Verdict::Drop,
        };
    }
    if !is(dst, pair::overlay(1)) {
        return Verdict::Drop;
    }
    let Some((transport, src_port, _)) = flow else {
        return Verdict::Peer(None);
    };
    let door = DOOR
        .iter()
        .find(|(_, hidden)| transport == Transport::Tcp && *hidden == src_port);
    let mut local = LOCAL.iter();
    if let Some((port, _)) = door {
        Verdict::Peer(Some((0, *port)))
    } else if local.any(|(kind, _, hidden)| *kind == transport && *hidden == src_port) {
        Verdict::Drop
    } else {
        Verdict::Peer(None)
    }
}
