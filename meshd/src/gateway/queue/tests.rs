//! Slots, order, bounds, gates, and what is given back.

use mesh_proto::door::{Guests, Limit};
use mesh_proto::id::UserId;

use super::*;
use crate::gateway::door::Bound;

const LONG: Duration = Duration::from_secs(3_600);

fn user(n: i64) -> Account {
    Account::User(UserId(n))
}

/// At most so many at once of a user.
fn gate(n: i64, n_max: u32) -> Vec<Gate> {
    let limit = Limit {
        who: Guests::Each,
        models: "*".to_owned(),
        concurrent: Some(n_max),
        per_minute: None,
        tokens_per_day: None,
    };
    let account = Some(user(n));
    let bound = Bound {
        limit: &limit,
        account,
    };
    vec![bound.gate().unwrap()]
}

async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// Requests that wait, and the order in which they get their turns.
struct Line {
    queue: Arc<Queue>,
    turns: tokio::sync::mpsc::Receiver<(&'static str, Slot)>,
    told: tokio::sync::mpsc::Sender<(&'static str, Slot)>,
}

impl Line {
    fn new(n_slots: u32) -> Self {
        let (told, turns) = tokio::sync::mpsc::channel(64);
        let queue = Queue::new(n_slots);
        Self { queue, turns, told }
    }

    async fn add(&self, name: &'static str, who: Account, gates: Vec<Gate>) {
        let (queue, told) = (Arc::clone(&self.queue), self.told.clone());
        tokio::spawn(async move {
            let slot = queue.acquire(who, gates, LONG).await.unwrap();
            told.send((name, slot)).await.unwrap();
        });
        settle().await;
    }

    async fn next(&mut self) -> (&'static str, Slot) {
        self.turns.recv().await.unwrap()
    }

    /// The order in which all get their turns, one after another.
    async fn order(&mut self, mut held: Slot, n: usize) -> Vec<&'static str> {
        let mut order = Vec::new();
        for _ in 0..n {
            drop(held);
            let (name, slot) = self.next().await;
            order.push(name);
            held = slot;
        }
        order
    }
}

#[tokio::test]
async fn the_guest_with_the_least_in_work_is_next() {
    let mut line = Line::new(2);
    let first = line.queue.acquire(user(1), Vec::new(), LONG).await.unwrap();
    let second = line.queue.acquire(user(1), Vec::new(), LONG).await.unwrap();
    for (name, who) in [("a", 1), ("b", 1), ("c", 2)] {
        line.add(name, user(who), Vec::new()).await;
    }
    assert_eq!(line.queue.load(), (2, 3));
    drop(first);
    let (name, slot) = line.next().await;
    assert_eq!(name, "c", "user 1 has one in work still");
    drop(second);
    let (name, _held) = line.next().await;
    assert_eq!(name, "a");
    drop(slot);
    let (name, _held) = line.next().await;
    assert_eq!(name, "b");
    assert_eq!(line.queue.load(), (2, 0));
}

#[tokio::test]
async fn guests_take_turns_however_many_requests_each_has() {
    let mut line = Line::new(1);
    let held = line.queue.acquire(user(1), Vec::new(), LONG).await.unwrap();
    for name in ["a1", "a2", "a3", "a4"] {
        line.add(name, user(1), Vec::new()).await;
    }
    line.add("b1", user(2), Vec::new()).await;
    line.add("b2", user(2), Vec::new()).await;
    line.add("c1", user(3), Vec::new()).await;
    let order = line.order(held, 7).await;
    assert!(order.iter().position(|n| *n == "b1") < Some(2), "{order:?}");
    assert!(order.iter().position(|n| *n == "c1") < Some(3), "{order:?}");
    assert!(order.iter().position(|n| *n == "b2") < Some(5), "{order:?}");
}

#[tokio::test]
async fn the_owner_goes_ahead_and_has_room_of_its_own() {
    let mut line = Line::new(1);
    let held = line.queue.acquire(user(1), Vec::new(), LONG).await.unwrap();
    for at in 0..2 {
        for _ in 0..N_QUEUED_PER_GUEST_MAX {
            line.add("guest", user(at + 1), Vec::new()).await;
        }
    }
    let refused = line
        .queue
        .acquire(user(3), Vec::new(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(
        refused,
        QueueError::Full {
            n_waiting: N_QUEUED_MAX,
            ..
        }
    ));
    let refused = line
        .queue
        .acquire(user(1), Vec::new(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(refused, QueueError::Full { .. }));
    line.add("own", Account::Owner, Vec::new()).await;
    line.add("own", Account::Owner, Vec::new()).await;
    let guests = line.queue.guests();
    assert_eq!(guests[0], (Account::Owner, 0, 2, Some(1)));
    assert_eq!(line.order(held, 3).await, ["own", "own", "guest"]);
}

#[tokio::test]
async fn one_guest_cannot_fill_the_queue() {
    let line = Line::new(1);
    let _held = line.queue.acquire(user(1), Vec::new(), LONG).await.unwrap();
    for _ in 0..N_QUEUED_PER_GUEST_MAX {
        line.add("a", user(1), Vec::new()).await;
    }
    let refused = line
        .queue
        .acquire(user(1), Vec::new(), LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, QueueError::GuestFull { .. }),
        "{refused:?}"
    );
    line.add("b", user(2), Vec::new()).await;
    assert_eq!(line.queue.load(), (1, 33));
}

#[tokio::test]
async fn a_guest_at_its_bound_waits_and_holds_nobody_up() {
    let mut line = Line::new(4);
    let first = line.queue.acquire(user(1), gate(1, 1), LONG).await.unwrap();
    line.add("a", user(1), gate(1, 1)).await;
    assert_eq!(
        line.queue.load(),
        (1, 1),
        "three slots are free, and the gate is shut"
    );
    let other = line.queue.acquire(user(2), gate(2, 1), LONG).await.unwrap();
    assert_eq!(other.position, 0);
    drop(first);
    let (name, slot) = line.next().await;
    assert_eq!((name, slot.position), ("a", 1));
    drop((slot, other));
    assert_eq!(line.queue.load(), (0, 0));
    assert!(
        line.queue.lock().gates.is_empty(),
        "a gate was not given back"
    );
}

#[tokio::test]
async fn a_wait_has_an_end_and_leaves_nothing() {
    let queue = Queue::new(1);
    let held = queue.acquire(user(2), Vec::new(), LONG).await.unwrap();
    let waited = queue
        .acquire(user(1), gate(1, 1), Duration::from_millis(1))
        .await;
    assert!(matches!(
        waited.unwrap_err(),
        QueueError::Deadline { position: 1, .. }
    ));
    assert_eq!(queue.load(), (1, 0));
    drop(held);
    assert_eq!(queue.load(), (0, 0));
    assert_eq!(queue.guests(), []);
    let _again = queue.acquire(user(1), gate(1, 1), LONG).await.unwrap();
}

#[tokio::test]
async fn a_waiter_that_is_dropped_after_its_turn_came_gives_it_on() {
    let queue = Queue::new(1);
    let held = queue.acquire(user(2), Vec::new(), LONG).await.unwrap();
    let mut waiting = Box::pin(queue.acquire(user(1), gate(1, 1), LONG));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(held);
    assert_eq!(queue.load(), (1, 0), "the slot is the waiter's");
    drop(waiting);
    assert_eq!(queue.load(), (0, 0));
    assert!(queue.lock().gates.is_empty());
}

#[tokio::test]
async fn more_slots_let_waiters_in_at_once() {
    let queue = Queue::new(1);
    let _held = queue.acquire(user(2), Vec::new(), LONG).await.unwrap();
    let mut waiting = Box::pin(queue.acquire(user(1), Vec::new(), LONG));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    queue.resize(2);
    assert!(futures_util::poll!(&mut waiting).is_ready());
    queue.resize(0);
    assert_eq!(queue.load().1, 0);
}

#[tokio::test]
async fn accounts_that_went_are_forgotten() {
    let queue = Queue::new(1);
    for n in 0..1_000 {
        drop(queue.acquire(user(n), Vec::new(), LONG).await.unwrap());
    }
    assert!(
        queue.lock().shares.len() <= 2,
        "{}",
        queue.lock().shares.len()
    );
}
