//! How the engine drives sessions: handshakes to all candidates, and what waits for them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;

use super::Engine;
use crate::config::{DEAD_AFTER, DOUBT_FOR, OLD_AFTER, OLD_EVERY, RESEND_EVERY, SURE_FOR};
use crate::event::{Destination, Event, Sealed};
use crate::noise::{HANDSHAKE_LEN_MAX, Proof, Read};
use crate::path::{canonical, source_addr};
use crate::peer::PeerHandle;
use crate::peer::state::Retry;
use crate::peer::table::{Control, Live};
use crate::{SEAL_BUFFER_MIN, SEAL_OVERHEAD};

impl Engine {
    /// Begins a handshake unless one is under way or there is no need.
    pub(super) fn want_session(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let now_ms = self.plane.shared.now_ms();
        let slot = control.handle.slot();
        let is_good = slot.is_ready(now_ms) && !slot.is_worn();
        drop(slot);
        if is_good {
            self.attend(now, id);
        } else {
            self.renew_session(now, id);
        }
    }

    /// Begins a handshake unless one is under way.
    pub(super) fn renew_session(&mut self, now: Instant, id: &NodeId) {
        let now = self.now(now);
        if self.peers.change(id, |state| state.on_wanted(now)) == Some(true) {
            self.initiate(now.at, id);
        }
    }

    /// A handshake's answer is late.
    pub(super) fn retry(&mut self, now: Instant, id: &NodeId) {
        let now = self.now(now);
        match self.peers.change(id, |state| state.on_retry(now)) {
            Some(Retry::Initiate) => self.initiate(now.at, id),
            Some(Retry::GiveUp { was_up }) => {
                tracing::debug!(peer = %id, "handshake given up");
                self.end_session_silently(id);
                if was_up {
                    self.out.events.push_back(Event::PeerDown { node: *id });
                }
            }
            Some(Retry::Wait) | None => {}
        }
    }

    /// Sends an initiation to all candidates.
    pub(super) fn initiate(&mut self, now: Instant, id: &NodeId) {
        let has_way = !self.endpoints_of(id).is_empty() || self.relay_path(now, id).is_some();
        if !has_way || !self.ensure_session(now, id) {
            return;
        }
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let mut datagram = [0; HANDSHAKE_LEN_MAX];
        let mut slot = control.handle.slot();
        let session = slot.session.as_mut();
        let Some(len) = session.and_then(|session| session.initiate(&mut datagram)) else {
            return;
        };
        drop(slot);
        self.spray(now, id, &datagram[..len]);
        self.look(now, id);
    }

    /// The same initiation goes everywhere: the peer answers the first copy and takes the others for replays, so the
    /// fastest path is selected. New keys over a path that is known to work need no more than that path.
    pub(super) fn spray(&mut self, now: Instant, id: &NodeId, initiation: &[u8]) {
        if let Some(dst) = self.sure_path(id) {
            self.out.transmit(dst, initiation);
            return;
        }
        for candidate in self.endpoints_of(id) {
            self.out.transmit(Destination::Udp(candidate), initiation);
        }
        if let Some(relay) = self.relay_path(now, id) {
            self.out.transmit(relay, initiation);
        }
    }

    /// The path of a guided peer that was heard by it a moment ago.
    fn sure_path(&self, id: &NodeId) -> Option<Destination> {
        let control = self.peers.get(id)?;
        let path = control.handle.path()?;
        let heard_ms = path.heard_ms.load(Ordering::Relaxed);
        let silent_ms = self.plane.shared.now_ms().saturating_sub(heard_ms);
        let is_sure = control.handle.is_guided() && control.state().is_up();
        let is_heard = heard_ms != 0 && u128::from(silent_ms) < SURE_FOR.as_millis();
        (is_sure && is_heard).then_some(path.dst)
    }

    fn endpoints_of(&self, id: &NodeId) -> Vec<SocketAddr> {
        let Some(control) = self.peers.get(id) else {
            return Vec::new();
        };
        let surroundings = self.plane.shared.surroundings();
        let last = control.handle.endpoint().or(control.last_direct);
        surroundings.candidates(last, &control.endpoints)
    }

    pub(super) fn ensure_session(&mut self, now: Instant, id: &NodeId) -> bool {
        let Some(control) = self.peers.get(id) else {
            return false;
        };
        if control.live.is_some() {
            return true;
        }
        let handle = control.handle.clone();
        let n_live = self.peers.live().len();
        let Some(index) = self.plane.indices.allocate(&mut self.seed, n_live, &handle) else {
            return false;
        };
        let session = (self.new_session)(&self.identity, &handle.identity().node_key, index);
        handle.slot().session = Some(session);
        let live = Live {
            index,
            touched_at: now,
            met_at: None,
        };
        self.peers.set_live(id, Some(live));
        self.begin_paths(id);
        true
    }

    /// Forgets a session's keys; what waits for it goes too.
    pub(super) fn end_session(&mut self, id: &NodeId) {
        if self.end_session_silently(id) {
            self.out.events.push_back(Event::PeerDown { node: *id });
        }
    }

    /// The same, and tells whether the session was up.
    pub(super) fn end_session_silently(&mut self, id: &NodeId) -> bool {
        let Some(control) = self.peers.get(id) else {
            return false;
        };
        control.handle.slot().clear(&self.plane.shared);
        if let Some(live) = control.live {
            self.plane.indices.release(live.index);
        }
        self.peers.set_live(id, None);
        self.end_paths(id);
        self.peers.set_told_path(id, None);
        self.peers.change(id, |state| state.on_lost()) == Some(true)
    }

    /// A peer begins a handshake.
    pub(super) fn on_initiation(&mut self, now: Instant, from: Destination, datagram: &[u8]) {
        if !self.identity.is_meant(datagram) {
            return;
        }
        let source = source_addr(&from);
        if self.limiter.arrive(now) {
            let mut reply = [0; 64];
            match self.identity.prove(source, datagram, &mut reply) {
                Proof::Given => {}
                Proof::Missing(len) => return self.out.transmit(from, &reply[..len]),
                Proof::Nonsense => return,
            }
        }
        if !self.limiter.admit(now, source.ip()) {
            return;
        }
        let initiator = self.identity.initiator(datagram);
        if let Destination::Relay { peer, .. } = from
            && initiator != Some(peer)
        {
            return;
        }
        let Some(id) = initiator.and_then(|key| self.peers.by_key(&key)) else {
            return;
        };
        if !self.ensure_session(now, &id) {
            return;
        }
        let Some(control) = self.peers.get(&id) else {
            return;
        };
        let handle = control.handle.clone();
        let mut reply = [0; HANDSHAKE_LEN_MAX];
        let mut slot = handle.slot();
        let Some(session) = slot.session.as_mut() else {
            return;
        };
        let len = match session.open(source.ip(), datagram, &mut reply) {
            Read::Reply(len) => len,
            Read::Old => {
                drop(slot);
                return self.on_old_initiation(now, &id);
            }
            Read::Packet(_) | Read::Keepalive | Read::Rubbish | Read::Cookie | Read::Refused(_) => {
                return;
            }
        };
        let now_ms = self.plane.shared.now_ms();
        // The answer's sender index is what the peer's first packet under the new keys will name.
        let receiver = u32::from_le_bytes([reply[4], reply[5], reply[6], reply[7]]);
        slot.unconfirmed.add(receiver, now_ms);
        drop(slot);
        // An initiation may be a replay from before this session: it moves no path that is there.
        let is_sure = self.sure_path(&id) == Some(from);
        handle.suppose(from, now_ms);
        self.out.transmit(from, &reply[..len]);
        // The copy by the relay comes too late to be answered, and this answer may get lost where nothing is proven.
        if let (Destination::Udp(_), false) = (from, is_sure)
            && let Some(relay) = self.relay_path(now, &id)
        {
            self.out.transmit(relay, &reply[..len]);
        }
        if let Some(live) = self.peers.get(&id).and_then(|control| control.live) {
            let touched_at = now;
            self.peers.set_live(&id, Some(Live { touched_at, ..live }));
        }
        self.on_begun_elsewhere(&id, from);
        self.on_seen(now, &id, from);
        self.look(now, &id);
    }

    /// A peer that begins a handshake elsewhere than at its silent selected path has moved, most likely.
    fn on_begun_elsewhere(&mut self, id: &NodeId, from: Destination) {
        let Some(path) = self.peers.get(id).and_then(|peer| peer.handle.path()) else {
            return;
        };
        let now_ms = self.plane.shared.now_ms();
        let silent_ms = now_ms.saturating_sub(path.heard_ms.load(Ordering::Relaxed));
        let is_elsewhere =
            matches!((path.dst, from), (Destination::Udp(a), Destination::Udp(b)) if a != b);
        if is_elsewhere
            && u128::from(silent_ms) >= DEAD_AFTER.as_millis()
            && let Some(set) = self.sets.get_mut(id)
        {
            // What was proven where it was proves nothing of where it is.
            set.doubt_all(now_ms);
            set.doubt(now_ms);
        }
    }

    /// A peer begins a handshake with a stamp that is not newer than its newest. While it is heard, that is a copy by
    /// another path or a replay. Else it may have restarted with its clock set back, and would be deaf to this end until
    /// its clock caught up; it takes an initiation of this end, which goes to its candidates and not to the sender.
    fn on_old_initiation(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let Some(live) = control.live else { return };
        let heard_ms = control.handle.traffic().last_rx_ms.load(Ordering::Relaxed);
        let silent_ms = self.plane.shared.now_ms().saturating_sub(heard_ms);
        let is_past = |at: Instant, span| now.saturating_duration_since(at) >= span;
        if u128::from(silent_ms) >= OLD_AFTER.as_millis()
            && is_past(live.touched_at, OLD_AFTER)
            && live.met_at.is_none_or(|at| is_past(at, OLD_EVERY))
        {
            let met_at = Some(now);
            self.peers.set_live(id, Some(Live { met_at, ..live }));
            self.renew_session(now, id);
        }
    }

    /// A peer answers a handshake.
    pub(super) fn on_response(
        &mut self,
        now: Instant,
        from: Destination,
        datagram: &[u8],
        receiver: u32,
    ) {
        let Some(peer) = self.plane.indices.peer(receiver) else {
            return;
        };
        if !self.identity.is_meant(datagram) || !self.admits_answer(now, &from) {
            return;
        }
        let now_ms = self.plane.shared.now_ms();
        let mut confirmation = [0; HANDSHAKE_LEN_MAX];
        let mut slot = peer.slot();
        let Some(session) = slot.session.as_mut() else {
            return;
        };
        let Read::Reply(len) = session.open(source_addr(&from).ip(), datagram, &mut confirmation)
        else {
            return;
        };
        slot.agree(now_ms, true, peer.identity().wins_ties);
        drop(slot);
        peer.traffic().note_received(now_ms, 0);
        peer.traffic().note_sent(now_ms, 0);
        peer.heard_from(from, now_ms);
        self.on_proven(&peer.node(), from);
        self.out
            .transmit(peer.destination().unwrap_or(from), &confirmation[..len]);
        self.attend(now, &peer.node());
    }

    /// A peer under load asks this node to prove its address. Moves no path: anybody could have sent it from anywhere.
    pub(super) fn on_cookie(
        &mut self,
        now: Instant,
        from: Destination,
        datagram: &[u8],
        receiver: u32,
    ) {
        let Some(peer) = self.plane.indices.peer(receiver) else {
            return;
        };
        if !self.admits_answer(now, &from) {
            return;
        }
        let mut unused = [0; HANDSHAKE_LEN_MAX];
        if let Some(session) = peer.slot().session.as_mut() {
            let _ = session.open(source_addr(&from).ip(), datagram, &mut unused);
        }
    }

    /// Whether an answer to this node may be worked on. Answers have a share of their own: whoever floods a node with
    /// initiations does not keep it from beginning handshakes itself.
    fn admits_answer(&mut self, now: Instant, from: &Destination) -> bool {
        self.answers.arrive(now);
        self.answers.admit(now, source_addr(from).ip())
    }

    /// Somebody uses a session that is not there, as a peer does when this node was restarted: a new one spares it the
    /// time to find out. A forged sender gets a peer a handshake that it did not need.
    pub(super) fn on_unknown_session(&mut self, now: Instant, from: Destination) {
        let is_idle =
            |control: &Control| !control.state().is_up() && control.state().retry_at().is_none();
        let knows = |control: &Control| match from {
            Destination::Udp(from) | Destination::Spare { endpoint: from, .. } => {
                let mut endpoints = control.last_direct.iter().chain(&control.endpoints);
                endpoints.any(|endpoint| canonical(*endpoint) == from)
            }
            Destination::Relay { peer, .. } => control.handle.identity().node_key == peer,
        };
        let found = self
            .peers
            .iter()
            .find(|(_, control)| is_idle(control) && knows(control))
            .map(|(id, _)| *id);
        if let Some(id) = found {
            self.renew_session(now, &id);
        }
    }

    /// A peer is heard from elsewhere than the selected path.
    pub(super) fn on_moved(&mut self, now: Instant, peer: &PeerHandle, from: Destination) {
        let id = peer.node();
        match from {
            Destination::Udp(_) | Destination::Spare { .. } if peer.is_guided() => {
                self.on_seen(now, &id, from);
            }
            Destination::Relay { relay, .. } => self.on_relay_heard(now, &id, relay),
            Destination::Udp(_) | Destination::Spare { .. } => {}
        }
        self.attend(now, &id);
    }

    /// Looks after a peer whose session may have become ready: tells the daemon, sends what waits.
    pub(super) fn attend(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let handle = control.handle.clone();
        let now_ms = self.plane.shared.now_ms();
        let slot = handle.slot();
        let agreed = slot.agreed.filter(|_| slot.is_ready(now_ms));
        let has_queued = slot.has_queued();
        drop(slot);
        if let Some(agreed) = agreed {
            if self.peers.change(id, |state| state.on_agreed(agreed.at_ms)) == Some(true) {
                self.out.events.push_back(Event::PeerUp { node: *id });
            }
            self.flush(&handle);
            self.resend(id);
            self.tell_path(id);
        } else if has_queued {
            self.renew_session(now, id);
        }
    }

    pub(super) fn tell_path(&mut self, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let selected = control.handle.destination();
        let is_told = selected == control.told_path || !control.state().is_up();
        if let Some(path) = selected.filter(|_| !is_told) {
            tracing::debug!(peer = %id, ?path, "path selected");
            self.peers.set_told_path(id, selected);
            let node = *id;
            self.out.events.push_back(Event::PathChanged { node, path });
        }
    }

    fn flush(&mut self, peer: &PeerHandle) {
        loop {
            let packet = peer.slot().pop(&self.plane.shared);
            let Some(packet) = packet else { return };
            let mut datagram = vec![0; (packet.len() + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)];
            let sealed = peer.seal().seal(&packet, &mut datagram);
            match (sealed, peer.destination()) {
                (Sealed::Datagram(len), Some(dst)) => {
                    self.out.transmit(dst, &datagram[..len]);
                }
                // Back in the queue: the session went meanwhile.
                (Sealed::Queued, _) => return,
                (Sealed::Datagram(_) | Sealed::Dropped(_), _) => {}
            }
        }
    }

    /// Sends again what TCP sent into silence, once the path in use is seen to work.
    pub(super) fn resend(&mut self, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let handle = control.handle.clone();
        let Some(path) = handle.path().filter(|_| handle.slot().has_stashed()) else {
            return;
        };
        let now_ms = self.plane.shared.now_ms();
        let proven_ms = self.sets.get(id).map_or(0, |set| set.proven_ms(&path.dst));
        let alive_ms = path.heard_ms.load(Ordering::Relaxed).max(proven_ms);
        let is_past = |since_ms: u64, span: Duration| {
            u128::from(now_ms.saturating_sub(since_ms)) >= span.as_millis()
        };
        let was_just_done = control
            .resent
            .is_some_and(|(at_ms, dst)| dst == path.dst && !is_past(at_ms, RESEND_EVERY));
        if is_past(alive_ms, DOUBT_FOR) || was_just_done {
            return;
        }
        let Some(stash) = handle.slot().take_stash() else {
            return;
        };
        tracing::debug!(peer = %id, path = ?path.dst, "sending again what may have been lost");
        // While nothing is heard, sealing keeps them anew.
        let mut sealer = handle.seal();
        for packet in stash.iter() {
            let mut datagram = vec![0; (packet.len() + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)];
            if let Sealed::Datagram(len) = sealer.seal(packet, &mut datagram) {
                self.out.transmit(path.dst, &datagram[..len]);
            }
        }
        // Should the session be gone by now, they wait for another, and the next packet asks for it.
        drop(sealer.finish());
        if let Some(control) = self.peers.get_mut(id) {
            control.resent = Some((now_ms, path.dst));
        }
    }

    /// Sends one packet of the engine's own through the tunnel.
    pub(super) fn send_packet(&mut self, now: Instant, peer: &PeerHandle, packet: &[u8]) {
        let mut datagram = [0; SEAL_BUFFER_MIN];
        let mut sealer = peer.seal();
        let sealed = sealer.seal(packet, &mut datagram);
        let event = sealer.finish();
        if let (Sealed::Datagram(len), Some(dst)) = (sealed, peer.destination()) {
            self.out.transmit(dst, &datagram[..len]);
        }
        if let Some(event) = event {
            self.on_plane(now, event);
        }
    }

    /// The peer may be reached elsewhere: do not wait for the next try.
    pub(super) fn on_new_candidates(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let (state, endpoints) = (Some(*control.state()), control.endpoints.clone());
        let told = self.judged(&endpoints);
        if let Some(set) = self.sets.get_mut(id)
            && set.tell(&told)
        {
            set.explore(self.plane.shared.now_ms());
            self.look(now, id);
        }
        if state.is_some_and(|state| state.retry_at().is_some()) {
            self.initiate(now, id);
        }
    }

    /// The underlay changed: every path is doubtful.
    pub(super) fn on_rebind(&mut self, now: Instant) {
        self.stun.restart(now);
        self.relays.forget_latencies();
        self.port_map.restart(now);
        let now_ms = self.plane.shared.now_ms();
        let live: Vec<NodeId> = self.peers.live().iter().copied().collect();
        for id in live {
            // No path is sure any more: handshakes go everywhere, and what proves itself first is used.
            if let Some(path) = self.peers.get(&id).and_then(|peer| peer.handle.path()) {
                path.heard_ms.store(0, Ordering::Relaxed);
            }
            if let Some(set) = self.sets.get_mut(&id) {
                set.doubt_all(now_ms);
                set.doubt(now_ms);
                self.look(now, &id);
            }
            let state = self.peers.get(&id).map(|control| *control.state());
            match state {
                // Its next try may be seconds away, and the last ones went into the void.
                Some(state) if state.retry_at().is_some() => self.initiate(now, &id),
                Some(state) if state.is_up() => self.renew_session(now, &id),
                Some(_) | None => {}
            }
        }
    }
}
