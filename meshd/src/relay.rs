//! The node's links to relays: one task each, and the ways between them and the packet threads.
//!
//! A relay carries sealed packets when no direct path does. The engine says which links are needed ([`Relays::need`],
//! [`Relays::set_home`]); packet threads put datagrams into a link's outbox ([`RelaySender`]), and what a relay
//! delivers goes to the data plane in large pieces ([`Chunk`]).

mod dial;
mod intake;
mod link;
pub(crate) mod offer;
mod outbox;
mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_io::udp::UdpSocket;
use mesh_proto::id::RelayId;
use mesh_proto::key::{NodeKey, NodePrivateKey};
use mesh_proto::relay::{Alias, N_RELAYS_MAX, RelayEntry, UDP_HEADER_LEN};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::dial::Credentials;
pub use self::intake::{Chunk, Delivery, Intake, intake};
use self::link::{Link, Wish};
use self::outbox::Outbox;
use self::udp::Routes;
use crate::control;
use crate::dial::Dialer;

/// Events that wait for the daemon's loop.
const N_EVENTS: usize = 64;

/// What happens at the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEvent {
    /// A link delivers.
    Up(RelayId),
    /// A link ended, or could not be made.
    Down(RelayId),
}

/// The way to the relays.
#[derive(Debug, Default)]
pub struct RelaySender {
    outboxes: ArcSwap<BTreeMap<RelayId, Arc<Outbox>>>,
    udp: Routes,
    /// The node keys of the peers.
    peers: ArcSwap<Vec<NodeKey>>,
}

impl RelaySender {
    /// Sends datagrams of `stride` bytes each, the last may be shorter, to a node by a relay; tells how many of them were
    /// taken. Without a link, or where it is full, they are not.
    pub fn send(&self, relay: &RelayId, to: &NodeKey, contents: &[u8], stride: usize) -> usize {
        let outboxes = self.outboxes.load();
        outboxes
            .get(relay)
            .map_or(0, |outbox| outbox.push(to, contents, stride))
    }

    /// Where datagrams for a node go by UDP and the header before each; `None` when [`Self::send`] takes them.
    pub(crate) fn udp(
        &self,
        relay: &RelayId,
        to: &NodeKey,
        contents: &[u8],
        stride: usize,
    ) -> Option<(SocketAddr, [u8; UDP_HEADER_LEN])> {
        self.udp.to(relay, to, contents, stride)
    }

    /// What is sealed in a datagram that a relay sent, if one did.
    pub(crate) fn take_udp<'a>(
        &self,
        from: SocketAddr,
        datagram: &'a [u8],
    ) -> Option<(RelayId, Alias, &'a [u8])> {
        self.udp.take(from, datagram)
    }

    /// Which peer a relay's UDP calls so. Looks through all of them: for what is rare.
    pub(crate) fn peer_of(&self, relay: &RelayId, alias: Alias) -> Option<NodeKey> {
        self.udp.node_of(relay, alias, &self.peers.load())
    }
}

/// All links of this node; owned by the daemon's loop.
#[derive(Debug)]
pub struct Relays {
    sender: Arc<RelaySender>,
    intake: Intake,
    events_tx: mpsc::Sender<RelayEvent>,
    events: mpsc::Receiver<RelayEvent>,
    node_key: NodePrivateKey,
    dialer: Dialer,
    socket: Option<Arc<UdpSocket>>,
    known: BTreeMap<RelayId, RelayEntry>,
    links: BTreeMap<RelayId, Held>,
    home: Option<RelayId>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

/// A link and the handles to it.
#[derive(Debug)]
struct Held {
    wish: watch::Sender<Wish>,
    cancel: CancellationToken,
    task: AbortHandle,
}

impl Relays {
    /// No links yet. `sender` is what the packet threads have, `intake` where datagrams go.
    #[must_use]
    pub fn new(
        sender: Arc<RelaySender>,
        intake: Intake,
        node_key: NodePrivateKey,
        dialer: Dialer,
    ) -> Self {
        let (events_tx, events) = mpsc::channel(N_EVENTS);
        Self {
            sender,
            intake,
            events_tx,
            events,
            node_key,
            dialer,
            socket: None,
            known: BTreeMap::new(),
            links: BTreeMap::new(),
            home: None,
            tasks: JoinSet::new(),
            cancel: CancellationToken::new(),
        }
    }

    /// Lets links use UDP too, by the socket that packets come by.
    #[must_use]
    pub fn with_udp(mut self, socket: Option<Arc<UdpSocket>>) -> Self {
        self.socket = socket;
        self
    }

    /// Takes in the peers of the netmap.
    pub fn set_peers(&self, peers: Vec<NodeKey>) {
        self.sender.peers.store(Arc::new(peers));
    }

    /// Takes in the relays of the netmap. Links to others end, and so do those whose relay is reached otherwise now.
    pub fn set_known(&mut self, relays: &[RelayEntry]) {
        let known: BTreeMap<RelayId, RelayEntry> = relays
            .iter()
            .take(N_RELAYS_MAX)
            .map(|relay| (relay.id, relay.clone()))
            .collect();
        let is_reached_as_before = |id: &RelayId| match (self.known.get(id), known.get(id)) {
            (Some(old), Some(new)) => {
                (&old.urls, old.pin, &old.stun) == (&new.urls, new.pin, &new.stun)
            }
            (None, _) | (_, None) => false,
        };
        let changed: Vec<RelayId> = self
            .links
            .keys()
            .filter(|id| !is_reached_as_before(id))
            .copied()
            .collect();
        self.known = known;
        for id in changed {
            self.end(&id);
        }
        self.hold_home();
    }

    /// A packet wants this relay: its link is made when there is none.
    pub fn need(&mut self, relay: RelayId) {
        if let Some(held) = self.links.get(&relay)
            && !held.task.is_finished()
        {
            held.wish
                .send_modify(|wish| wish.wanted_at = Instant::now());
            return;
        }
        self.start(relay);
    }

    /// The relay that this node listens on: its link is held open.
    pub fn set_home(&mut self, home: Option<RelayId>) {
        self.home = home;
        for (id, held) in &self.links {
            let is_home = Some(*id) == home;
            held.wish.send_if_modified(|wish| {
                let is_changed = wish.is_home != is_home;
                wish.is_home = is_home;
                is_changed
            });
        }
        self.hold_home();
    }

    /// The tunnel key was replaced: relays know this node by the new one.
    pub fn set_node_key(&mut self, node_key: NodePrivateKey) {
        self.node_key = node_key;
        let open: Vec<RelayId> = self.links.keys().copied().collect();
        for id in open {
            self.end(&id);
            self.start(id);
        }
    }

    /// The network changed: every link is dialled anew.
    pub fn redial(&self) {
        for held in self.links.values() {
            held.wish.send_modify(|wish| wish.n_redials += 1);
        }
    }

    /// The next thing that happens. May be cancelled without losing any.
    pub async fn event(&mut self) -> RelayEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Not while this lives: it holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Ends all links and waits for them.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        self.events.close();
        // A task that broke has said so in the log; here only its end counts.
        while self.tasks.join_next().await.is_some() {}
    }

    /// Takes the home relay's link up again when it is not there, as after its relay came back into the netmap.
    fn hold_home(&mut self) {
        if let Some(home) = self.home
            && self.known.contains_key(&home)
            && self
                .links
                .get(&home)
                .is_none_or(|held| held.task.is_finished())
        {
            self.start(home);
        }
    }

    fn start(&mut self, id: RelayId) {
        let Some(relay) = self.known.get(&id).cloned() else {
            tracing::debug!(relay = %id, "a relay that the map does not name is wanted");
            return;
        };
        let tls = match control::tls_config(*relay.pin.as_bytes()) {
            Ok(tls) => tls,
            Err(reason) => {
                tracing::error!(relay = %id, reason, "cannot speak TLS to the relay");
                return;
            }
        };
        while self.tasks.try_join_next().is_some() {}
        let outbox = Arc::new(Outbox::default());
        let (wish_tx, wish) = watch::channel(Wish {
            is_home: self.home == Some(id),
            wanted_at: Instant::now(),
            n_redials: 0,
        });
        let cancel = self.cancel.child_token();
        let link = Link {
            relay,
            credentials: Credentials {
                node_key: self.node_key.clone(),
                tls,
                dialer: self.dialer.clone(),
            },
            outbox: Arc::clone(&outbox),
            sender: Arc::clone(&self.sender),
            socket: self.socket.clone(),
            intake: self.intake.clone(),
            events: self.events_tx.clone(),
            wish,
            cancel: cancel.clone(),
        };
        let held = Held {
            wish: wish_tx,
            cancel,
            task: self.tasks.spawn(link.run()),
        };
        self.links.insert(id, held);
        self.route(|outboxes| drop(outboxes.insert(id, outbox)));
    }

    fn end(&mut self, id: &RelayId) {
        if let Some(held) = self.links.remove(id) {
            held.cancel.cancel();
            self.route(|outboxes| drop(outboxes.remove(id)));
            // The link ends by itself and says nothing more.
            let _ = self.events_tx.try_send(RelayEvent::Down(*id));
        }
    }

    fn route(&self, change: impl FnOnce(&mut BTreeMap<RelayId, Arc<Outbox>>)) {
        let mut outboxes = (**self.sender.outboxes.load()).clone();
        change(&mut outboxes);
        self.sender.outboxes.store(Arc::new(outboxes));
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
