//! From the labels under the suffix to what they stand for, and from that to records.

use hickory_proto::rr::{Name, Record, RecordType};
use mesh_proto::MODEL_PORT;
use mesh_proto::id::NodeName;
use mesh_proto::local::NameMode;
use mesh_proto::name::fold;

use super::{NodeAddrs, Reply, Zone, record};
use crate::catalog::{Entry, HostOffer, Lookup};

/// More addresses help no client and make answers long.
const N_ADDRS_MAX: usize = 4;
/// Of more hosts the first are put in order.
const N_SORTED_MAX: usize = 64;
/// How many models stand in an answer that lists them.
const N_LISTED_MAX: usize = 256;
const N_CANDIDATES_MAX: usize = 16;

/// What a name under the suffix stands for.
enum Target<'a> {
    /// The suffix itself.
    Apex,
    /// A name that only has names below it.
    Branch,
    /// This node's gateway and resolver.
    Service,
    /// A node.
    Node(NodeAddrs),
    /// A model, wherever it is served, or on the one host named.
    Model {
        entry: &'a Entry,
        on: Option<NodeName>,
    },
    /// A name that several models claim.
    Candidates(Vec<&'a Entry>),
    /// Where and how a model is served.
    Instance {
        entry: &'a Entry,
        on: Option<NodeName>,
    },
    /// Where and how the gateway is served.
    GatewayInstance,
    /// The list of all models.
    Browse,
    /// The list of one model.
    BrowseOne(String),
    /// The list of services.
    Services,
    /// Nothing.
    Missing,
}

impl Zone {
    pub(super) fn answer_forward(
        &self,
        name: &Name,
        kind: RecordType,
        below: &[String],
        suffix: &[String],
    ) -> Reply {
        let apex = || self.name_under(suffix, &[]);
        let below: Vec<&str> = below.iter().map(String::as_str).collect();
        let target = self.target(&below);
        if matches!(target, Target::Missing) {
            return self.no_name(apex());
        }
        if kind == RecordType::ANY {
            return Reply::found(vec![record::minimal_any(name)]);
        }
        let answers = self.records(name, kind, &target, suffix);
        if answers.is_empty() {
            return self.no_data(apex());
        }
        let additionals = self.additionals(kind, &target, suffix);
        Reply {
            additionals,
            ..Reply::found(answers)
        }
    }

    fn target(&self, below: &[&str]) -> Target<'_> {
        match below {
            [] => Target::Apex,
            ["node" | "id" | "_tcp" | "_udp"]
            | ["_dns-sd", "_udp"]
            | ["_sub", "_ollama", "_tcp"] => Target::Branch,
            ["ollama" | "api" | "gw" | "ns"] => Target::Service,
            ["_services", "_dns-sd", "_udp"] => Target::Services,
            ["_ollama", "_tcp"] => Target::Browse,
            [one, "_sub", "_ollama", "_tcp"] => self.browse_one(one),
            [slug, "_ollama", "_tcp"] => into_instance(self.target(&[slug])),
            ["_ollama", "_tcp", rest @ ..] => into_instance(self.target(rest)),
            ["_tcp", rest @ ..] => into_branch(&self.target(rest)),
            labels if labels.iter().any(|label| label.starts_with('_')) => Target::Missing,
            [.., "ollama" | "api" | "gw" | "ns" | "www"] => Target::Missing,
            [id12, "id"] => of_lookup(self.catalog.by_digest(id12), None),
            [.., "id"] => Target::Missing,
            [model @ .., node, "node"] => self.node_target(model, node),
            model => of_lookup(self.catalog.lookup(&fold(&model.join("-"))), None),
        }
    }

    fn node_target(&self, model: &[&str], node: &str) -> Target<'_> {
        let Ok(node) = node.parse::<NodeName>() else {
            return Target::Missing;
        };
        match self.nodes.get(&node) {
            None => Target::Missing,
            Some(addrs) if model.is_empty() => Target::Node(*addrs),
            Some(_) => of_lookup(
                self.catalog.on_node(&node, &fold(&model.join("-"))),
                Some(node),
            ),
        }
    }

    fn browse_one(&self, label: &str) -> Target<'_> {
        let Some(slug) = label.strip_prefix('_') else {
            return Target::Missing;
        };
        match self
            .catalog
            .lookup(slug)
            .found()
            .and_then(|entry| self.catalog.label_of(entry))
        {
            Some(label) => Target::BrowseOne(label),
            None => Target::Missing,
        }
    }

    fn records(
        &self,
        name: &Name,
        kind: RecordType,
        target: &Target<'_>,
        suffix: &[String],
    ) -> Vec<Record> {
        let under = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            self.name_under(suffix, &labels)
        };
        match (target, kind) {
            (Target::Apex, RecordType::SOA) => vec![self.soa(name.clone(), record::TTL)],
            (Target::Apex, RecordType::NS) => vec![record::name_server(name, under(&["ns"]))],
            (Target::Service, RecordType::A) => vec![record::a(name, self.service.0)],
            (Target::Service, RecordType::AAAA) => vec![record::aaaa(name, self.service.1)],
            (Target::Node(addrs), RecordType::A) => vec![record::a(name, addrs.ipv4)],
            (Target::Node(addrs), RecordType::AAAA) => vec![record::aaaa(name, addrs.ipv6)],
            (Target::Model { entry, on }, RecordType::A) => self
                .addrs(entry, on.as_ref())
                .iter()
                .map(|addrs| record::a(name, addrs.ipv4))
                .collect(),
            (Target::Model { entry, on }, RecordType::AAAA) => self
                .addrs(entry, on.as_ref())
                .iter()
                .map(|addrs| record::aaaa(name, addrs.ipv6))
                .collect(),
            (Target::Model { entry, .. } | Target::Instance { entry, .. }, RecordType::TXT) => {
                vec![record::model_text(name, entry)]
            }
            (Target::Candidates(entries), RecordType::TXT) => entries
                .iter()
                .take(N_CANDIDATES_MAX)
                .map(|entry| record::model_text(name, entry))
                .collect(),
            (Target::Instance { entry, on }, RecordType::SRV) => {
                let hosts = self.instances(entry, on.as_ref());
                let targets = hosts.iter().zip(0_u16..);
                targets
                    .map(|(host, priority)| {
                        record::service(name, priority, MODEL_PORT, self.host_name(host, suffix))
                    })
                    .collect()
            }
            (Target::GatewayInstance, RecordType::SRV) => {
                vec![record::service(name, 0, MODEL_PORT, under(&["ollama"]))]
            }
            (Target::Browse, RecordType::PTR) => {
                let labels = self
                    .catalog
                    .entries()
                    .filter_map(|entry| self.catalog.label_of(entry));
                let mut labels: Vec<String> = labels.take(N_LISTED_MAX).collect();
                labels.dedup();
                labels
                    .iter()
                    .map(|label| record::pointer(name, &under(&[label, "_ollama", "_tcp"])))
                    .collect()
            }
            (Target::BrowseOne(label), RecordType::PTR) => {
                vec![record::pointer(name, &under(&[label, "_ollama", "_tcp"]))]
            }
            (Target::Services, RecordType::PTR) => {
                vec![record::pointer(name, &under(&["_ollama", "_tcp"]))]
            }
            _ => Vec::new(),
        }
    }

    /// Addresses of the targets, so that a browser of services needs no second question.
    fn additionals(&self, kind: RecordType, target: &Target<'_>, suffix: &[String]) -> Vec<Record> {
        let both = |name: &Name, addrs: NodeAddrs| {
            [record::a(name, addrs.ipv4), record::aaaa(name, addrs.ipv6)]
        };
        match (target, kind) {
            (Target::Instance { entry, on }, RecordType::SRV) => {
                let hosts = self.instances(entry, on.as_ref());
                let records = hosts
                    .iter()
                    .flat_map(|host| both(&self.host_name(host, suffix), self.host_addrs(host)));
                records.collect()
            }
            (Target::GatewayInstance, RecordType::SRV) => both(
                &self.name_under(suffix, &["ollama".to_owned()]),
                self.service_addrs(),
            )
            .into(),
            (Target::Apex, RecordType::NS) => both(
                &self.name_under(suffix, &["ns".to_owned()]),
                self.service_addrs(),
            )
            .into(),
            _ => Vec::new(),
        }
    }

    /// Where requests for a model go. The gateway stands for this node's own share: nothing listens at its overlay
    /// address for its own programs.
    fn addrs(&self, entry: &Entry, on: Option<&NodeName>) -> Vec<NodeAddrs> {
        self.instances(entry, on)
            .iter()
            .map(|host| self.host_addrs(host))
            .collect()
    }

    fn instances<'a>(&self, entry: &'a Entry, on: Option<&NodeName>) -> Vec<Host<'a>> {
        let is_here = |host: &&HostOffer| on.is_none_or(|name| host.name == *name);
        let online = entry.online().filter(is_here);
        let mut hosts: Vec<&HostOffer> = online.take(N_SORTED_MAX).collect();
        if self.names == NameMode::Gateway && on.is_none() {
            return hosts.first().map(|_| Host::Gateway).into_iter().collect();
        }
        if let Some(known) = &self.hosts {
            known.pick_for_name(&mut hosts, N_ADDRS_MAX);
        }
        let host = |host: &'a HostOffer| {
            if host.is_self {
                Host::Gateway
            } else {
                Host::Peer(host)
            }
        };
        hosts.into_iter().take(N_ADDRS_MAX).map(host).collect()
    }

    fn host_name(&self, host: &Host<'_>, suffix: &[String]) -> Name {
        match host {
            Host::Gateway => self.name_under(suffix, &["ollama".to_owned()]),
            Host::Peer(peer) => {
                self.name_under(suffix, &[peer.name.as_str().to_owned(), "node".to_owned()])
            }
        }
    }

    fn host_addrs(&self, host: &Host<'_>) -> NodeAddrs {
        match host {
            Host::Gateway => self.service_addrs(),
            Host::Peer(peer) => NodeAddrs {
                ipv4: peer.ipv4,
                ipv6: peer.ipv6,
            },
        }
    }

    const fn service_addrs(&self) -> NodeAddrs {
        NodeAddrs {
            ipv4: self.service.0,
            ipv6: self.service.1,
        }
    }
}

enum Host<'a> {
    Gateway,
    Peer(&'a HostOffer),
}

fn of_lookup(found: Lookup<'_>, on: Option<NodeName>) -> Target<'_> {
    match found {
        Lookup::Found(entry) => Target::Model { entry, on },
        Lookup::Ambiguous(entries) => Target::Candidates(entries),
        Lookup::Unknown => Target::Missing,
    }
}

/// Names below a model or the gateway: `_tcp.llama3` has no records and yet is there.
const fn into_branch<'a>(target: &Target<'_>) -> Target<'a> {
    if matches!(target, Target::Model { .. } | Target::Service) {
        Target::Branch
    } else {
        Target::Missing
    }
}

fn into_instance(target: Target<'_>) -> Target<'_> {
    if let Target::Model { entry, on } = target {
        Target::Instance { entry, on }
    } else if matches!(target, Target::Service) {
        Target::GatewayInstance
    } else if matches!(target, Target::Candidates(_)) {
        target
    } else {
        Target::Missing
    }
}
