//! The host's own queue: so many requests at once, so many waiting, each peer its share.
//!
//! A backend's queue cannot stand in for it: Ollama bounds only requests that need a load, llama-server none at all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::id::NodeId;
use tokio::sync::oneshot;

/// Requests that may wait.
pub(crate) const N_QUEUED_MAX: usize = 64;
/// Requests of one peer that may wait, so that nobody fills the queue alone.
const N_QUEUED_PER_PEER_MAX: usize = 32;

/// Why a request gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("this host has {N_QUEUED_MAX} requests waiting already; try again shortly")]
    Full,
    #[error(
        "this host has {N_QUEUED_PER_PEER_MAX} requests of yours waiting already; try again shortly"
    )]
    PeerFull,
    #[error("this host was busy for too long; try again shortly")]
    Deadline,
}

/// Hands out slots: to the peer with the least in work first, in order of arrival within that.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    n_slots: usize,
    n_active: usize,
    active_of: BTreeMap<Option<NodeId>, usize>,
    waiting: VecDeque<Waiter>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    who: Option<NodeId>,
    ready: oneshot::Sender<()>,
}

/// The right to have one request worked on; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    queue: Arc<Queue>,
    who: Option<NodeId>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.release(self.who);
        inner.admit_waiting();
    }
}

/// A place in the queue; left when dropped.
struct Place {
    queue: Arc<Queue>,
    who: Option<NodeId>,
    id: u64,
    is_taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        let mut inner = self.queue.lock();
        let n_before = inner.waiting.len();
        inner.waiting.retain(|waiter| waiter.id != self.id);
        if inner.waiting.len() == n_before {
            // It was admitted and nobody is there to use it.
            inner.release(self.who);
            inner.admit_waiting();
        }
    }
}

impl Queue {
    pub(crate) fn new(n_slots: u32) -> Arc<Self> {
        let queue = Self {
            inner: Mutex::default(),
        };
        queue.resize(n_slots);
        Arc::new(queue)
    }

    /// Changes the number of slots; requests in work are never cut off by it.
    pub(crate) fn resize(&self, n_slots: u32) {
        let mut inner = self.lock();
        inner.n_slots = usize::try_from(n_slots.max(1)).unwrap_or(1);
        inner.admit_waiting();
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`QueueError`] when there is no room or the wait took too long.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        who: Option<NodeId>,
        deadline: Duration,
    ) -> Result<Slot, QueueError> {
        let (mut place, ready) = {
            let mut inner = self.lock();
            if inner.waiting.is_empty() && inner.n_active < inner.n_slots {
                inner.start(who);
                return Ok(self.slot(who));
            }
            if inner.waiting.len() >= N_QUEUED_MAX {
                return Err(QueueError::Full);
            }
            let n_own = inner.waiting.iter().filter(|w| w.who == who).count();
            if n_own >= N_QUEUED_PER_PEER_MAX {
                return Err(QueueError::PeerFull);
            }
            let (ready_tx, ready) = oneshot::channel();
            let id = inner.next_id;
            inner.next_id += 1;
            inner.waiting.push_back(Waiter {
                id,
                who,
                ready: ready_tx,
            });
            let place = Place {
                queue: Arc::clone(self),
                who,
                id,
                is_taken: false,
            };
            (place, ready)
        };
        match tokio::time::timeout(deadline, ready).await {
            Ok(Ok(())) => {
                place.is_taken = true;
                Ok(self.slot(who))
            }
            Ok(Err(_)) | Err(_) => Err(QueueError::Deadline),
        }
    }

    /// Requests in work and requests waiting.
    pub(crate) fn load(&self) -> (u32, u32) {
        let inner = self.lock();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (count(inner.n_active), count(inner.waiting.len()))
    }

    fn slot(self: &Arc<Self>, who: Option<NodeId>) -> Slot {
        Slot {
            queue: Arc::clone(self),
            who,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn start(&mut self, who: Option<NodeId>) {
        self.n_active += 1;
        *self.active_of.entry(who).or_default() += 1;
    }

    fn release(&mut self, who: Option<NodeId>) {
        self.n_active = self.n_active.saturating_sub(1);
        if let Some(n) = self.active_of.get_mut(&who) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.active_of.remove(&who);
            }
        }
    }

    fn admit_waiting(&mut self) {
        while self.n_active < self.n_slots {
            let least = self
                .waiting
                .iter()
                .enumerate()
                .min_by_key(|(at, w)| (self.active_of.get(&w.who).copied().unwrap_or(0), *at));
            let Some(at) = least.map(|(at, _)| at) else {
                return;
            };
            let Some(waiter) = self.waiting.remove(at) else {
                return;
            };
            self.start(waiter.who);
            // When nobody listens any more, the place is about to be dropped and gives the slot back.
            let _ = waiter.ready.send(());
        }
    }
}

#[cfg(test)]
mod tests;
