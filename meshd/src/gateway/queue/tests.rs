//! Slots, order, bounds, and what is given back.

use super::*;

const LONG: Duration = Duration::from_secs(3_600);

fn node(n: u8) -> Option<NodeId> {
    Some(NodeId::from_bytes([n; 10]))
}

async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_peer_with_the_least_in_work_is_next() {
    let queue = Queue::new(2);
    let first = queue.acquire(node(1), LONG).await.unwrap();
    let second = queue.acquire(node(1), LONG).await.unwrap();
    let (order_tx, mut order) = tokio::sync::mpsc::channel(8);
    for who in [1, 1, 2] {
        let (queue, order) = (Arc::clone(&queue), order_tx.clone());
        tokio::spawn(async move {
            let slot = queue.acquire(node(who), LONG).await.unwrap();
            order.send((who, slot)).await.unwrap();
        });
        settle().await;
    }
    assert_eq!(queue.load(), (2, 3));
    drop(first);
    let (who, slot) = order.recv().await.unwrap();
    assert_eq!(who, 2, "peer 1 has one in work still");
    drop(second);
    let (who, _held) = order.recv().await.unwrap();
    assert_eq!(who, 1);
    drop(slot);
    let (who, _held) = order.recv().await.unwrap();
    assert_eq!(who, 1);
    assert_eq!(queue.load(), (2, 0));
}

#[tokio::test]
async fn a_wait_has_an_end_and_leaves_nothing() {
    let queue = Queue::new(1);
    let held = queue.acquire(None, LONG).await.unwrap();
    let waited = queue.acquire(node(1), Duration::from_millis(1)).await;
    assert_eq!(waited.unwrap_err(), QueueError::Deadline);
    assert_eq!(queue.load(), (1, 0));
    drop(held);
    assert_eq!(queue.load(), (0, 0));
    let _again = queue.acquire(node(1), LONG).await.unwrap();
}

#[tokio::test]
async fn a_waiter_that_is_dropped_after_its_turn_came_gives_it_on() {
    let queue = Queue::new(1);
    let held = queue.acquire(None, LONG).await.unwrap();
    let mut waiting = Box::pin(queue.acquire(node(1), LONG));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(held);
    assert_eq!(queue.load(), (1, 0), "the slot is the waiter's");
    drop(waiting);
    assert_eq!(queue.load(), (0, 0));
}

#[tokio::test]
async fn more_slots_let_waiters_in_at_once() {
    let queue = Queue::new(1);
    let _held = queue.acquire(None, LONG).await.unwrap();
    let mut waiting = Box::pin(queue.acquire(node(1), LONG));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    queue.resize(2);
    assert!(futures_util::poll!(&mut waiting).is_ready());
    queue.resize(0);
    assert_eq!(queue.load().1, 0);
}
