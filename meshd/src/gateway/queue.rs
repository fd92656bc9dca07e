//! The host's own queue: so many requests at once, so many waiting, each guest its share, the owner first.
//!
//! A backend's queue cannot stand in for it: Ollama bounds only requests that need a load, llama-server none at all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::door::{Account, Gate, GateKey};

/// Requests of guests that may wait, and as many of the owner.
pub(crate) const N_QUEUED_MAX: usize = 64;
/// Requests of one guest that may wait, so that nobody fills the queue alone.
const N_QUEUED_PER_GUEST_MAX: usize = 32;
/// What a request counts at least when turns are shared out.
const WORK_MIN: Duration = Duration::from_millis(1);
/// How long a request takes while none has been seen to end.
const HOLD_GUESS: Duration = Duration::from_secs(2);
/// The longest that a caller is told to stay away for want of a slot.
const RETRY_MAX_SECS: u64 = 60;

/// Why a request gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("this host has {n_waiting} requests waiting already; try again shortly")]
    Full { n_waiting: usize, retry_secs: u32 },
    #[error(
        "this host has {N_QUEUED_PER_GUEST_MAX} requests of yours waiting already; try again when some are answered"
    )]
    GuestFull { retry_secs: u32 },
    #[error(
        "this host was busy for too long: the request was at place {position} in its queue; try again shortly"
    )]
    Deadline { position: usize, retry_secs: u32 },
}

/// Hands out slots: to the owner first, then to the guest with the least in work, of those with as much to the one that was
/// worked for least, in order of arrival within that.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    n_slots: usize,
    n_active: usize,
    shares: BTreeMap<Account, Share>,
    gates: BTreeMap<GateKey, u32>,
    waiting: VecDeque<Waiter>,
    next_id: u64,
    /// How long requests hold their slots, lately.
    mean_hold: Duration,
}

/// What one account has of the host.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    n_active: usize,
    n_waiting: usize,
    /// How long it was worked for, in the time of those who compete with it.
    work: Duration,
}

impl Share {
    fn is_busy(&self) -> bool {
        self.n_active + self.n_waiting > 0
    }
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    who: Account,
    gates: Vec<Gate>,
    ready: oneshot::Sender<()>,
}

/// The right to have one request worked on; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    queue: Arc<Queue>,
    who: Account,
    gates: Vec<Gate>,
    /// When it got it.
    pub(crate) begun: Instant,
    /// How long the request waited for it.
    pub(crate) waited: Duration,
    /// At which place the request entered the queue; 0 when it did not have to wait.
    pub(crate) position: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let held = self.begun.elapsed();
        let mut inner = self.queue.lock();
        inner.mean_hold = (inner.mean_hold * 7 + held) / 8;
        inner.release(self.who, &self.gates, held);
        inner.admit_waiting();
    }
}

/// A place in the queue; left when dropped.
struct Place {
    queue: Arc<Queue>,
    who: Account,
    gates: Vec<Gate>,
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
            inner.release(self.who, &self.gates, Duration::ZERO);
            inner.admit_waiting();
        } else {
            inner.leave(self.who);
        }
    }
}

impl Queue {
    pub(crate) fn new(n_slots: u32) -> Arc<Self> {
        let queue = Self {
            inner: Mutex::new(Inner {
                n_slots: 1,
                n_active: 0,
                shares: BTreeMap::new(),
                gates: BTreeMap::new(),
                waiting: VecDeque::new(),
                next_id: 0,
                mean_hold: HOLD_GUESS,
            }),
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

    /// Waits for a slot, and until the gates let the request through. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`QueueError`] when there is no room or the wait took too long.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        who: Account,
        gates: Vec<Gate>,
        deadline: Duration,
    ) -> Result<Slot, QueueError> {
        let arrived = Instant::now();
        let (mut place, position, ready) = {
            let mut inner = self.lock();
            inner.enter(who);
            // Those who wait although there is a slot wait for their gates, and hold nobody else up.
            if inner.n_active < inner.n_slots && inner.is_open(&gates) {
                inner.start(who, &gates);
                inner.leave(who);
                return Ok(self.slot(who, gates, arrived, arrived, 0));
            }
            if let Err(refused) = inner.room_for(who) {
                inner.leave(who);
                return Err(refused);
            }
            let (ready_tx, ready) = oneshot::channel();
            let id = inner.next_id;
            inner.next_id += 1;
            inner.waiting.push_back(Waiter {
                id,
                who,
                gates: gates.clone(),
                ready: ready_tx,
            });
            let position = inner.position(id);
            let place = Place {
                queue: Arc::clone(self),
                who,
                gates: gates.clone(),
                id,
                is_taken: false,
            };
            (place, position, ready)
        };
        match tokio::time::timeout(deadline, ready).await {
            Ok(Ok(())) => {
                place.is_taken = true;
                Ok(self.slot(who, gates, arrived, Instant::now(), position))
            }
            Ok(Err(_)) | Err(_) => {
                let inner = self.lock();
                let position = inner.position(place.id);
                Err(QueueError::Deadline {
                    position,
                    retry_secs: inner.retry_secs(position),
                })
            }
        }
    }

    /// Requests in work and requests waiting.
    pub(crate) fn load(&self) -> (u32, u32) {
        let inner = self.lock();
        (count(inner.n_active), count(inner.waiting.len()))
    }

    /// Who has how many requests in work and waiting, and at which place the first of those is; who is next comes first.
    pub(crate) fn guests(&self) -> Vec<(Account, u32, u32, Option<u32>)> {
        let inner = self.lock();
        let order = inner.order();
        let place = |account: Account| {
            let at = order.iter().position(|(_, who)| *who == account);
            at.map(|at| count(at + 1))
        };
        let busy = inner.shares.iter().filter(|(_, share)| share.is_busy());
        let mut guests: Vec<_> = busy
            .map(|(who, share)| {
                (
                    *who,
                    count(share.n_active),
                    count(share.n_waiting),
                    place(*who),
                )
            })
            .collect();
        guests.sort_by_key(|(who, _, _, place)| (place.unwrap_or(u32::MAX), *who));
        guests
    }

    fn slot(
        self: &Arc<Self>,
        who: Account,
        gates: Vec<Gate>,
        arrived: Instant,
        begun: Instant,
        position: usize,
    ) -> Slot {
        Slot {
            queue: Arc::clone(self),
            who,
            gates,
            begun,
            waited: begun.duration_since(arrived),
            position,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Inner {
    /// One more request of an account waits. An account that was idle gets no credit for that.
    fn enter(&mut self, who: Account) {
        let floor = self.floor();
        self.shares
            .retain(|_, share| share.is_busy() || share.work > floor);
        let share = self.shares.entry(who).or_default();
        if !share.is_busy() {
            share.work = share.work.max(floor);
        }
        share.n_waiting += 1;
    }

    fn leave(&mut self, who: Account) {
        if let Some(share) = self.shares.get_mut(&who) {
            share.n_waiting = share.n_waiting.saturating_sub(1);
        }
    }

    /// The least work that was done for any account that has requests here.
    fn floor(&self) -> Duration {
        let busy = self.shares.values().filter(|share| share.is_busy());
        busy.map(|share| share.work).min().unwrap_or_else(|| {
            let all = self.shares.values().map(|share| share.work);
            all.max().unwrap_or_default()
        })
    }

    /// Whether an account that has entered may wait.
    fn room_for(&self, who: Account) -> Result<(), QueueError> {
        let is_owner = who == Account::Owner;
        let same_side = |waiter: &&Waiter| (waiter.who == Account::Owner) == is_owner;
        let n_waiting = self.waiting.iter().filter(same_side).count();
        if n_waiting >= N_QUEUED_MAX {
            let retry_secs = self.retry_secs(n_waiting);
            return Err(QueueError::Full {
                n_waiting,
                retry_secs,
            });
        }
        let n_own = self.shares.get(&who).map_or(0, |share| share.n_waiting);
        if !is_owner && n_own > N_QUEUED_PER_GUEST_MAX {
            let retry_secs = self.retry_secs(n_own);
            return Err(QueueError::GuestFull { retry_secs });
        }
        Ok(())
    }

    /// In how many seconds so many waiting requests should have had their turn.
    fn retry_secs(&self, n_waiting: usize) -> u32 {
        let n_rounds = count(n_waiting.div_ceil(self.n_slots).max(1));
        let secs = self.mean_hold.saturating_mul(n_rounds).as_secs();
        u32::try_from(secs.clamp(2, RETRY_MAX_SECS)).unwrap_or(2)
    }

    fn is_open(&self, gates: &[Gate]) -> bool {
        gates
            .iter()
            .all(|gate| self.gates.get(&gate.key).is_none_or(|n| *n < gate.n_max))
    }

    fn start(&mut self, who: Account, gates: &[Gate]) {
        self.n_active += 1;
        self.shares.entry(who).or_default().n_active += 1;
        for gate in gates {
            *self.gates.entry(gate.key.clone()).or_default() += 1;
        }
    }

    fn release(&mut self, who: Account, gates: &[Gate], held: Duration) {
        self.n_active = self.n_active.saturating_sub(1);
        if let Some(share) = self.shares.get_mut(&who) {
            share.n_active = share.n_active.saturating_sub(1);
            share.work += held.max(WORK_MIN);
        }
        for gate in gates {
            if let Some(n) = self.gates.get_mut(&gate.key) {
                *n = n.saturating_sub(1);
                if *n == 0 {
                    self.gates.remove(&gate.key);
                }
            }
        }
    }

    fn admit_waiting(&mut self) {
        while self.n_active < self.n_slots {
            let open = self
                .waiting
                .iter()
                .enumerate()
                .filter(|(_, waiter)| self.is_open(&waiter.gates));
            let next = open.min_by_key(|(at, waiter)| {
                let share = self.shares.get(&waiter.who).copied().unwrap_or_default();
                (
                    waiter.who != Account::Owner,
                    share.n_active,
                    share.work,
                    *at,
                )
            });
            let Some(waiter) = next
                .map(|(at, _)| at)
                .and_then(|at| self.waiting.remove(at))
            else {
                return;
            };
            self.start(waiter.who, &waiter.gates);
            self.leave(waiter.who);
            // When nobody listens any more, the place is about to be dropped and gives the slot back.
            let _ = waiter.ready.send(());
        }
    }

    /// The waiting requests in the order in which their turns should come.
    fn order(&self) -> Vec<(u64, Account)> {
        let mut n_before: BTreeMap<Account, usize> = BTreeMap::new();
        let mut keyed: Vec<_> = self
            .waiting
            .iter()
            .map(|waiter| {
                let share = self.shares.get(&waiter.who).copied().unwrap_or_default();
                let n = n_before.entry(waiter.who).or_default();
                let turn = share.n_active + *n;
                *n += 1;
                (
                    waiter.who != Account::Owner,
                    turn,
                    share.work,
                    waiter.id,
                    waiter.who,
                )
            })
            .collect();
        keyed.sort_unstable();
        keyed
            .into_iter()
            .map(|(_, _, _, id, who)| (id, who))
            .collect()
    }

    /// The place of a waiting request, from 1; 0 when it waits no more.
    fn position(&self, id: u64) -> usize {
        let order = self.order();
        order
            .iter()
            .position(|(waiting, _)| *waiting == id)
            .map_or(0, |at| at + 1)
    }
}

#[cfg(test)]
mod tests;
