//! A peer's session, locked for a batch of packets.

use std::fmt;
use std::net::SocketAddr;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use mesh_proto::id::RelayId;

use crate::config::{REJECT_AFTER_MESSAGES, TICK};
use crate::event::{Destination, DropReason, Opened, PlaneEvent, Sealed};
use crate::noise::{Kind, Read};
use crate::path::{canonical, source_addr};
use crate::peer::{PeerHandle, Slot};

/// A locked session, for sealing. Keep it for a batch and no longer.
pub struct Sealer<'a> {
    peer: &'a PeerHandle,
    slot: MutexGuard<'a, Slot>,
    is_ready: bool,
    /// Whether the peer is not heard, so that TCP packets are kept.
    is_silent: bool,
    now_ms: u64,
    n_sealed: u64,
    sealed_len: usize,
    event: Option<PlaneEvent>,
}

impl<'a> Sealer<'a> {
    pub(crate) fn new(peer: &'a PeerHandle) -> Self {
        let slot = peer.slot();
        let now_ms = peer.shared().now_ms();
        let is_ready = slot.is_ready(now_ms) && !peer.is_gone();
        Self {
            peer,
            slot,
            is_ready,
            is_silent: peer.traffic().is_silent(now_ms),
            now_ms,
            n_sealed: 0,
            sealed_len: 0,
            event: None,
        }
    }

    /// Seals one IP packet into `out`, which needs [`SEAL_OVERHEAD`](crate::SEAL_OVERHEAD) bytes more than the packet
    /// and [`SEAL_BUFFER_MIN`](crate::SEAL_BUFFER_MIN) at least.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Sealed {
        match self.try_seal(packet, out) {
            Ok(sealed) => sealed,
            Err(reason) => {
                self.peer.shared().count_drop(reason);
                Sealed::Dropped(reason)
            }
        }
    }

    fn try_seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, DropReason> {
        let shared = self.peer.shared();
        if self.peer.is_gone() {
            return Err(DropReason::PeerGone);
        }
        if !self.is_ready {
            self.want_session();
            return if self.slot.push(shared, packet) {
                Ok(Sealed::Queued)
            } else {
                Err(DropReason::QueueFull)
            };
        }
        let Slot {
            session: Some(session),
            agreed: Some(agreed),
            ..
        } = &mut *self.slot
        else {
            return Err(DropReason::PeerGone);
        };
        let len = session.seal(packet, out)?;
        agreed.n_sealed += 1;
        if agreed.n_sealed >= REJECT_AFTER_MESSAGES {
            self.is_ready = false;
        }
        if self.slot.is_worn() {
            self.want_session();
        }
        if self.is_silent {
            self.slot.keep(packet);
        }
        self.n_sealed += 1;
        self.sealed_len += packet.len();
        Ok(Sealed::Datagram(len))
    }

    fn want_session(&mut self) {
        let wanted_ms = &self.peer.traffic().wanted_ms;
        // Told anew now and then: the event may get lost.
        let since_ms = self
            .now_ms
            .saturating_sub(wanted_ms.load(Ordering::Relaxed));
        if u128::from(since_ms) >= TICK.as_millis() || !self.slot.has_queued() {
            wanted_ms.store(self.now_ms, Ordering::Relaxed);
            self.event = Some(PlaneEvent::NeedSession(self.peer.clone()));
        }
    }

    /// Whether datagrams of this batch, so many bytes of them, are to go twice; asked where the path is
    /// [lossy](crate::Way::is_lossy).
    #[must_use]
    pub fn may_repeat(&mut self, len: usize) -> bool {
        self.slot.repeats.take(len, self.now_ms)
    }

    /// Ends the batch and unlocks; what comes back is for [`Engine::handle_plane`](crate::Engine::handle_plane).
    #[must_use]
    pub fn finish(self) -> Option<PlaneEvent> {
        if self.n_sealed > 0 {
            // Once a batch, and under the lock, as are all that write these.
            let traffic = self.peer.traffic();
            traffic.note_sent(self.now_ms, self.sealed_len);
        }
        self.event
    }
}

impl fmt::Debug for Sealer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sealer").field(self.peer).finish()
    }
}

/// A locked session, for opening. Keep it for a batch and no longer.
pub struct Opener<'a> {
    peer: &'a PeerHandle,
    slot: MutexGuard<'a, Slot>,
    now_ms: u64,
    /// Who sent the last authentic datagram of the batch.
    heard: Option<Destination>,
    opened_len: usize,
    event: Option<PlaneEvent>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(peer: &'a PeerHandle) -> Self {
        Self {
            peer,
            slot: peer.slot(),
            now_ms: peer.shared().now_ms(),
            heard: None,
            opened_len: 0,
            event: None,
        }
    }

    /// Opens one datagram into `out`, which must be as long as the datagram.
    pub fn open(&mut self, from: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Opened {
        self.open_from(Destination::Udp(canonical(from)), datagram, out)
    }

    /// The same for a datagram that came to a spare socket.
    pub fn open_spare(
        &mut self,
        socket: u16,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Opened {
        let endpoint = canonical(from);
        self.open_from(Destination::Spare { socket, endpoint }, datagram, out)
    }

    /// The same for a datagram that came by a relay.
    pub fn open_relayed(&mut self, relay: RelayId, datagram: &[u8], out: &mut [u8]) -> Opened {
        let peer = self.peer.identity().node_key;
        self.open_from(Destination::Relay { relay, peer }, datagram, out)
    }

    fn open_from(&mut self, from: Destination, datagram: &[u8], out: &mut [u8]) -> Opened {
        let opened = self.try_open(from, datagram, out);
        let opened = opened.unwrap_or_else(Opened::Dropped);
        if let Opened::Dropped(reason) = opened {
            self.peer.shared().count_drop(reason);
        }
        opened
    }

    fn try_open(
        &mut self,
        from: Destination,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<Opened, DropReason> {
        let Some(Kind::Data(receiver)) = Kind::of(datagram) else {
            return Err(DropReason::NotOurs);
        };
        if self.peer.is_gone() {
            return Err(DropReason::PeerGone);
        }
        let session = self
            .slot
            .session
            .as_mut()
            .ok_or(DropReason::UnknownSession)?;
        let opened = match session.open(source_addr(&from).ip(), datagram, out) {
            Read::Packet(len) => Opened::Packet(len),
            Read::Keepalive => Opened::Keepalive,
            // It is the peer all the same, and it is there.
            Read::Rubbish => Opened::Dropped(DropReason::Malformed),
            Read::Refused(reason) => return Err(reason),
            Read::Reply(_) | Read::Cookie | Read::Old => return Err(DropReason::NotAuthentic),
        };
        let len = match opened {
            Opened::Packet(len) => len,
            Opened::Keepalive | Opened::Dropped(_) => 0,
        };
        self.opened_len += len;
        // A batch comes from one endpoint nearly always.
        if self.heard != Some(from) {
            self.heard = Some(from);
            if self.peer.heard_from(from, self.now_ms) && self.event.is_none() {
                let peer = self.peer.clone();
                self.event = Some(PlaneEvent::PathMoved { peer, from });
            }
        }
        if let Some(at_ms) = self.slot.unconfirmed.confirm(receiver) {
            self.slot
                .agree(at_ms, false, self.peer.identity().wins_ties);
            self.event = Some(PlaneEvent::SessionReady(self.peer.clone()));
        }
        Ok(opened)
    }

    /// Ends the batch and unlocks; what comes back is for [`Engine::handle_plane`](crate::Engine::handle_plane).
    #[must_use]
    pub fn finish(self) -> Option<PlaneEvent> {
        if self.heard.is_some() {
            let traffic = self.peer.traffic();
            traffic.note_received(self.now_ms, self.opened_len);
            if self.slot.has_stashed() && self.event.is_none() {
                return Some(PlaneEvent::SessionReady(self.peer.clone()));
            }
        }
        self.event
    }
}

impl fmt::Debug for Opener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opener").field(self.peer).finish()
    }
}
