//! The regular look at live sessions: renewal, keepalives, and letting go of what is idle.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;

use super::Engine;
use crate::config::{
    KEEPALIVE_AFTER, REKEY_AFTER, REKEY_AFTER_RECEIVING, SILENT_AFTER, SLEPT, SWEEP_EVERY,
    UNCONFIRMED_FOR,
};
use crate::noise::{HANDSHAKE_LEN_MAX, Tick};
use crate::peer::{PeerHandle, Slot};

impl Engine {
    /// Looks at every session. `is_late` when that was due long ago, as when the program was stopped meanwhile.
    pub(super) fn tick(&mut self, now: Instant, is_late: bool) {
        if now.saturating_duration_since(self.reset_at) >= Duration::from_secs(1) {
            self.reset_at = now;
            self.identity.reset();
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.plane.sweep(self.plane.shared.now_ms());
        }
        let live: Vec<NodeId> = self.peers.live().iter().copied().collect();
        let mut has_internet_path = false;
        for id in live {
            self.tick_peer(now, &id, is_late);
            self.tick_paths(now, &id);
            has_internet_path |= self.peers.get(&id).is_some_and(|control| {
                control.state().is_up() && control.handle.path().is_some_and(|path| !path.is_lan)
            });
        }
        self.stun.set_active(has_internet_path);
        self.tell_spares(now);
    }

    fn tick_peer(&mut self, now: Instant, id: &NodeId, is_late: bool) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let (handle, live) = (control.handle.clone(), control.live);
        let is_up = control.state().is_up();
        let is_idle = !is_up && control.state().retry_at().is_none();
        let now_ms = self.plane.shared.now_ms();

        let mut datagram = [0; HANDSHAKE_LEN_MAX];
        let mut slot = handle.slot();
        if slot.is_ready(now_ms) && owes_keepalive(&handle, now_ms) {
            let session = slot.session.as_mut();
            let sealed = session.and_then(|session| session.seal(&[], &mut datagram).ok());
            if let (Some(len), Some(dst)) = (sealed, handle.destination()) {
                handle.traffic().note_sent(now_ms, 0);
                self.out.transmit(dst, &datagram[..len]);
            }
        }
        let needs_renewal = needs_renewal(&handle, &slot, now_ms);
        // The session's own timers come last: what was done above keeps them quiet.
        drop(slot);
        if is_up && needs_renewal {
            self.renew_session(now, id);
        }
        let mut slot = handle.slot();
        let tick = slot
            .session
            .as_mut()
            .map_or(Tick::Nothing, |session| session.tick(&mut datagram));
        let is_ready = slot.is_ready(now_ms);
        let has_slept = is_late
            || slot
                .agreed
                .is_some_and(|agreed| agreed.has_left(now_ms, SLEPT));
        drop(slot);
        match tick {
            Tick::Nothing | Tick::Expired => {}
            Tick::Initiation(len) => {
                let at = self.now(now);
                self.peers.change(id, |state| state.on_initiated(at));
                self.spray(now, id, &datagram[..len]);
            }
            Tick::Keepalive(len) => {
                if let Some(dst) = handle.destination() {
                    handle.traffic().note_sent(now_ms, 0);
                    self.out.transmit(dst, &datagram[..len]);
                }
            }
        }
        let is_unconfirmed_long = live
            .is_some_and(|live| now.saturating_duration_since(live.touched_at) >= UNCONFIRMED_FOR);
        if is_ready {
            // Catches up with events that were lost on their way from the plane.
            self.attend(now, id);
        } else if self.is_attempting(id) {
            if tick == Tick::Expired {
                // Its attempt is over by its own clock, which counts sleep: nothing that is still to come answers it.
                self.replace_session(now, id);
                self.initiate(now, id);
            }
        } else if is_up || (is_idle && is_unconfirmed_long) || tick == Tick::Expired {
            let has_queued = handle.slot().has_queued();
            if has_queued {
                self.renew_session(now, id);
            } else if is_up && has_slept {
                // The peer may have sent all the time, and knows no better than to try again in a while.
                self.replace_session(now, id);
                self.renew_session(now, id);
            } else {
                self.end_session(id);
            }
        }
    }

    /// A look at the paths of a peer whose session lives on.
    fn tick_paths(&mut self, now: Instant, id: &NodeId) {
        if self.sets.contains_key(id) {
            self.look(now, id);
        }
    }

    fn is_attempting(&self, id: &NodeId) -> bool {
        let control = self.peers.get(id);
        control.is_some_and(|control| control.state().retry_at().is_some())
    }

    /// Makes a session anew and keeps what waits for it.
    fn replace_session(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        if let Some(live) = control.live {
            self.plane.indices.release(live.index);
        }
        let mut slot = control.handle.slot();
        slot.forget();
        drop(slot);
        self.peers.set_live(id, None);
        self.ensure_session(now, id);
    }
}

/// Whether the peer sent data and heard nothing for so long that it may take this node for dead.
fn owes_keepalive(peer: &PeerHandle, now_ms: u64) -> bool {
    let last_tx_ms = peer.traffic().last_tx_ms.load(Ordering::Relaxed);
    peer.traffic().last_data_rx_ms.load(Ordering::Relaxed) > last_tx_ms
        && is_past(now_ms, last_tx_ms, KEEPALIVE_AFTER)
}

/// Whether keys are due for replacement, or the path is silent.
fn needs_renewal(peer: &PeerHandle, slot: &Slot, now_ms: u64) -> bool {
    let traffic = peer.traffic();
    let unanswered_ms = traffic.unanswered_ms.load(Ordering::Relaxed);
    if unanswered_ms != 0 && is_past(now_ms, unanswered_ms, SILENT_AFTER) {
        return true;
    }
    // Only the initiator renews, else both ends would at once.
    let Some(agreed) = slot.agreed.filter(|agreed| agreed.is_initiator) else {
        return false;
    };
    let has_sent = traffic.last_data_tx_ms.load(Ordering::Relaxed) > agreed.at_ms;
    let has_received = traffic.last_data_rx_ms.load(Ordering::Relaxed) > agreed.at_ms;
    (has_sent && is_past(now_ms, agreed.at_ms, REKEY_AFTER))
        || (has_received && is_past(now_ms, agreed.at_ms, REKEY_AFTER_RECEIVING))
}

fn is_past(now_ms: u64, since_ms: u64, span: Duration) -> bool {
    u128::from(now_ms.saturating_sub(since_ms)) >= span.as_millis()
}
