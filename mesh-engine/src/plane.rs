//! The data side: what happens to each packet, shared by all packet threads, without locks or allocation.

mod admit;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::config::{QUEUED_BYTES_MAX, UNKNOWN_EVERY};
use crate::echo::Echo;
use crate::event::{Admit, ChecksumState, DropReason, Inbound, Outbound, Way};
use crate::filter;
use crate::filter::flows::Flows;
use crate::fit::{self, Fit};
use crate::nat::wire;
use crate::noise::index::Indices;
use crate::noise::{self, Kind};
use crate::packet::Headers;
use crate::path::candidate::Surroundings;
use crate::peer::PeerHandle;
use crate::route::Routes;
use crate::seed::Seed;
use crate::service::ServicePorts;

pub use admit::Admitter;

/// The part of the mesh that each packet passes.
#[derive(Debug)]
pub struct Plane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) indices: Indices,
    pub(crate) routes: Routes,
    pub(crate) echo: Echo,
    flows: Flows,
    local: ArcSwapOption<Local>,
    /// Names the next packet that has to be fragmented.
    fragment_id: AtomicU32,
}

/// This node on the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) service_ipv4: Ipv4Addr,
    pub(crate) service_ipv6: Ipv6Addr,
    pub(crate) services: ServicePorts,
}

impl Local {
    fn is_own(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.ipv4,
            IpAddr::V6(ip) => ip == self.ipv6,
        }
    }

    fn is_service(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.service_ipv4,
            IpAddr::V6(ip) => ip == self.service_ipv6,
        }
    }
}

/// What plane and peers have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    start: Instant,
    now_ms: AtomicU64,
    /// When the engine was last shown a datagram of an unknown session.
    unknown_ms: AtomicU64,
    queued_bytes: AtomicUsize,
    drops: [AtomicU64; DropReason::ALL.len()],
    surroundings: ArcSwap<Surroundings>,
}

impl Shared {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            // 0 means never.
            now_ms: AtomicU64::new(1),
            unknown_ms: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            surroundings: ArcSwap::default(),
        }
    }

    /// Milliseconds since the start, from 1 on.
    pub(crate) fn ms_of(&self, at: Instant) -> u64 {
        let elapsed = at.saturating_duration_since(self.start).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX - 1) + 1
    }

    /// The clock as of the last [`Self::set_clock`].
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn set_clock(&self, now: Instant) -> u64 {
        let ms = self.ms_of(now);
        if ms > self.now_ms() {
            self.now_ms.store(ms, Ordering::Relaxed);
        }
        self.now_ms()
    }

    pub(crate) fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn is_lan(&self, ip: IpAddr) -> bool {
        self.surroundings.load().is_lan(ip)
    }

    pub(crate) fn surroundings(&self) -> Arc<Surroundings> {
        self.surroundings.load_full()
    }

    pub(crate) fn set_surroundings(&self, surroundings: Surroundings) {
        self.surroundings.store(Arc::new(surroundings));
    }

    /// The time is the caller's: the shared clock stands still while the engine has nothing to do, as it has after a start.
    fn may_show_unknown(&self, now: Instant) -> bool {
        let (now_ms, shown_ms) = (self.ms_of(now), self.unknown_ms.load(Ordering::Relaxed));
        let is_first = shown_ms == 0;
        (is_first || u128::from(now_ms.saturating_sub(shown_ms)) >= UNKNOWN_EVERY.as_millis())
            && self
                .unknown_ms
                .compare_exchange(shown_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Takes bytes from the budget of waiting packets.
    pub(crate) fn reserve(&self, len: usize) -> bool {
        let taken = self.queued_bytes.fetch_add(len, Ordering::Relaxed);
        if taken.saturating_add(len) <= QUEUED_BYTES_MAX {
            return true;
        }
        self.release(len);
        false
    }

    pub(crate) fn release(&self, len: usize) {
        self.queued_bytes.fetch_sub(len, Ordering::Relaxed);
    }
}

impl Plane {
    pub(crate) fn new(start: Instant, seed: &mut Seed) -> Self {
        Self {
            shared: Arc::new(Shared::new(start)),
            indices: Indices::new(),
            routes: Routes::new(),
            echo: Echo::new(seed),
            flows: Flows::new([seed.u64(), seed.u64()]),
            local: ArcSwapOption::empty(),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "any number is as good to begin with"
            )]
            fragment_id: AtomicU32::new(seed.u64() as u32),
        }
    }

    /// Decides on one IP packet, or one super-packet with its headers intact, read from the TUN. A reflected one was
    /// rewritten in place and goes back with its offload header as it came.
    pub fn outbound(&self, now: Instant, packet: &mut [u8], checksum: ChecksumState) -> Outbound {
        match self.try_outbound(now, packet, checksum) {
            Ok(outbound) => outbound,
            Err(reason) => {
                self.shared.count_drop(reason);
                Outbound::Drop(reason)
            }
        }
    }

    fn try_outbound(
        &self,
        now: Instant,
        packet: &mut [u8],
        checksum: ChecksumState,
    ) -> Result<Outbound, DropReason> {
        let now_ms = self.shared.set_clock(now);
        let local = self.local.load();
        let local = local.as_ref().ok_or(DropReason::NoRoute)?;
        let headers = Headers::parse(packet).ok_or(DropReason::Malformed)?;
        if !local.is_own(headers.src) {
            return Err(DropReason::WrongSource);
        }
        if local.is_service(headers.dst) {
            local.services.reflect(packet, &headers, checksum)?;
            return Ok(Outbound::Reflect);
        }
        let peer = self.routes.lookup(headers.dst).ok_or(DropReason::NoRoute)?;
        let headers = if local.services.mask(packet, &headers, checksum)? {
            Headers::parse(packet).ok_or(DropReason::Malformed)?
        } else {
            headers
        };
        if fit::is_syn(packet, &headers)
            && let Some(mtu) = peer.settled_mtu()
        {
            fit::clamp_mss(packet, &headers, mtu, checksum);
        }
        filter::note_outbound(&self.flows, &headers, seconds(now_ms));
        Ok(Outbound::Peer(peer))
    }

    /// Says what to do with a packet of [`Self::outbound`] that is longer than its way takes.
    #[must_use]
    pub fn fit<'a>(&self, packet: &'a [u8], way: &Way) -> Fit<'a> {
        let fit = fit::fit(
            packet,
            way,
            self.fragment_id.fetch_add(1, Ordering::Relaxed),
        );
        if matches!(fit, Fit::TooBig(_) | Fit::Drop) {
            self.shared.count_drop(DropReason::TooBig);
        }
        fit
    }

    /// Finds where a datagram belongs.
    #[must_use]
    pub fn inbound(&self, now: Instant, datagram: &[u8]) -> Inbound {
        let reason = match Kind::of(datagram) {
            Some(Kind::Data(receiver)) => match self.indices.peer(receiver) {
                Some(peer) => return Inbound::Data(peer),
                None if self.shared.may_show_unknown(now) => return Inbound::Control,
                None => DropReason::UnknownSession,
            },
            Some(Kind::Initiation | Kind::Response(_) | Kind::CookieReply(_)) => {
                return Inbound::Control;
            }
            None if mesh_proto::stun::is_stun(datagram)
                || mesh_proto::disco::is_disco(datagram)
                || wire::is_answer(datagram) =>
            {
                return Inbound::Control;
            }
            None => DropReason::NotOurs,
        };
        self.shared.count_drop(reason);
        Inbound::Drop(reason)
    }

    /// Whether two datagrams belong to one session and so to one peer: the second needs no [`Self::inbound`].
    #[must_use]
    pub fn is_same_session(first: &[u8], second: &[u8]) -> bool {
        noise::is_same_session(first, second)
    }

    /// Checks one opened packet; see [`Self::admitter`].
    pub fn admit(&self, now: Instant, peer: &PeerHandle, packet: &mut [u8]) -> Admit {
        self.admitter(now, peer).admit(packet)
    }

    /// Checks the opened packets of one peer: source, destination, packet filter. Keep it for a batch and no longer.
    #[must_use]
    pub fn admitter<'a>(&'a self, now: Instant, peer: &'a PeerHandle) -> Admitter<'a> {
        Admitter::new(self, now, peer)
    }

    /// How many packets and datagrams were dropped since the start, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let counts = DropReason::ALL.into_iter().zip(&self.shared.drops);
        counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    pub(crate) fn local(&self) -> Option<Arc<Local>> {
        self.local.load_full()
    }

    pub(crate) fn set_local(&self, local: Option<Local>) {
        self.local.store(local.map(Arc::new));
    }

    pub(crate) fn sweep(&self, now_ms: u64) {
        self.flows.sweep(seconds(now_ms));
    }
}

/// Coarse time of the flow table, which looks at the low bits alone.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the flow table takes the low 19 bits"
)]
const fn seconds(ms: u64) -> u32 {
    (ms / 1000) as u32
}
