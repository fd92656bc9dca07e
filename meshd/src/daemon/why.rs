//! Why one node reaches a port of another, or does not: policy, name, offer and path, each judged by itself. Pure.
//!
//! What is looked at is given: the view, the coordinator's word on the policy, the peer's status and the answer to a probe.

use std::net::IpAddr;

use mesh_proto::control::{AllowedRequest, code};
use mesh_proto::filter::Allow;
use mesh_proto::id::NodeId;
use mesh_proto::local::{
    PathStatus, PeerStatus, PingReply, Verdict, Why, WhyRequest, WhyStep, WhySubject,
};
use mesh_proto::netmap::PeerEntry;
use mesh_proto::{MODEL_PORT, WEB_PORT};

use super::command::names_node;
use crate::catalog::{Catalog, Entry, Lookup};
use crate::control::ControlError;
use crate::local::LocalError;
use crate::view::View;

/// What this node calls itself in a question.
const SELF: &str = "self";

/// One end of the question.
#[derive(Debug, Clone, Copy)]
enum End<'a> {
    Own,
    Peer(NodeId, &'a PeerEntry),
}

/// What a question comes to at a first look.
#[derive(Debug)]
pub(super) enum Read<'a> {
    /// There are both ends: more is to be found out.
    Asks(Question<'a>),
    /// There is no such thing as was asked for.
    Answered(Why),
}

/// A question whose both ends are known.
#[derive(Debug)]
pub(super) struct Question<'a> {
    view: &'a View,
    from: End<'a>,
    to: End<'a>,
    port: u16,
    /// The model, when one was asked for instead of a node.
    model: Option<&'a Entry>,
    /// Under which it was asked for.
    asked: String,
}

impl<'a> Question<'a> {
    /// Finds out who is meant.
    ///
    /// # Errors
    /// [`code::NOT_FOUND`] when the node that asks is none of this mesh.
    pub(super) fn read(
        view: &'a View,
        catalog: &'a Catalog,
        request: &WhyRequest,
    ) -> Result<Read<'a>, LocalError> {
        let Some(from) = find(view, &request.from) else {
            return Err(LocalError::new(
                code::NOT_FOUND,
                format!(
                    "no node `{}` in this mesh: `meshctl status` lists them, and `self` is this one",
                    request.from
                ),
            ));
        };
        let asked = request.to.clone();
        let (to, model) = match find(view, &request.to) {
            Some(to) => (to, None),
            None => match host_of(view, catalog, &request.to) {
                Ok((to, entry)) => (to, Some(entry)),
                Err(message) => {
                    return Ok(Read::Answered(Why {
                        from: name_of(view, from).to_owned(),
                        to: asked,
                        port: request.port,
                        steps: vec![step(WhySubject::Name, Verdict::No, message)],
                    }));
                }
            },
        };
        Ok(Read::Asks(Self {
            view,
            from,
            to,
            port: request.port,
            model,
            asked,
        }))
    }

    /// What the policy allows, where this node knows that by itself: it is the one that lets packets in.
    pub(super) fn local_policy(&self) -> Option<Vec<Allow>> {
        match (self.from, self.to) {
            (End::Own, End::Own) => Some(vec![Allow::All]),
            (End::Peer(id, peer), End::Own) => {
                let filter = &self.view.netmap.filter;
                Some(filter.allowed_to(&id, peer.user, &peer.tags))
            }
            (End::Own | End::Peer(..), End::Peer(..)) => None,
        }
    }

    /// What to ask the coordinator.
    pub(super) fn asks_coordinator(&self) -> AllowedRequest {
        AllowedRequest {
            from: self.id_of(self.from),
            to: self.id_of(self.to),
        }
    }

    /// The end at the other side of a path of this node, which can be probed.
    pub(super) fn far_end(&self) -> Option<NodeId> {
        match (self.from, self.to) {
            (End::Own, End::Peer(id, _)) | (End::Peer(id, _), End::Own) => Some(id),
            (End::Own, End::Own) | (End::Peer(..), End::Peer(..)) => None,
        }
    }

    /// Puts the answer together.
    pub(super) fn answer(
        &self,
        policy: Result<Vec<Allow>, ControlError>,
        status: Option<&PeerStatus>,
        pong: Option<Result<PingReply, LocalError>>,
    ) -> Why {
        let mut steps = vec![self.policy(policy), self.name()];
        steps.extend(self.offer());
        steps.push(self.path(status, pong));
        Why {
            from: name_of(self.view, self.from).to_owned(),
            to: name_of(self.view, self.to).to_owned(),
            port: self.port,
            steps,
        }
    }

    fn policy(&self, told: Result<Vec<Allow>, ControlError>) -> WhyStep {
        let (from, to, port) = (self.asker(), self.asked_for(), self.port);
        let step = |verdict, message| step(WhySubject::Policy, verdict, message);
        match told {
            Ok(allow) if allow.iter().any(|allow| allow.has_tcp(port)) => step(
                Verdict::Yes,
                format!("{from} may open TCP port {port} on {to}"),
            ),
            Ok(allow) => step(
                Verdict::No,
                format!(
                    "the mesh's policy lets {from} not open TCP port {port} on {to}; it allows {}",
                    words(&allow)
                ),
            ),
            Err(ControlError::Refused { message, .. }) => step(
                Verdict::Unknown,
                format!("the coordinator does not tell what {from} may open on {to}: {message}"),
            ),
            Err(
                err @ (ControlError::Unreachable { .. }
                | ControlError::Impostor { .. }
                | ControlError::BadReply { .. }),
            ) => step(
                Verdict::Unknown,
                format!("only the coordinator knows what {from} may open on {to}: {err}"),
            ),
        }
    }

    fn name(&self) -> WhyStep {
        let (name, ip) = (self.asked_for(), self.ip_of(self.to));
        let message = match self.model {
            Some(entry) => format!(
                "{} is the model {}; {} of its {} hosts is asked first: {name}, {ip}",
                self.asked,
                entry.model,
                if entry.offers.len() == 1 {
                    "the one"
                } else {
                    "the best"
                },
                entry.offers.len()
            ),
            None => format!("{} is {name}, {ip}", self.asked),
        };
        step(WhySubject::Name, Verdict::Yes, message)
    }

    /// Whether there is something to be had at the ports of the door.
    fn offer(&self) -> Option<WhyStep> {
        if ![MODEL_PORT, WEB_PORT].contains(&self.port) {
            return None;
        }
        let to = self.asked_for();
        let step = |verdict, message| step(WhySubject::Offer, verdict, message);
        if let Some(entry) = self.model
            && matches!(self.from, End::Own)
        {
            return Some(step(
                Verdict::Yes,
                format!("{to} shares {} with this node", entry.model),
            ));
        }
        let netmap = &self.view.netmap;
        let offers = match (self.from, self.to) {
            (End::Own, End::Peer(_, peer)) => &peer.offers,
            (End::Own, End::Own) => &*self.view.own_offers,
            (End::Peer(_, peer), End::Own) => {
                let own = &self.view.own_offers;
                let is_admitted = own
                    .audience
                    .admits(netmap.node.user, peer.user, &peer.user_name);
                if !is_admitted {
                    return Some(WhyStep {
                        fix: Some("meshctl share set --audience everyone".to_owned()),
                        ..step(
                            Verdict::No,
                            format!("this node does not share with {}'s user", peer.name),
                        )
                    });
                }
                own
            }
            (End::Peer(..), End::Peer(..)) => {
                return Some(step(
                    Verdict::Unknown,
                    format!("what {to} shares with {} only that one knows", self.asker()),
                ));
            }
        };
        Some(match offers.models.len() {
            0 => WhyStep {
                fix: Some("meshctl share on".to_owned()),
                ..step(
                    Verdict::No,
                    format!(
                        "{to} shares no model with {}: sharing is off there, or not with its user",
                        self.asker()
                    ),
                )
            },
            1 => step(Verdict::Yes, format!("{to} shares 1 model")),
            n_models => step(Verdict::Yes, format!("{to} shares {n_models} models")),
        })
    }

    fn path(
        &self,
        status: Option<&PeerStatus>,
        pong: Option<Result<PingReply, LocalError>>,
    ) -> WhyStep {
        let step = |verdict, message| step(WhySubject::Path, verdict, message);
        let peer = match (self.from, self.to) {
            (End::Own, End::Own) => {
                return step(Verdict::Yes, "it does not leave this machine".to_owned());
            }
            (End::Peer(..), End::Peer(..)) => {
                return step(
                    Verdict::Unknown,
                    format!(
                        "how {} reaches {} is known there alone: run this on {}",
                        self.asker(),
                        self.asked_for(),
                        self.asker()
                    ),
                );
            }
            (End::Own, End::Peer(_, peer)) | (End::Peer(_, peer), End::Own) => peer,
        };
        let last = status.map(last_known).unwrap_or_default();
        match pong {
            Some(Ok(pong)) => match pong.path {
                PathStatus::Direct { endpoint } => step(
                    Verdict::Yes,
                    format!("direct by {endpoint}, an answer in {:.1} ms", pong.rtt_ms),
                ),
                PathStatus::Relayed { relay, name } => {
                    let name = if name.is_empty() {
                        relay.to_string()
                    } else {
                        name
                    };
                    WhyStep {
                        fix: Some("meshctl netcheck".to_owned()),
                        ..step(
                            Verdict::Degraded,
                            format!(
                                "by relay {name} alone, an answer in {:.1} ms; no direct path was found",
                                pong.rtt_ms
                            ),
                        )
                    }
                }
                PathStatus::Idle | PathStatus::Connecting => {
                    step(Verdict::Yes, format!("an answer in {:.1} ms", pong.rtt_ms))
                }
            },
            Some(Err(err)) if !peer.is_online => step(
                Verdict::No,
                format!(
                    "{} is offline, the coordinator says, and does not answer: {err}{last}",
                    peer.name
                ),
            ),
            Some(Err(err)) => step(
                Verdict::No,
                format!("{} does not answer: {err}{last}", peer.name),
            ),
            None => step(
                Verdict::Unknown,
                format!("{} was not probed{last}", peer.name),
            ),
        }
    }

    fn asker(&self) -> &str {
        name_of(self.view, self.from)
    }

    fn asked_for(&self) -> &str {
        name_of(self.view, self.to)
    }

    fn id_of(&self, end: End<'_>) -> NodeId {
        match end {
            End::Own => self.view.netmap.node.id,
            End::Peer(id, _) => id,
        }
    }

    fn ip_of(&self, end: End<'_>) -> IpAddr {
        IpAddr::V4(match end {
            End::Own => self.view.netmap.node.ipv4,
            End::Peer(_, peer) => peer.ipv4,
        })
    }
}

fn name_of<'a>(view: &'a View, end: End<'a>) -> &'a str {
    match end {
        End::Own => view.netmap.node.name.as_str(),
        End::Peer(_, peer) => peer.name.as_str(),
    }
}

/// A node by its name, DNS name, id or overlay address.
fn find<'a>(view: &'a View, text: &str) -> Option<End<'a>> {
    let (netmap, own) = (&*view.netmap, &view.netmap.node);
    let suffix = &netmap.network.suffix;
    let own_addrs = [IpAddr::V4(own.ipv4), IpAddr::V6(own.ipv6)];
    if text == SELF || names_node(text, &own.id, own.name.as_str(), suffix, own_addrs) {
        return Some(End::Own);
    }
    let found = netmap.peers.iter().find(|(id, peer)| {
        let addrs = [IpAddr::V4(peer.ipv4), IpAddr::V6(peer.ipv6)];
        names_node(text, id, peer.name.as_str(), suffix, addrs)
    });
    found.map(|(id, peer)| End::Peer(*id, peer))
}

/// The host that a model's name leads to, and the model; why there is none otherwise.
fn host_of<'a>(
    view: &'a View,
    catalog: &'a Catalog,
    text: &str,
) -> Result<(End<'a>, &'a Entry), String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let suffixes = [view.netmap.network.suffix.as_str(), crate::dns::ALIAS];
    let bare = suffixes
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix('.'))
        .unwrap_or(&name);
    let entry = match catalog.lookup_model(bare) {
        Lookup::Found(entry) => entry,
        Lookup::Ambiguous(entries) => {
            let names: Vec<_> = entries.iter().map(|entry| entry.model.as_str()).collect();
            return Err(format!("`{text}` may be any of {}", names.join(", ")));
        }
        Lookup::Unknown => {
            return Err(format!(
                "there is neither a node nor a shared model `{text}` in this mesh, as far as this node is told; a node whose \
                 key expired is not listed either"
            ));
        }
    };
    let best = entry.online().next().or_else(|| entry.offers.first());
    let end = best.and_then(|offer| match view.netmap.peers.get_key_value(&offer.node) {
        _ if offer.is_self => Some(End::Own),
        Some((id, peer)) => Some(End::Peer(*id, peer)),
        None => None,
    });
    end.map(|end| (end, entry))
        .ok_or_else(|| format!("no host of `{text}` is left"))
}

/// What is known of the path since it was used last.
fn last_known(peer: &PeerStatus) -> String {
    match (peer.rtt_ms, peer.last_handshake_ms_ago) {
        (Some(rtt_ms), _) => format!("; the last probe took {rtt_ms:.1} ms"),
        (None, Some(ago_ms)) => format!("; the last handshake was {} s ago", ago_ms / 1000),
        (None, None) => String::new(),
    }
}

fn words(allow: &[Allow]) -> String {
    let mut words: Vec<String> = allow
        .iter()
        .map(|allow| match allow {
            Allow::All => "everything".to_owned(),
            Allow::Ping => "ping".to_owned(),
            Allow::Tcp(ports) if ports.first == ports.last => format!("TCP {}", ports.first),
            Allow::Tcp(ports) => format!("TCP {}-{}", ports.first, ports.last),
            Allow::Udp(ports) if ports.first == ports.last => format!("UDP {}", ports.first),
            Allow::Udp(ports) => format!("UDP {}-{}", ports.first, ports.last),
        })
        .collect();
    words.dedup();
    if words.is_empty() {
        return "nothing there".to_owned();
    }
    format!("{} alone", words.join(", "))
}

fn step(subject: WhySubject, verdict: Verdict, message: String) -> WhyStep {
    WhyStep {
        subject,
        verdict,
        message,
        fix: None,
    }
}

#[cfg(test)]
mod tests;
