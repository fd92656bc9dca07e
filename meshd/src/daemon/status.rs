//! The status of the node, put together from its parts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_proto::control::code;
use mesh_proto::door::DoorStatus;
use mesh_proto::id::NodeId;
use mesh_proto::local::{
    DnsAnswer, DnsQuery, DnsStatus, NetCheck, NoIpv6, NodeStatus, PathStatus, PeerStatus,
    PortMapping, Problem, RelayCheck, ShareStatus, Status,
};
use mesh_proto::netmap::Revision;

use super::Daemon;
use super::overlay::Overlay;
use super::session::Session;
use crate::gateway::Gateway;
use crate::local::LocalError;

impl Daemon {
    pub(super) fn status(&self) -> Status {
        let session = self.session.as_ref();
        Status {
            state: *self.run_state.borrow(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: session.and_then(|session| self.node_status(session)),
            coordinator: session.map(Session::coordinator_status),
            peers: session.map(peer_statuses).unwrap_or_default(),
            problems: self.problems(),
        }
    }

    fn node_status(&self, session: &Session) -> Option<NodeStatus> {
        let netmap = session.netmap()?;
        let (node, network) = (&netmap.node, &netmap.network);
        let userspace = session.overlay.as_ref().and_then(Overlay::userspace);
        Some(NodeStatus {
            id: node.id,
            name: node.name.clone(),
            dns_name: format!("{}.node.{}", node.name, network.suffix),
            user: node.user_name.clone(),
            tags: node.tags.clone(),
            network_id: network.id,
            ipv4: node.ipv4,
            ipv6: node.ipv6,
            gateway_url: match userspace {
                Some(userspace) => format!("http://{}", userspace.gateway),
                None => format!(
                    "http://ollama.{}:{}",
                    network.suffix,
                    mesh_proto::MODEL_PORT
                ),
            },
            service_ipv4: network.service_ipv4,
            suffix: network.suffix.clone(),
            endpoints: session.endpoints(),
            interface: match userspace {
                Some(_) => String::new(),
                None => self.config.interface.clone(),
            },
            userspace: userspace.cloned(),
            is_sharing: self.share.borrow().is_on,
            expires_at_ms: node.expires_at_ms,
        })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.trouble.borrow().iter().cloned().collect();
        if let Some(session) = &self.session {
            let coordinator = session.coordinator_status();
            if let (false, Some(error)) = (coordinator.is_connected, &coordinator.error) {
                let message = format!("{error}. Traffic, names and models go on by the last map.");
                problems.push(Problem {
                    code: "coordinator_unreachable".to_owned(),
                    message,
                    fix: None,
                });
            }
            let expired = session
                .netmap()
                .and_then(|netmap| netmap.node.expires_at_ms);
            if expired.is_some_and(|at| at <= session.unix_ms()) {
                problems.push(Problem {
                    code: "node_expired".to_owned(),
                    message: "this node's key has expired: peers talk to it no longer".to_owned(),
                    fix: Some("meshctl up --auth-key pxk_…".to_owned()),
                });
            }
            problems.extend(session.clock_ahead_ms().map(wrong_clock));
            problems.extend(session.map_trouble().map(unkept_map));
            problems.extend(session.relay_trouble().map(|message| Problem {
                code: code::RELAY_UNREACHABLE.to_owned(),
                message,
                fix: Some("meshctl set relay=off".to_owned()),
            }));
            problems.extend(self.unused_key_problem());
            problems.extend(
                session
                    .status
                    .refused_map
                    .map(|told| older_map(told, coordinator.revision)),
            );
            if let Some(overlay) = &session.overlay {
                problems.extend(overlay.problems(self.settings.dns && self.config.dns));
            }
        }
        problems
    }

    /// Brings the metrics up to date.
    pub(super) fn observe(&self) {
        crate::metrics::observe(&self.status());
        if let Some(overlay) = self
            .session
            .as_ref()
            .and_then(|session| session.overlay.as_ref())
        {
            crate::metrics::observe_dataplane(&overlay.dataplane.stats());
        }
        let share = self.share_status();
        let is_closed = share.door.closed.is_some();
        crate::metrics::observe_door(share.n_active, share.n_queued, is_closed);
    }

    pub(super) fn share_status(&self) -> ShareStatus {
        let share = self.share.borrow().clone();
        let mut offers = (**self.inventory.offers.borrow()).clone();
        // The offers follow the settings a moment later, and are empty while sharing is off.
        offers.audience = share.audience.clone();
        let inventory = self.inventory.status.borrow().clone();
        let overlay = self
            .session
            .as_ref()
            .and_then(|session| session.overlay.as_ref());
        let (n_active, n_queued) = overlay.map_or((0, 0), |overlay| overlay.load());
        let queue = overlay.map_or_else(Vec::new, |overlay| overlay.guests());
        ShareStatus {
            is_on: share.is_on,
            models: share.models,
            offers,
            backends: inventory.backend_statuses(),
            n_active,
            n_queued,
            gpus: inventory.gpus.clone(),
            door: DoorStatus {
                policy: share.door,
                closed: inventory.closed,
                queue,
            },
            pulls: share.pulls,
        }
    }

    /// The gateway, once there is an overlay.
    pub(super) fn gateway(&self) -> Result<Arc<Gateway>, LocalError> {
        let session = self.session.as_ref();
        let overlay = session.and_then(|session| session.overlay.as_ref());
        overlay.map(Overlay::gateway).ok_or_else(|| {
            LocalError::new(code::NEEDS_LOGIN, "the node is not up: run `meshctl up`")
        })
    }

    pub(super) fn dns_status(&self) -> Result<DnsStatus, LocalError> {
        let overlay = self
            .session
            .as_ref()
            .and_then(|session| session.overlay.as_ref());
        overlay
            .map(|overlay| overlay.dns_status(&self.view))
            .ok_or_else(not_up)
    }

    /// What the zone of this node says of a name.
    pub(super) fn dns_query(&self, query: &DnsQuery) -> Result<DnsAnswer, LocalError> {
        let session = self.session.as_ref();
        let overlay = session.and_then(|session| session.overlay.as_ref());
        let overlay = overlay.ok_or_else(not_up)?;
        crate::dns::query::ask(overlay.zone(), query)
    }

    /// Asks what the network looks like.
    pub(super) fn look_around(&mut self) -> Result<(), LocalError> {
        let session = self.session.as_mut();
        let overlay = session.and_then(|session| session.overlay.as_mut());
        let overlay = overlay.ok_or_else(not_up)?;
        overlay.engine.look_around(Instant::now());
        Ok(())
    }

    /// What the network looks like, and whether no more is to be known of it now.
    pub(super) fn net_check(&self) -> Result<(bool, NetCheck), LocalError> {
        let session = self.session.as_ref().ok_or_else(not_up)?;
        let overlay = session.overlay.as_ref().ok_or_else(not_up)?;
        Ok(net_check(overlay, session))
    }
}

fn not_up() -> LocalError {
    LocalError::new(code::NEEDS_LOGIN, "the node is not up: run `meshctl up`")
}

fn net_check(overlay: &Overlay, session: &Session) -> (bool, NetCheck) {
    let report = overlay.engine.net_report(Instant::now());
    let relays = report.relays.into_iter().map(|relay| RelayCheck {
        id: relay.id,
        name: session.relay_name(&relay.id),
        rtt_ms: relay.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        is_connected: relay.is_up,
        is_home: report.home_relay == Some(relay.id),
    });
    let check = NetCheck {
        has_udp_ipv4: report.has_udp_ipv4,
        has_udp_ipv6: report.has_udp_ipv6,
        no_ipv6: (!report.has_udp_ipv6).then(|| no_ipv6(overlay, session)),
        reflexive: report.reflexive,
        mapping: report.mapping,
        port_mapping: report.port_mapping.map(|(endpoint, protocol)| PortMapping {
            endpoint,
            protocol: protocol.to_owned(),
        }),
        relays: relays.collect(),
    };
    (report.is_settled, check)
}

/// Why no server answers by IPv6.
fn no_ipv6(overlay: &Overlay, session: &Session) -> NoIpv6 {
    let servers = session.netmap().map(|netmap| &netmap.network);
    let has_server = servers.is_some_and(|network| {
        let relays = network.relays.iter().flat_map(|relay| &relay.stun);
        relays.chain(&network.stun).any(SocketAddr::is_ipv6)
    });
    if !overlay.endpoints.iter().any(SocketAddr::is_ipv6) {
        NoIpv6::NoAddress
    } else if has_server {
        NoIpv6::NoAnswer
    } else {
        NoIpv6::NoServer
    }
}

fn wrong_clock(ahead_ms: i64) -> Problem {
    let n_minutes = ahead_ms.unsigned_abs() / 60_000;
    let span = match n_minutes {
        0..120 => format!("{n_minutes} minutes"),
        120..2880 => format!("{} hours", n_minutes / 60),
        _ => format!("{} days", n_minutes / 1440),
    };
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Problem {
        code: "clock_wrong".to_owned(),
        message: format!(
            "this machine's clock is {span} {way} the coordinator's; the mesh goes by the coordinator's"
        ),
        fix: Some("timedatectl set-ntp true".to_owned()),
    }
}

fn unkept_map(why: &str) -> Problem {
    Problem {
        code: "state_unwritable".to_owned(),
        message: format!(
            "the map of the mesh cannot be kept: {why}. The mesh goes on; after a restart without its coordinator this node \
             would know an older map. Make room on the disk, and it is kept again by itself"
        ),
        fix: None,
    }
}

fn older_map(told: Revision, known: Revision) -> Problem {
    let message = format!(
        "the coordinator offers an older map ({}.{}) than this node has ({}.{}); it is refused, and changes of the mesh do not \
         arrive. Its clock was in the past when it started: its operator sets the clock and restarts it",
        told.epoch, told.version, known.epoch, known.version
    );
    Problem {
        code: "map_rolled_back".to_owned(),
        message,
        fix: None,
    }
}

fn peer_statuses(session: &Session) -> Vec<PeerStatus> {
    let Some(netmap) = session.netmap() else {
        return Vec::new();
    };
    let stats: BTreeMap<NodeId, _> = session
        .overlay
        .iter()
        .flat_map(|overlay| overlay.engine.peer_stats(Instant::now()))
        .map(|stats| (stats.node, stats))
        .collect();
    let mut peers: Vec<PeerStatus> = netmap
        .peers
        .iter()
        .map(|(id, peer)| {
            let stats = stats.get(id);
            let path = match stats {
                Some(stats) if stats.is_up => session.path_status(stats.path),
                Some(_) | None => PathStatus::Idle,
            };
            PeerStatus {
                id: *id,
                name: peer.name.clone(),
                user: peer.user_name.clone(),
                tags: peer.tags.clone(),
                ipv4: peer.ipv4,
                ipv6: peer.ipv6,
                is_online: peer.is_online,
                last_seen_ms: peer.last_seen_ms,
                path,
                rtt_ms: stats
                    .filter(|stats| stats.is_up)
                    .and_then(|stats| stats.rtt)
                    .map(|rtt| rtt.as_secs_f64() * 1e3),
                loss_percent: stats
                    .filter(|stats| stats.is_up && stats.rtt.is_some())
                    .map(|stats| f64::from(stats.loss) * 100.0),
                path_mtu: stats
                    .filter(|stats| stats.is_up)
                    .and_then(|stats| stats.path_mtu),
                rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
                tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
                last_handshake_ms_ago: stats
                    .and_then(|stats| stats.last_handshake_age)
                    .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                n_models: peer.offers.models.len(),
            }
        })
        .collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}
