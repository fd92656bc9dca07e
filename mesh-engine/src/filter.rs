//! The packet filter at the receiver: rules compiled for each peer, and flows of this node's own that let answers in.

pub(crate) mod flows;

use mesh_proto::filter::{Allow, Filter, PortRange};
use mesh_proto::id::NodeId;
use mesh_proto::netmap::PeerEntry;

use crate::filter::flows::{FRAGMENTS, Flow, Flows, Opener};
use crate::packet::{self, Fragment, Headers, Upper};

/// What one peer may open. The default allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    is_all: bool,
    is_ping: bool,
    tcp: Vec<PortRange>,
    udp: Vec<PortRange>,
}

impl Rules {
    pub(crate) fn compile(filter: &Filter, node: &NodeId, peer: &PeerEntry) -> Self {
        let mut rules = Self::default();
        for rule in &filter.rules {
            if !rule.src.matches(node, peer.user, &peer.tags) {
                continue;
            }
            for allow in &rule.allow {
                match allow {
                    Allow::All => rules.is_all = true,
                    Allow::Ping => rules.is_ping = true,
                    Allow::Tcp(ports) if !rules.tcp.contains(ports) => rules.tcp.push(*ports),
                    Allow::Udp(ports) if !rules.udp.contains(ports) => rules.udp.push(*ports),
                    Allow::Tcp(_) | Allow::Udp(_) => {}
                }
            }
        }
        rules
    }

    fn allows(&self, upper: Upper) -> bool {
        self.is_all
            || match upper {
                Upper::Tcp { dst_port, .. } => {
                    self.tcp.iter().any(|ports| ports.contains(dst_port))
                }
                Upper::Udp { dst_port, .. } => {
                    self.udp.iter().any(|ports| ports.contains(dst_port))
                }
                Upper::EchoRequest { .. } => self.is_ping,
                Upper::EchoReply { .. } | Upper::IcmpError | Upper::Other(_) => false,
            }
    }
}

/// Notes a packet that this node sends to a peer.
pub(crate) fn note_outbound(flows: &Flows, headers: &Headers, now_s: u32) {
    let flow = match (headers.fragment, headers.upper) {
        (
            Some(Fragment {
                is_first: false, ..
            }),
            _,
        ) => return,
        (_, Upper::Tcp { src_port, dst_port }) => {
            flow(packet::TCP, headers.dst, src_port, dst_port)
        }
        (_, Upper::Udp { src_port, dst_port }) => {
            flow(packet::UDP, headers.dst, src_port, dst_port)
        }
        (_, Upper::EchoRequest { ident }) => flow(packet::ICMP, headers.dst, ident, 0),
        (_, Upper::Other(protocol))
            if !matches!(protocol, packet::ICMP | packet::ICMPV6 | FRAGMENTS) =>
        {
            flow(protocol, headers.dst, 0, 0)
        }
        (_, Upper::EchoReply { .. } | Upper::IcmpError | Upper::Other(_)) => return,
    };
    flows.note(&flow, Opener::Own, now_s);
}

/// Whether a packet of a peer may come in. Source and destination were checked before.
pub(crate) fn admits(
    flows: &Flows,
    rules: &Rules,
    headers: &Headers,
    packet: &[u8],
    now_s: u32,
) -> bool {
    if let Some(Fragment { id, is_first }) = headers.fragment {
        let behind = fragment_flow(headers, id);
        if !is_first {
            return flows.is_own(&behind, now_s);
        }
        let is_admitted = admits_whole(flows, rules, headers, packet, now_s);
        if is_admitted {
            flows.note(&behind, Opener::Own, now_s);
        }
        return is_admitted;
    }
    admits_whole(flows, rules, headers, packet, now_s)
}

fn admits_whole(
    flows: &Flows,
    rules: &Rules,
    headers: &Headers,
    packet: &[u8],
    now_s: u32,
) -> bool {
    let peer = headers.src;
    let flow = match headers.upper {
        Upper::Tcp { src_port, dst_port } => flow(packet::TCP, peer, dst_port, src_port),
        Upper::Udp { src_port, dst_port } => flow(packet::UDP, peer, dst_port, src_port),
        Upper::EchoRequest { .. } => return rules.allows(headers.upper),
        Upper::EchoReply { ident } => {
            return flows.is_own(&flow(packet::ICMP, peer, ident, 0), now_s);
        }
        Upper::IcmpError => return rules.is_all || quotes_own_flow(flows, headers, packet, now_s),
        // Its flow would be that of fragments with the id 0.
        Upper::Other(FRAGMENTS) => return rules.allows(headers.upper),
        Upper::Other(protocol) => flow(protocol, peer, 0, 0),
    };
    if rules.allows(headers.upper) {
        // So that the node's own answers do not count as a flow that it opened: when the rule goes, the flow ends.
        flows.note(&flow, Opener::Peer, now_s);
        return true;
    }
    flows.is_own(&flow, now_s)
}

/// Whether an ICMP error speaks of a packet that this node sent to that peer within a flow it opened.
fn quotes_own_flow(flows: &Flows, headers: &Headers, packet: &[u8], now_s: u32) -> bool {
    let quoted = packet
        .get(headers.upper_at.saturating_add(8)..)
        .and_then(Headers::parse_quoted);
    let Some(quoted) = quoted else { return false };
    if quoted.src != headers.dst || quoted.dst != headers.src {
        return false;
    }
    let flow = match quoted.upper {
        Upper::Tcp { src_port, dst_port } => flow(packet::TCP, quoted.dst, src_port, dst_port),
        Upper::Udp { src_port, dst_port } => flow(packet::UDP, quoted.dst, src_port, dst_port),
        Upper::EchoRequest { ident } => flow(packet::ICMP, quoted.dst, ident, 0),
        Upper::EchoReply { .. } | Upper::IcmpError | Upper::Other(_) => return false,
    };
    flows.is_own(&flow, now_s)
}

const fn flow(protocol: u8, peer: std::net::IpAddr, own_port: u16, peer_port: u16) -> Flow {
    Flow {
        protocol,
        peer,
        own_port,
        peer_port,
    }
}

const fn fragment_flow(headers: &Headers, id: u32) -> Flow {
    let [a, b, c, d] = id.to_be_bytes();
    flow(
        FRAGMENTS,
        headers.src,
        u16::from_be_bytes([a, b]),
        u16::from_be_bytes([c, d]),
    )
}
