//! A membership at work: the talk with the coordinator, the map, and the overlay made from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mesh_engine::{Destination, Event, PingToken, Update};
use mesh_proto::auth_key::pin_of;
use mesh_proto::control::{N_ENDPOINTS_MAX, code};
use mesh_proto::id::{NodeId, RelayId};
use mesh_proto::local::{CoordinatorStatus, PathStatus, PingReply, Settings};
use mesh_proto::netmap::{Netmap, Revision};
use mesh_proto::share::HostOffers;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::clock::MeshClock;
use super::command::{Answer, names_node};
use super::map::{Applied, MapKeeper};
use super::overlay::{Overlay, Parts};
use crate::control::{self, ControlEvent, Credentials, Link, Report};
use crate::dial::Dialer;
use crate::local::LocalError;
use crate::os::linux::changes::Changed;
use crate::relay::offer::{Offer, OfferConfig};
use crate::state_dir::{Membership, StateDir};
use crate::view::{ByIpv4, View};

/// Control events that wait for the loop; the stream waits when they are not taken.
const N_EVENTS: usize = 64;
/// Pings that wait for their answer.
const N_PINGS_MAX: usize = 64;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Everything that exists while the node is switched on.
pub(super) struct Session {
    pub(super) events: mpsc::Receiver<ControlEvent>,
    pub(super) overlay: Option<Overlay>,
    pub(super) status: ControlState,
    map: MapKeeper,
    clock: MeshClock,
    /// The map without expired peers, as the parts see it.
    shown: Option<Arc<Netmap>>,
    by_ipv4: Arc<ByIpv4>,
    next_expiry_ms: Option<u64>,
    /// When the overlay, which could not be made, is tried again, and how often it failed.
    retry: Option<(Instant, u32)>,
    report: watch::Sender<Report>,
    revision: watch::Sender<Option<Revision>>,
    redial: watch::Sender<u64>,
    pings: BTreeMap<PingToken, Answer<PingReply>>,
    /// Who this node is to its coordinator, and how it is reached.
    credentials: Credentials,
    link: Box<dyn Fn() -> Link + Send + Sync>,
    /// The relay that this node offers, if it does.
    relay_offer: Option<Offer>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

/// How the control plane fares.
#[derive(Debug, Default)]
pub(super) struct ControlState {
    url: String,
    is_connected: bool,
    last_heard: Option<Instant>,
    error: Option<String>,
    /// The last map that was refused for being older than the one in use.
    pub(super) refused_map: Option<Revision>,
}

/// Why the network is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The kernel told of a change.
    Changed(Changed),
    /// What it told got lost, and may have been anything.
    Lost,
    /// The machine slept, or this process stood still: mappings of NATs, links and peers may be gone.
    Slept,
}

impl Cause {
    fn has_routes(&self) -> bool {
        match self {
            Self::Changed(changed) => changed.has_routes,
            Self::Lost | Self::Slept => true,
        }
    }
}

impl Session {
    /// Starts talking to the coordinator, from the map on disk if there is one.
    pub(super) fn start(
        membership: Membership,
        state: &StateDir,
        dialer: &Dialer,
    ) -> anyhow::Result<Self> {
        let machine_key = state.machine_key()?;
        anyhow::ensure!(
            NodeId::of(&machine_key.public()) == membership.node_id,
            "the machine key is not the one that joined: run `meshctl logout`, then `meshctl up --auth-key …`"
        );
        let credentials = Credentials {
            node_id: membership.node_id,
            machine_key,
            coordinator_key: membership.coordinator_key,
            urls: membership.urls,
        };
        let tls = control::tls_config(pin_of(&credentials.coordinator_key))
            .map_err(anyhow::Error::msg)
            .context("TLS")?;
        let link = {
            let (urls, key) = (credentials.urls.clone(), credentials.machine_key.clone());
            let dialer = dialer.clone();
            move || Link::new(urls.clone(), Arc::clone(&tls), key.clone()).through(dialer.clone())
        };
        let map = MapKeeper::load(state, &credentials)?;
        let mut clock = MeshClock::default();
        clock.on_kept(map.kept_at_ms());
        let cancel = CancellationToken::new();
        let (events_tx, events) = mpsc::channel(N_EVENTS);
        let revision = watch::Sender::new(map.revision());
        let redial = watch::Sender::new(0);
        let report = watch::Sender::new(Report::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(control::run_map_stream(
            credentials.clone(),
            link(),
            revision.subscribe(),
            redial.subscribe(),
            events_tx,
            cancel.clone(),
        ));
        tasks.spawn(control::run_updates(
            link(),
            report.subscribe(),
            revision.subscribe(),
            cancel.clone(),
        ));
        let status = ControlState {
            url: credentials.urls.first().cloned().unwrap_or_default(),
            ..ControlState::default()
        };
        let mut session = Self {
            events,
            overlay: None,
            status,
            map,
            clock,
            shown: None,
            by_ipv4: Arc::default(),
            next_expiry_ms: None,
            retry: None,
            report,
            revision,
            redial,
            pings: BTreeMap::new(),
            credentials,
            link: Box::new(link),
            relay_offer: None,
            tasks,
            cancel,
        };
        session.show();
        Ok(session)
    }

    /// Ends the talk with the coordinator.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Ends the talk and takes the overlay down.
    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        // Nobody takes what the stream still has to say, and it must not wait for that.
        self.events.close();
        if let Some(overlay) = self.overlay.take() {
            overlay.leave().await;
        }
        if let Some(offer) = self.relay_offer.take() {
            offer.stop().await;
        }
        while self.tasks.join_next().await.is_some() {}
    }

    /// Offers the mesh a relay at this node, or no more.
    pub(super) async fn offer_relay(
        &mut self,
        is_wanted: bool,
        state: &StateDir,
        port: u16,
    ) -> anyhow::Result<()> {
        if is_wanted && self.relay_offer.is_none() {
            let key = state.relay_key()?;
            self.relay_offer = Some(Offer::start(OfferConfig {
                link: (self.link)(),
                coordinator: self.credentials.coordinator_key,
                node: self.credentials.machine_key.public(),
                key,
                port,
            }));
        } else if !is_wanted && let Some(offer) = self.relay_offer.take() {
            offer.stop().await;
        }
        Ok(())
    }

    /// Why the relay that this node offers is of no use, when it is not.
    pub(super) fn relay_trouble(&self) -> Option<String> {
        self.relay_offer.as_ref().and_then(Offer::trouble)
    }

    pub(super) fn has_map(&self) -> bool {
        self.shown.is_some()
    }

    pub(super) fn netmap(&self) -> Option<&Arc<Netmap>> {
        self.shown.as_ref()
    }

    /// When the loop must look after something here.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let engine = self
            .overlay
            .as_ref()
            .and_then(|overlay| overlay.engine.poll_timeout())
            .map(|(at, _)| at);
        let expiry = self.next_expiry_ms.map(|at| {
            let left = Duration::from_millis(at.saturating_sub(self.unix_ms()));
            // A wall clock may jump; look again within the hour whatever it says.
            Instant::now() + left.min(Duration::from_secs(3600))
        });
        [engine, expiry, self.retry.map(|(at, _)| at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes in what the control client says; true when the map changed.
    pub(super) fn on_event(&mut self, event: ControlEvent, state: &StateDir) -> bool {
        match event {
            ControlEvent::Connected { url } => {
                tracing::info!(url, "the coordinator is connected");
                self.status.url = url;
                self.status.is_connected = true;
                self.status.error = None;
                self.status.last_heard = Some(Instant::now());
                self.report.send_modify(|report| report.n_streams += 1);
                false
            }
            ControlEvent::Disconnected { error } => {
                self.status.is_connected = false;
                self.status.error = Some(error.to_string());
                false
            }
            ControlEvent::Frame { frame, line } => {
                self.status.last_heard = Some(Instant::now());
                let (told, sent_at_ms) = (frame.revision, frame.sent_at_ms);
                let applied = self.map.on_frame(*frame, &line, state);
                if applied.needs_full() {
                    self.map.ask_full();
                }
                self.revision.send_replace(self.map.revision());
                if applied.needs_full() {
                    self.redial.send_modify(|n| *n += 1);
                }
                if applied == Applied::Older {
                    self.status.refused_map = Some(told);
                    return false;
                }
                let now = Instant::now();
                let is_leap = self.clock.on_heard(now, wall_ms(), told.epoch, sent_at_ms);
                let is_changed = applied.is_changed();
                if is_changed {
                    self.status.refused_map = None;
                }
                if is_changed || is_leap {
                    self.show();
                }
                (is_changed || is_leap) && self.has_map()
            }
        }
    }

    /// Brings the overlay in line with the map; makes it when there is none.
    pub(super) async fn use_map(&mut self, parts: &Parts<'_>) -> anyhow::Result<()> {
        let Some(netmap) = self.shown.clone() else {
            return Ok(());
        };
        let unix_ms = self.unix_ms();
        let overlay = match &mut self.overlay {
            Some(overlay) => overlay,
            None => match Overlay::start(&netmap, parts).await {
                Ok(overlay) => self.overlay.insert(overlay),
                Err(err) => {
                    let n_failures = self.retry.map_or(0, |(_, n)| n);
                    self.retry = Some((Instant::now() + retry_after(n_failures), n_failures + 1));
                    return Err(err);
                }
            },
        };
        self.retry = None;
        overlay.relays.set_known(&netmap.network.relays);
        let peers = netmap.peers.values().map(|peer| peer.node_key).collect();
        overlay.relays.set_peers(peers);
        overlay
            .engine
            .handle_control(Instant::now(), Update::Netmap { netmap, unix_ms });
        Ok(())
    }

    /// The overlay, when it does not fit the map any more.
    pub(super) fn take_misfit(&mut self) -> Option<Overlay> {
        let netmap = self.shown.as_ref()?;
        self.overlay.take_if(|overlay| !overlay.fits(netmap))
    }

    /// The overlay is tried when something else happens, not at a time.
    pub(super) fn forget_retry(&mut self) {
        self.retry = None;
    }

    /// Whether it is time to try the overlay again.
    pub(super) fn is_retry_due(&self, now: Instant) -> bool {
        self.overlay.is_none() && self.retry.is_some_and(|(at, _)| at <= now)
    }

    /// Takes a rotated key into use of which the coordinator knows, but this node never heard the answer.
    pub(super) fn adopt_node_key(&mut self, state: &StateDir) {
        let Some(netmap) = &self.shown else { return };
        match state.adopt_next_node_key(&netmap.node.node_key) {
            Ok(None) => {}
            Ok(Some(node_key)) => {
                tracing::info!("the coordinator has the new tunnel key already; it is in use now");
                if let Some(overlay) = &mut self.overlay {
                    overlay.set_node_key(node_key);
                }
            }
            Err(err) => tracing::warn!(%err, "cannot take the new tunnel key into use"),
        }
    }

    /// Whether a text names this node itself.
    pub(super) fn is_own_name(&self, text: &str) -> bool {
        self.shown.as_ref().is_some_and(|netmap| {
            let node = &netmap.node;
            let addrs = [IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6)];
            let suffix = &netmap.network.suffix;
            names_node(text, &node.id, node.name.as_str(), suffix, addrs)
        })
    }

    /// Leaves peers out whose key has expired meanwhile; true when there were any.
    pub(super) fn expire_peers(&mut self) -> bool {
        let unix_ms = self.unix_ms();
        if self.next_expiry_ms.is_none_or(|at| at > unix_ms) {
            return false;
        }
        self.show();
        if let (Some(overlay), Some(netmap)) = (&mut self.overlay, &self.shown) {
            let update = Update::Netmap {
                netmap: Arc::clone(netmap),
                unix_ms,
            };
            overlay.engine.handle_control(Instant::now(), update);
        }
        true
    }

    /// Makes the map that the parts see: without peers whose key has expired.
    fn show(&mut self) {
        let now_ms = self.unix_ms();
        let Some(netmap) = self.map.netmap() else {
            return;
        };
        let mut shown = netmap.clone();
        shown.peers.retain(|_, peer| !peer.is_expired(now_ms));
        self.next_expiry_ms = shown
            .peers
            .values()
            .filter_map(|peer| peer.expires_at_ms)
            .min();
        self.by_ipv4 = Arc::new(ByIpv4::of(&shown));
        self.shown = Some(Arc::new(shown));
    }

    pub(super) fn publish_view(
        &self,
        view: &watch::Sender<Option<Arc<View>>>,
        settings: &Settings,
        offers: &Arc<HostOffers>,
    ) {
        let Some(netmap) = &self.shown else { return };
        view.send_replace(Some(Arc::new(View::new(
            self.map.newest().unwrap_or_default(),
            Arc::clone(netmap),
            Arc::clone(&self.by_ipv4),
            Arc::clone(offers),
            settings.clone(),
        ))));
    }

    /// Sends what the engine has to say; true when the coordinator should hear of it.
    pub(super) fn drain(&mut self) -> bool {
        let Some(overlay) = &mut self.overlay else {
            return false;
        };
        while let Some(transmit) = overlay.engine.poll_transmit() {
            overlay.dataplane.send(&transmit);
        }
        let mut is_moved = false;
        while let Some(event) = overlay.engine.poll_event() {
            match event {
                Event::ReflexiveEndpoint(_) | Event::PortMapped(_) => is_moved = true,
                Event::HomeRelay(relay) => {
                    overlay.relays.set_home(relay);
                    is_moved = true;
                }
                Event::Upnp(order) => overlay.upnp.order(order),
                Event::NeedRelay(relay) => overlay.relays.need(relay),
                Event::SparesInUse(numbers) => overlay.dataplane.keep_spares(&numbers),
                Event::Pong {
                    node,
                    token,
                    rtt,
                    path,
                    path_mtu,
                } => {
                    if let (Some(answer), Some(peer)) = (
                        self.pings.remove(&token),
                        self.shown
                            .as_ref()
                            .and_then(|netmap| netmap.peers.get(&node)),
                    ) {
                        let path = path_status(path, self.shown.as_deref());
                        let reply = PingReply {
                            id: node,
                            name: peer.name.clone(),
                            ip: IpAddr::V4(peer.ipv4),
                            path,
                            rtt_ms: rtt.as_secs_f64() * 1e3,
                            path_mtu,
                        };
                        // The asker may have given up meanwhile.
                        let _ = answer.send(Ok(reply));
                    }
                }
                Event::PeerUp { node } => tracing::info!(peer = %node, "session"),
                Event::PeerDown { node } => tracing::info!(peer = %node, "session over"),
                Event::PathChanged { node, path } => {
                    tracing::debug!(peer = %node, ?path, "path");
                }
            }
        }
        is_moved
    }

    /// Tells the coordinator where this node is and what it shares, if that changed.
    pub(super) fn report(&self, offers: &Arc<HostOffers>) {
        let overlay = self.overlay.as_ref();
        let mut candidates = overlay.map_or_else(Vec::new, |overlay| overlay.engine.candidates());
        candidates.truncate(N_ENDPOINTS_MAX);
        // Until the overlay is up nothing is known, and telling nothing would erase what the coordinator has.
        let is_connected = self.status.is_connected && self.overlay.is_some();
        self.report.send_if_modified(|report| {
            let next = Report {
                n_streams: report.n_streams,
                is_connected,
                candidates,
                disco_key: overlay.map(|overlay| overlay.disco_key),
                home_relay: overlay.and_then(|overlay| overlay.engine.home_relay()),
                offers: Arc::clone(offers),
            };
            let is_changed = *report != next;
            *report = next;
            is_changed
        });
    }

    /// The machine's network changed, or may have; true when it did.
    pub(super) async fn on_network(&mut self, now: Instant, cause: &Cause) -> bool {
        let Some(overlay) = &mut self.overlay else {
            if !self.status.is_connected || *cause == Cause::Slept {
                self.redial.send_modify(|n| *n += 1);
            }
            return false;
        };
        // Another way out may lead by another address of this machine, and past what an old connection goes by.
        let is_rerouted = cause.has_routes() && overlay.refresh_routes().await;
        let is_moved = overlay.refresh_endpoints().await;
        overlay.refresh_gateway().await;
        overlay.refresh_mtu().await;
        let is_doubtful = match cause {
            Cause::Changed(changed) => overlay.leads_by(&changed.regained),
            Cause::Lost => false,
            Cause::Slept => true,
        };
        if !is_moved && !is_rerouted && !is_doubtful {
            return false;
        }
        tracing::info!(is_moved, is_rerouted, is_doubtful, "the network changed");
        overlay.dataplane.rebind();
        overlay
            .engine
            .handle_control(now, Update::LocalEndpoints(overlay.endpoints.clone()));
        overlay.engine.handle_control(now, Update::Rebind);
        overlay.relays.redial();
        self.redial.send_modify(|n| *n += 1);
        true
    }

    /// Has the map kept again, once there is room for it.
    pub(super) fn mend_map(&mut self, state: &StateDir) {
        if self.map.is_mendable(state) {
            tracing::info!("there is room for the map again");
            self.map.ask_full();
            self.revision.send_replace(None);
            self.redial.send_modify(|n| *n += 1);
        }
    }

    /// Why the map is not kept, when it is not.
    pub(super) fn map_trouble(&self) -> Option<&str> {
        self.map.trouble()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.status.is_connected
    }

    /// The time by which keys expire, Unix milliseconds.
    pub(super) fn unix_ms(&self) -> u64 {
        self.clock.unix_ms(Instant::now(), wall_ms())
    }

    /// By how much this machine's clock is ahead of the coordinator's, when it is much.
    pub(super) fn clock_ahead_ms(&self) -> Option<i64> {
        self.clock.ahead_ms()
    }

    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        let report = self.report.borrow();
        let candidates = report.candidates.iter();
        candidates.map(|candidate| candidate.endpoint).collect()
    }

    pub(super) fn find_peer(&self, text: &str) -> Option<NodeId> {
        let netmap = self.shown.as_ref()?;
        let suffix = &netmap.network.suffix;
        let found = netmap.peers.iter().find(|(id, peer)| {
            names_node(
                text,
                id,
                peer.name.as_str(),
                suffix,
                [IpAddr::V4(peer.ipv4), IpAddr::V6(peer.ipv6)],
            )
        });
        found.map(|(id, _)| *id)
    }

    pub(super) fn ping(&mut self, now: Instant, node: NodeId, answer: Answer<PingReply>) {
        self.pings.retain(|_, answer| !answer.is_closed());
        let Some(overlay) = &mut self.overlay else {
            let starting = LocalError::new(
                code::NEEDS_LOGIN,
                "the node is not up yet: its overlay could not be made so far",
            );
            return drop(answer.send(Err(starting)));
        };
        match overlay.engine.ping(now, &node) {
            Some(token) if self.pings.len() < N_PINGS_MAX => drop(self.pings.insert(token, answer)),
            Some(_) | None => {
                let error = LocalError::new(
                    code::UNAVAILABLE,
                    "the probe cannot be sent now: try again in a moment",
                );
                drop(answer.send(Err(error)));
            }
        }
    }

    /// What a relay is called; empty when the map does not name it.
    pub(super) fn relay_name(&self, id: &RelayId) -> String {
        let netmap = self.shown.as_deref();
        netmap.map_or_else(String::new, |netmap| relay_name(netmap, id))
    }

    /// A path as people see it.
    pub(super) fn path_status(&self, path: Option<Destination>) -> PathStatus {
        path_status(path, self.shown.as_deref())
    }

    pub(super) fn coordinator_status(&self) -> CoordinatorStatus {
        CoordinatorStatus {
            url: self.status.url.clone(),
            is_connected: self.status.is_connected,
            last_heard_ms_ago: self
                .status
                .last_heard
                .map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
            revision: self.map.newest().unwrap_or_default(),
            error: self.status.error.clone(),
        }
    }
}

/// A path as people see it.
fn path_status(path: Option<Destination>, netmap: Option<&Netmap>) -> PathStatus {
    match path {
        None => PathStatus::Connecting,
        Some(Destination::Udp(endpoint) | Destination::Spare { endpoint, .. }) => {
            PathStatus::Direct { endpoint }
        }
        Some(Destination::Relay { relay, .. }) => PathStatus::Relayed {
            relay,
            name: netmap.map_or_else(String::new, |netmap| relay_name(netmap, &relay)),
        },
    }
}

fn relay_name(netmap: &Netmap, id: &RelayId) -> String {
    let found = netmap.network.relays.iter().find(|relay| relay.id == *id);
    found.map_or_else(String::new, |relay| relay.name.clone())
}

/// How long until an overlay that could not be made is tried again: soon, then more rarely.
fn retry_after(n_failures: u32) -> Duration {
    RETRY_FIRST
        .saturating_mul(1 << n_failures.min(8))
        .min(RETRY_LONGEST)
}

/// This machine's own clock, Unix milliseconds.
fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_tried_again_soon_and_then_more_rarely() {
        assert_eq!(retry_after(0), RETRY_FIRST);
        assert_eq!(retry_after(1), RETRY_FIRST * 2);
        assert_eq!(retry_after(u32::MAX), RETRY_LONGEST);
    }
}
