//! What a name of the mesh is answered with: the zone `.proxima`, its alias, and the reverse zones of its addresses.
//!
//! Made from a view and a catalogue, never changed afterwards; no I/O. Only the order of a model's hosts follows what happens.

mod record;
mod target;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use ipnet::{Ipv4Net, Ipv6Net};
use mesh_proto::id::NodeName;
use mesh_proto::local::NameMode;

use super::ALIAS;
use super::reverse::{self, Reverse};
use crate::catalog::Catalog;
use crate::choice::Hosts;
use crate::view::View;

/// Everything that the resolver knows by itself.
#[derive(Debug)]
pub struct Zone {
    catalog: Arc<Catalog>,
    /// The mesh's suffix, then the alias; labels in lower case.
    suffixes: [Vec<String>; 2],
    nodes: BTreeMap<NodeName, NodeAddrs>,
    by_addr: BTreeMap<IpAddr, NodeName>,
    pool: Ipv4Net,
    prefix: Ipv6Net,
    own: NodeAddrs,
    service: (Ipv4Addr, Ipv6Addr),
    names: NameMode,
    serial: u32,
    hosts: Option<Arc<Hosts>>,
}

#[derive(Debug, Clone, Copy)]
struct NodeAddrs {
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

/// An answer with authority.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// NOERROR or NXDOMAIN.
    pub code: ResponseCode,
    /// What was asked for; empty for NODATA.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authorities: Vec<Record>,
    /// Addresses of names in the answers.
    pub additionals: Vec<Record>,
}

impl Zone {
    /// Makes the zone.
    #[must_use]
    pub fn build(view: &View, catalog: Arc<Catalog>) -> Self {
        let netmap = &view.netmap;
        let mut nodes = BTreeMap::new();
        for peer in netmap.peers.values() {
            nodes.insert(
                peer.name.clone(),
                NodeAddrs {
                    ipv4: peer.ipv4,
                    ipv6: peer.ipv6,
                },
            );
        }
        let own = &netmap.node;
        nodes.insert(
            own.name.clone(),
            NodeAddrs {
                ipv4: own.ipv4,
                ipv6: own.ipv6,
            },
        );
        let by_addr = nodes
            .iter()
            .flat_map(|(name, addrs)| {
                [
                    (addrs.ipv4.into(), name.clone()),
                    (addrs.ipv6.into(), name.clone()),
                ]
            })
            .collect();
        Self {
            catalog,
            suffixes: [labels_of(&netmap.network.suffix), labels_of(ALIAS)],
            nodes,
            by_addr,
            pool: netmap.network.ipv4_pool,
            prefix: netmap.network.ipv6_prefix,
            own: NodeAddrs {
                ipv4: own.ipv4,
                ipv6: own.ipv6,
            },
            service: view.service_addrs(),
            names: view.settings.names,
            // A serial only has to differ after a change; it wraps.
            serial: u32::try_from(view.revision.version & u64::from(u32::MAX)).unwrap_or_default(),
            hosts: None,
        }
    }

    /// The same zone, whose answers name hosts in the order that this node's own experience with them suggests.
    #[must_use]
    pub fn ordered_by(self, hosts: Arc<Hosts>) -> Self {
        Self {
            hosts: Some(hosts),
            ..self
        }
    }

    /// Whether an address belongs to the mesh: no upstream may answer with it.
    #[must_use]
    pub fn is_mesh_addr(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.pool.contains(&ip),
            IpAddr::V6(ip) => {
                self.prefix.contains(&ip) || ip.to_ipv4().is_some_and(|ip| self.pool.contains(&ip))
            }
        }
    }

    /// Whether an address is this machine's: only its own programs are answered.
    #[must_use]
    pub fn is_own_addr(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.own.ipv4 || ip == self.service.0,
            IpAddr::V6(ip) => ip == self.own.ipv6 || ip == self.service.1,
        }
    }

    /// The answer to a question of class IN; `None` for a name that is none of the mesh's.
    #[must_use]
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Reply> {
        let labels: Vec<String> = name.iter().map(lower_case).collect();
        // A mesh may be called `proxima` or `internal`: the longer suffix is looked for first.
        let mut suffixes: Vec<&Vec<String>> = self.suffixes.iter().collect();
        suffixes.sort_by_key(|suffix| std::cmp::Reverse(suffix.len()));
        for suffix in suffixes {
            if let Some(below) = labels.strip_suffix(suffix.as_slice()) {
                return Some(self.answer_forward(name, kind, below, suffix));
            }
        }
        match reverse::parse(&labels, self.pool, self.prefix) {
            Reverse::Foreign => None,
            Reverse::Above => Some(self.no_data(self.reverse_apex(&labels))),
            Reverse::Missing => Some(self.no_name(self.reverse_apex(&labels))),
            Reverse::Address(ip) => Some(self.answer_reverse(name, kind, ip, &labels)),
        }
    }

    fn answer_reverse(
        &self,
        name: &Name,
        kind: RecordType,
        ip: IpAddr,
        labels: &[String],
    ) -> Reply {
        let (service4, service6) = self.service;
        let target = if ip == IpAddr::V4(service4) || ip == IpAddr::V6(service6) {
            vec!["ollama".to_owned()]
        } else if let Some(node) = self.by_addr.get(&ip) {
            vec![node.as_str().to_owned(), "node".to_owned()]
        } else {
            return self.no_name(self.reverse_apex(labels));
        };
        let pointer = record::pointer(name, &self.name_under(&self.suffixes[0], &target));
        if kind == RecordType::PTR {
            Reply::found(vec![pointer])
        } else if kind == RecordType::ANY {
            Reply::found(vec![record::minimal_any(name)])
        } else {
            self.no_data(self.reverse_apex(labels))
        }
    }

    /// The name that the SOA of a reverse answer stands at: the part that all addresses of the mesh have in common.
    fn reverse_apex(&self, labels: &[String]) -> Name {
        let is_v4 = labels
            .iter()
            .rev()
            .nth(1)
            .is_some_and(|label| label == "in-addr");
        let n_common = if is_v4 {
            self.pool.prefix_len() / 8
        } else {
            self.prefix.prefix_len() / 4
        };
        let n_labels = (usize::from(n_common) + 2).min(labels.len());
        name_of(&labels[labels.len() - n_labels..])
    }

    fn name_under(&self, suffix: &[String], below: &[String]) -> Name {
        name_of(&[below, suffix].concat())
    }

    fn soa(&self, apex: Name, ttl: u32) -> Record {
        let under = |label: &str| self.name_under(&self.suffixes[0], &[label.to_owned()]);
        record::soa(apex, ttl, under("ns"), under("hostmaster"), self.serial)
    }

    fn no_data(&self, apex: Name) -> Reply {
        Reply {
            authorities: vec![self.soa(apex, record::NEGATIVE_TTL)],
            ..Reply::found(Vec::new())
        }
    }

    fn no_name(&self, apex: Name) -> Reply {
        Reply {
            code: ResponseCode::NXDomain,
            ..self.no_data(apex)
        }
    }
}

impl Reply {
    fn found(answers: Vec<Record>) -> Self {
        Self {
            code: ResponseCode::NoError,
            answers,
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

fn labels_of(name: &str) -> Vec<String> {
    name.split('.')
        .filter(|label| !label.is_empty())
        .map(str::to_ascii_lowercase)
        .collect()
}

/// A label as text; bytes above ASCII become characters that no rule knows.
fn lower_case(label: &[u8]) -> String {
    label
        .iter()
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect()
}

/// The absolute name of these labels; the root when they make none, which only a label that was never valid can.
fn name_of(labels: &[String]) -> Name {
    let bytes = labels
        .iter()
        .map(|label| label.chars().map(|c| c as u8).collect::<Vec<u8>>());
    let mut name = Name::from_labels(bytes).unwrap_or_else(|_| Name::root());
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests;
