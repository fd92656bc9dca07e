//! Tests of the hub: forwarding, turns, bounds, several connections of one key, who is told what.

use mesh_proto::relay::{Datagrams, turn_round};
use proptest::prelude::*;

use super::*;

type TestHub = Hub<u32>;

fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes([n; 32])
}

fn hub() -> TestHub {
    Hub::new(100, 0)
}

fn enter(hub: &mut TestHub, n: u8, waker: u32, now: Instant) -> ClientId {
    hub.enter(key(n), waker, now, &mut Vec::new()).unwrap()
}

/// A frame of one datagram from a node.
fn received(from: u8, len: usize) -> Received {
    let contents = vec![4; len];
    let datagrams = Datagrams::new(&contents, len).unwrap();
    let is_urgent = datagrams.is_urgent();
    let mut bytes = Frame::Send {
        to: key(0),
        datagrams,
    }
    .to_vec();
    assert!(turn_round(&mut bytes, &key(from)));
    Received {
        bytes: bytes.into(),
        n_datagrams: 1,
        is_urgent,
    }
}

/// How many datagrams were lost; the receiver must be there.
fn lost(forwarded: Forwarded) -> usize {
    match forwarded {
        Forwarded::Queued { n_lost, .. } => n_lost,
        Forwarded::NotHere => panic!("nobody is there"),
    }
}

/// All that waits for a connection, as `(kind, node)`; for what is not of a node the key is zero.
fn told(hub: &mut TestHub, id: ClientId) -> (Vec<(&'static str, NodeKey)>, Taken) {
    let mut all = Vec::new();
    loop {
        let mut out = Vec::new();
        let taken = hub.take(id, 1 << 20, &mut out);
        let bytes: Vec<u8> = out.iter().flat_map(|frame| frame.to_vec()).collect();
        let mut rest = &bytes[..];
        while let Some(len) = mesh_proto::relay::frame_len(rest, usize::MAX).unwrap() {
            let none = key(0);
            all.push(match Frame::parse(&rest[..len]).unwrap() {
                Frame::Received { from, .. } => ("received", from),
                Frame::PeerGone { node } => ("gone", node),
                Frame::Pong(_) => ("pong", none),
                Frame::Health(Health::Duplicate) => ("duplicate", none),
                Frame::Health(Health::Well) => ("well", none),
                Frame::Health(Health::Removed) => ("removed", none),
                Frame::RateLimited { .. } => ("limited", none),
                other @ (Frame::Challenge { .. }
                | Frame::Hello { .. }
                | Frame::Welcome { .. }
                | Frame::Denied { .. }
                | Frame::Send { .. }
                | Frame::Ping(_)
                | Frame::Health(Health::Other(_))
                | Frame::Restarting { .. }
                | Frame::UdpOffer { .. }
                | Frame::UdpOff
                | Frame::Unknown(_)) => panic!("{other:?}"),
            });
            rest = &rest[len..];
        }
        if taken != Taken::More {
            return (all, taken);
        }
    }
}

#[test]
fn what_one_sends_the_other_receives_and_is_woken_once() {
    let (mut hub, now) = (hub(), Instant::now());
    let (a, b) = (enter(&mut hub, 1, 1, now), enter(&mut hub, 2, 2, now));
    let mut wake = Vec::new();
    for _ in 0..3 {
        let forwarded = hub.forward(a, &key(2), received(1, 1300), now, &mut wake);
        assert_eq!(lost(forwarded), 0);
    }
    assert_eq!(wake, [2]);
    assert_eq!(told(&mut hub, b).0, [("received", key(1)); 3]);
    assert_eq!(told(&mut hub, b), (vec![], Taken::Nothing));
    assert_eq!(hub.n_bytes(), 0);
}

#[test]
fn a_missing_receiver_is_told_and_not_without_end() {
    let (mut hub, now) = (hub(), Instant::now());
    let a = enter(&mut hub, 1, 1, now);
    let mut n_told = 0;
    for _ in 0..1000 {
        let mut wake = Vec::new();
        let forwarded = hub.forward(a, &key(9), received(1, 1300), now, &mut wake);
        assert_eq!(forwarded, Forwarded::NotHere);
        n_told += told(&mut hub, a).0.len();
    }
    assert_eq!(n_told, N_GONE_MAX);
    let later = now + Duration::from_secs(1);
    hub.forward(a, &key(9), received(1, 1300), later, &mut Vec::new());
    assert_eq!(told(&mut hub, a).0, [("gone", key(9))]);
}

#[test]
fn who_sent_to_a_node_hears_of_its_end() {
    let (mut hub, now) = (hub(), Instant::now());
    let (a, b, c) = (
        enter(&mut hub, 1, 1, now),
        enter(&mut hub, 2, 2, now),
        enter(&mut hub, 3, 3, now),
    );
    hub.forward(a, &key(2), received(1, 100), now, &mut Vec::new());
    let mut wake = Vec::new();
    hub.leave(b, &mut wake);
    assert_eq!(wake, [1]);
    assert_eq!(told(&mut hub, a).0, [("gone", key(2))]);
    assert_eq!(told(&mut hub, c).0, []);
    assert_eq!(hub.n_bytes(), 0);
    assert_eq!(
        hub.take(b, 1 << 20, &mut Vec::new()),
        Taken::End(End::Superseded)
    );
}

#[test]
fn the_newest_connection_of_a_key_receives_and_an_older_one_takes_over() {
    let (mut hub, now) = (hub(), Instant::now());
    let a = enter(&mut hub, 1, 1, now);
    let (old, new) = (enter(&mut hub, 2, 2, now), enter(&mut hub, 2, 3, now));
    assert_eq!(told(&mut hub, old).0, [("duplicate", key(0))]);
    hub.forward(a, &key(2), received(1, 100), now, &mut Vec::new());
    assert_eq!(told(&mut hub, old).0, []);
    assert_eq!(told(&mut hub, new).0, [("received", key(1))]);
    assert_eq!(hub.waker(&key(2)), Some(&3));
    hub.leave(new, &mut Vec::new());
    assert_eq!(hub.waker(&key(2)), Some(&2));
    assert_eq!(told(&mut hub, old).0, [("well", key(0))]);
    hub.forward(a, &key(2), received(1, 100), now, &mut Vec::new());
    assert_eq!(told(&mut hub, old).0, [("received", key(1))]);
    assert_eq!(told(&mut hub, a).0, []);
}

#[test]
fn too_many_connections_of_one_key_end_the_oldest() {
    let (mut hub, now) = (hub(), Instant::now());
    let first = enter(&mut hub, 1, 1, now);
    for waker in 2..=N_SAME_MAX as u32 {
        enter(&mut hub, 1, waker, now);
    }
    let mut wake = Vec::new();
    hub.enter(key(1), 99, now, &mut wake).unwrap();
    assert!(wake.contains(&1));
    assert_eq!(told(&mut hub, first).1, Taken::End(End::Superseded));
}

#[test]
fn a_full_relay_takes_nobody_in() {
    let (mut hub, now) = (Hub::new(1, 0), Instant::now());
    let a = enter(&mut hub, 1, 1, now);
    assert_eq!(hub.enter(key(2), 2, now, &mut Vec::new()), None);
    hub.leave(a, &mut Vec::new());
    assert!(hub.enter(key(2), 2, now, &mut Vec::new()).is_some());
}

#[test]
fn who_is_no_member_any_more_is_told_and_ended() {
    let (mut hub, now) = (hub(), Instant::now());
    let (a, b) = (enter(&mut hub, 1, 1, now), enter(&mut hub, 2, 2, now));
    let mut wake = Vec::new();
    hub.retain(|node| *node == key(1), &mut wake);
    assert!(wake.iter().all(|waker| *waker == 2) && !wake.is_empty());
    assert_eq!(
        told(&mut hub, b),
        (vec![("removed", key(0))], Taken::End(End::Removed))
    );
    assert_eq!(told(&mut hub, a), (vec![], Taken::Nothing));
}

#[test]
fn small_packets_pass_bulk_and_survive_it() {
    let (mut hub, now) = (hub(), Instant::now());
    let (a, b) = (enter(&mut hub, 1, 1, now), enter(&mut hub, 2, 2, now));
    let mut n_lost = 0;
    for n in 0..5_000 {
        n_lost += lost(hub.forward(a, &key(2), received(1, 1300), now, &mut Vec::new()));
        if n % 10 == 0 {
            let ping = hub.forward(a, &key(2), received(1, 128), now, &mut Vec::new());
            assert_eq!(lost(ping), 0);
        }
    }
    assert!(n_lost > 4_000, "{n_lost}");
    let mut out = Vec::new();
    hub.take(b, 200_000, &mut out);
    let n_small = out.iter().filter(|frame| frame.len() < 256).count();
    assert_eq!(n_small, 500);
    assert!(out.iter().any(|frame| frame.len() > 1300), "bulk goes too");
    assert!(out[..500].iter().all(|frame| frame.len() < 256));
}

#[test]
fn a_sender_waits_for_a_receiver_that_takes_and_not_for_one_that_does_not() {
    let (mut hub, now) = (hub(), Instant::now());
    let (a, b) = (enter(&mut hub, 1, 1, now), enter(&mut hub, 2, 2, now));
    let n_waits = |hub: &mut TestHub| {
        (0..1_000)
            .filter(|_| {
                let forwarded = hub.forward(a, &key(2), received(1, 1300), now, &mut Vec::new());
                matches!(
                    forwarded,
                    Forwarded::Queued {
                        is_filling: true,
                        ..
                    }
                )
            })
            .count()
    };
    assert_eq!(n_waits(&mut hub), PATIENCE as usize);
    assert_eq!(n_waits(&mut hub), 0);
    hub.take(b, 10_000, &mut Vec::new());
    assert_eq!(n_waits(&mut hub), PATIENCE as usize);
}

#[test]
fn pings_are_answered_and_a_flood_of_them_costs_nothing() {
    let (mut hub, now) = (hub(), Instant::now());
    let a = enter(&mut hub, 1, 1, now);
    for _ in 0..1000 {
        hub.on_ping(a, [7; 8], &mut Vec::new());
    }
    assert_eq!(told(&mut hub, a).0, [("pong", key(0)); N_PONGS_MAX]);
    hub.on_ping(a, [7; 8], &mut Vec::new());
    assert_eq!(told(&mut hub, a).0, [("pong", key(0))]);
}

#[test]
fn who_sends_more_than_it_may_is_paused_and_told() {
    let now = Instant::now();
    let mut hub = Hub::new(10, 1_000_000);
    let a = enter(&mut hub, 1, 1, now);
    assert_eq!(hub.on_read(a, 200_000, now, &mut Vec::new()), None);
    let pause = hub.on_read(a, 200_000, now, &mut Vec::new()).unwrap();
    assert!(pause > Duration::from_millis(100), "{pause:?}");
    assert_eq!(told(&mut hub, a).0, [("limited", key(0))]);
    // One that never takes its words does not gather them without end.
    for _ in 0..10_000 {
        hub.on_read(a, 200_000, now, &mut Vec::new());
    }
    let mut out = Vec::new();
    hub.take(a, 1, &mut out);
    assert!(out[0].len() <= CONTROL_LEN_MAX + 64);
}

proptest! {
    /// A node that reads nothing holds no more than its bounds, whoever sends, and harms no other.
    #[test]
    fn a_slow_reader_is_bounded_and_harms_nobody(
        sends in proptest::collection::vec((0_u8..8, 20_usize..30_000), 1..400),
    ) {
        let (mut hub, now) = (hub(), Instant::now());
        let senders: Vec<ClientId> = (0..8).map(|n| enter(&mut hub, n, u32::from(n), now)).collect();
        let slow = enter(&mut hub, 100, 100, now);
        let fast = enter(&mut hub, 101, 101, now);
        for (sender, len) in sends {
            let from = senders[usize::from(sender)];
            let frame = received(sender, len);
            hub.forward(from, &key(100), frame.clone(), now, &mut Vec::new());
            let forwarded = hub.forward(from, &key(101), frame.clone(), now, &mut Vec::new());
            prop_assert_eq!(lost(forwarded), 0);
            let mut out = Vec::new();
            hub.take(fast, 1 << 20, &mut out);
            prop_assert_eq!(out, vec![frame.bytes]);
            prop_assert!(hub.n_bytes() <= BULK.n_bytes + URGENT.n_bytes);
        }
        hub.leave(slow, &mut Vec::new());
        prop_assert_eq!(hub.n_bytes(), 0);
    }
}
