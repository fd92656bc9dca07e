//! One peer as the packet path sees it: its session behind one lock, all else atomic.

mod allowance;
mod batch;
pub(crate) mod stash;
pub(crate) mod state;
pub(crate) mod table;

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_proto::id::NodeId;
use mesh_proto::key::NodeKey;

use crate::config::{
    LAN_HOLD, MOVE_TOLD_EVERY, MTU_BASE, N_ANSWERS, N_QUEUED_MAX, REJECT_AFTER,
    REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, STASH_AFTER, TIE_WITHIN,
};
use crate::event::{Destination, Way};
use crate::filter::Rules;
use crate::noise::Session;
use crate::path::Path;
use crate::peer::allowance::Allowance;
use crate::peer::stash::Stash;
use crate::plane::Shared;

pub use batch::{Opener, Sealer};

/// A peer, shared between the engine and the packet path. Cheap to clone.
#[derive(Clone)]
pub struct PeerHandle(Arc<Peer>);

/// What a peer is for as long as its handle lives; another key or address makes another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) node_key: NodeKey,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    /// Whether it is this node that renews keys when both ends began at once; the peer has the opposite.
    pub(crate) wins_ties: bool,
}

struct Peer {
    identity: Identity,
    shared: Arc<Shared>,
    slot: Mutex<Slot>,
    path: ArcSwapOption<Path>,
    rules: ArcSwap<Rules>,
    is_gone: AtomicBool,
    /// Whether probes choose the path, so that packets move it not.
    is_guided: AtomicBool,
    traffic: Traffic,
}

/// What moved, and when: milliseconds of the plane's clock, 0 for never.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) tx_bytes: AtomicU64,
    /// Anything authentic.
    pub(crate) last_rx_ms: AtomicU64,
    pub(crate) last_data_rx_ms: AtomicU64,
    pub(crate) last_tx_ms: AtomicU64,
    pub(crate) last_data_tx_ms: AtomicU64,
    /// Since when data is sent and nothing heard.
    pub(crate) unanswered_ms: AtomicU64,
    /// When the engine was last told that a session is needed.
    wanted_ms: AtomicU64,
    /// When it was last told that the peer is heard from elsewhere than the selected path.
    moved_ms: AtomicU64,
}

impl Traffic {
    /// Whether data was sent for a while and nothing heard.
    pub(crate) fn is_silent(&self, now_ms: u64) -> bool {
        let since_ms = self.unanswered_ms.load(Ordering::Relaxed);
        since_ms != 0 && u128::from(now_ms.saturating_sub(since_ms)) >= STASH_AFTER.as_millis()
    }

    pub(crate) fn note_sent(&self, now_ms: u64, packet_len: usize) {
        self.last_tx_ms.store(now_ms, Ordering::Relaxed);
        if packet_len == 0 {
            return;
        }
        self.tx_bytes
            .fetch_add(packet_len as u64, Ordering::Relaxed);
        self.last_data_tx_ms.store(now_ms, Ordering::Relaxed);
        if self.unanswered_ms.load(Ordering::Relaxed) == 0 {
            self.unanswered_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_received(&self, now_ms: u64, packet_len: usize) {
        self.last_rx_ms.store(now_ms, Ordering::Relaxed);
        if self.unanswered_ms.load(Ordering::Relaxed) != 0 {
            self.unanswered_ms.store(0, Ordering::Relaxed);
        }
        if packet_len != 0 {
            self.rx_bytes
                .fetch_add(packet_len as u64, Ordering::Relaxed);
            self.last_data_rx_ms.store(now_ms, Ordering::Relaxed);
        }
    }
}

/// What the lock guards.
#[derive(Default)]
pub(crate) struct Slot {
    /// Made when needed and dropped when idle: it weighs 12 KiB.
    pub(crate) session: Option<Box<dyn Session>>,
    /// The newest keys that both ends hold.
    pub(crate) agreed: Option<Agreed>,
    /// Keys that this node answered with and the peer has not used yet.
    pub(crate) unconfirmed: Unconfirmed,
    queue: VecDeque<Vec<u8>>,
    /// What was sent into silence; it goes when the peer was heard.
    stash: Option<Box<Stash>>,
    /// What may be sent twice.
    repeats: Allowance,
}

/// Keys that both ends hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) at_ms: u64,
    pub(crate) is_initiator: bool,
    pub(crate) n_sealed: u64,
}

impl Agreed {
    pub(crate) const fn new(at_ms: u64, is_initiator: bool) -> Self {
        Self {
            at_ms,
            is_initiator,
            n_sealed: 0,
        }
    }

    /// Whether the keys may be used for a while yet.
    pub(crate) fn has_left(&self, now_ms: u64, span: Duration) -> bool {
        let end = REJECT_AFTER.saturating_sub(span);
        u128::from(now_ms.saturating_sub(self.at_ms)) < end.as_millis()
    }
}

/// The receiver indices of the last answers, and when they were given. On a slow path an initiator tries again before
/// it is answered, and may take any of the answers.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed {
    answers: [Option<(u32, u64)>; N_ANSWERS],
    next: usize,
}

impl Unconfirmed {
    pub(crate) fn add(&mut self, receiver: u32, now_ms: u64) {
        self.answers[self.next] = Some((receiver, now_ms));
        self.next = (self.next + 1) % N_ANSWERS;
    }

    /// The peer used keys of this receiver; when they were made, if that is news.
    fn confirm(&mut self, receiver: u32) -> Option<u64> {
        let is_it =
            |answer: &&mut Option<(u32, u64)>| answer.is_some_and(|(index, _)| index == receiver);
        let (_, at_ms) = self.answers.iter_mut().find(is_it)?.take()?;
        Some(at_ms)
    }
}

impl Slot {
    /// Whether a packet can be sealed.
    pub(crate) fn is_ready(&self, now_ms: u64) -> bool {
        let is_fresh = self.agreed.is_some_and(|agreed| {
            agreed.has_left(now_ms, Duration::ZERO) && agreed.n_sealed < REJECT_AFTER_MESSAGES
        });
        is_fresh
            && self
                .session
                .as_ref()
                .is_some_and(|session| session.is_ready())
    }

    /// Takes note of keys that both ends hold now. When each end has begun a handshake at once, each finishes both, one
    /// in each role: then it is settled by their keys who renews, or both would, each time.
    pub(crate) fn agree(&mut self, at_ms: u64, is_initiator: bool, wins_ties: bool) {
        let is_tie = self.agreed.is_some_and(|before| {
            before.is_initiator != is_initiator
                && u128::from(at_ms.abs_diff(before.at_ms)) < TIE_WITHIN.as_millis()
        });
        self.agreed = Some(Agreed::new(
            at_ms,
            if is_tie { wins_ties } else { is_initiator },
        ));
    }

    /// Whether so many packets were sealed that other keys are due, whatever their age.
    pub(crate) fn is_worn(&self) -> bool {
        self.agreed
            .is_some_and(|agreed| agreed.n_sealed >= REKEY_AFTER_MESSAGES)
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    fn push(&mut self, shared: &Shared, packet: &[u8]) -> bool {
        while self.queue.len() >= N_QUEUED_MAX {
            self.pop(shared);
        }
        if !shared.reserve(packet.len()) {
            return false;
        }
        self.queue.push_back(packet.to_vec());
        true
    }

    pub(crate) fn pop(&mut self, shared: &Shared) -> Option<Vec<u8>> {
        let packet = self.queue.pop_front()?;
        shared.release(packet.len());
        Some(packet)
    }

    /// Keeps a copy of a packet that is sent into silence.
    fn keep(&mut self, packet: &[u8]) {
        if stash::is_tcp(packet) {
            self.stash.get_or_insert_default().push(packet);
        }
    }

    pub(crate) const fn has_stashed(&self) -> bool {
        self.stash.is_some()
    }

    /// What was sent into silence.
    pub(crate) fn take_stash(&mut self) -> Option<Box<Stash>> {
        self.stash.take()
    }

    /// Forgets keys.
    pub(crate) fn forget(&mut self) {
        (self.session, self.agreed) = (None, None);
        self.unconfirmed = Unconfirmed::default();
    }

    /// Forgets keys and packets.
    pub(crate) fn clear(&mut self, shared: &Shared) {
        self.forget();
        self.stash = None;
        while self.pop(shared).is_some() {}
    }
}

impl PeerHandle {
    pub(crate) fn new(shared: Arc<Shared>, identity: Identity, rules: Arc<Rules>) -> Self {
        Self(Arc::new(Peer {
            identity,
            shared,
            slot: Mutex::default(),
            path: ArcSwapOption::empty(),
            rules: ArcSwap::new(rules),
            is_gone: AtomicBool::new(false),
            is_guided: AtomicBool::new(false),
            traffic: Traffic::default(),
        }))
    }

    /// Who it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.identity.node
    }

    /// The selected path; lock-free.
    #[must_use]
    pub fn destination(&self) -> Option<Destination> {
        self.0.path.load().as_ref().map(|path| path.dst)
    }

    /// The endpoint of the selected path, when that is a direct one; lock-free.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        let path = self.0.path.load();
        path.as_ref().and_then(|path| path.dst.endpoint())
    }

    /// The selected path and how long a packet it takes; lock-free.
    #[must_use]
    pub fn way(&self) -> Way {
        let path = self.0.path.load();
        let unknown = Way {
            dst: None,
            mtu: MTU_BASE,
            is_settled: false,
            is_lossy: false,
        };
        path.as_ref().map_or(unknown, |path| path.way())
    }

    /// What TCP may be told to send at most: the path's MTU, once that is settled.
    pub(crate) fn settled_mtu(&self) -> Option<u16> {
        let path = self.0.path.load();
        path.as_ref().and_then(|path| path.settled_mtu())
    }

    /// Locks the session for sealing a batch.
    #[must_use]
    pub fn seal(&self) -> Sealer<'_> {
        Sealer::new(self)
    }

    /// Locks the session for opening a batch.
    #[must_use]
    pub fn open(&self) -> Opener<'_> {
        Opener::new(self)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    pub(crate) fn rules(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.0.rules.load()
    }

    pub(crate) fn set_rules(&self, rules: Arc<Rules>) {
        self.0.rules.store(rules);
    }

    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.0.identity.ipv4,
            IpAddr::V6(ip) => ip == self.0.identity.ipv6,
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_gone.load(Ordering::Relaxed)
    }

    /// The lock of the session. A packet thread that panicked left nothing half done that matters: the next handshake
    /// replaces it.
    pub(crate) fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self) -> Option<Arc<Path>> {
        self.0.path.load_full()
    }

    /// Ends the peer: handles of it that linger do nothing any more.
    pub(crate) fn remove(&self) {
        self.0.is_gone.store(true, Ordering::Relaxed);
        self.slot().clear(&self.0.shared);
        self.0.path.store(None);
    }

    pub(crate) fn set_guided(&self, is_guided: bool) {
        self.0.is_guided.store(is_guided, Ordering::Relaxed);
    }

    pub(crate) fn is_guided(&self) -> bool {
        self.0.is_guided.load(Ordering::Relaxed)
    }

    /// Notes that the peer was authentically heard; `true` when the engine must know: the path moved, or the peer is
    /// guided and somewhere else.
    pub(crate) fn heard_from(&self, from: Destination, now_ms: u64) -> bool {
        let current = self.0.path.load();
        if let Some(path) = current.as_ref() {
            if path.dst == from {
                path.heard_ms.store(now_ms, Ordering::Relaxed);
                return false;
            }
            if self.is_guided() {
                return self.may_tell_move(now_ms);
            }
            let silent_ms = now_ms.saturating_sub(path.heard_ms.load(Ordering::Relaxed));
            if path.is_lan && u128::from(silent_ms) < LAN_HOLD.as_millis() && !self.is_lan(&from) {
                return false;
            }
        }
        self.select(from, now_ms);
        true
    }

    /// Packets go there from now on.
    pub(crate) fn select(&self, dst: Destination, now_ms: u64) {
        let path = Path::new(dst, self.is_lan(&dst), now_ms);
        self.0.path.store(Some(Arc::new(path)));
    }

    pub(crate) fn forget_path(&self) {
        self.0.path.store(None);
    }

    /// Where an answer may be sent before the peer is proven to be there.
    pub(crate) fn suppose(&self, from: Destination, now_ms: u64) {
        if self.0.path.load().is_none() {
            self.select(from, now_ms);
        }
    }

    fn is_lan(&self, dst: &Destination) -> bool {
        let endpoint = dst.remote();
        endpoint.is_some_and(|endpoint| self.0.shared.is_lan(endpoint.ip()))
    }

    fn may_tell_move(&self, now_ms: u64) -> bool {
        let moved_ms = &self.0.traffic.moved_ms;
        let told_ms = moved_ms.load(Ordering::Relaxed);
        let is_due = told_ms == 0
            || u128::from(now_ms.saturating_sub(told_ms)) >= MOVE_TOLD_EVERY.as_millis();
        is_due
            && moved_ms
                .compare_exchange(told_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl PartialEq for PeerHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PeerHandle {}

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerHandle")
            .field("node", &self.0.identity.node)
            .finish_non_exhaustive()
    }
}
