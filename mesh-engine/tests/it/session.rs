//! Sessions: they begin, carry data, renew, and go.

use std::time::Duration;

use mesh_engine::{Destination, Event, Update};
use mesh_proto::id::UserId;
use mesh_proto::key::NodePrivateKey;

use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes of one user, so that the filter lets all through.
pub(crate) fn pair(seed: u64) -> World {
    let mut world = World::new(2, seed);
    one_user(&mut world);
    world.tell_all();
    world
}

pub(crate) fn one_user(world: &mut World) {
    for node in &mut world.nodes {
        node.user = UserId(1);
        node.filter = crate::world::default_filter(UserId(1));
    }
}

#[test]
fn connects_at_the_first_packet_and_loses_none() {
    let mut world = pair(1);
    assert_eq!(
        world.nodes[0].engine.poll_timeout(),
        None,
        "idle costs nothing"
    );
    let packets: Vec<_> = (0..5u8)
        .map(|n| world.udp(0, 1, (5000, 6000), &[n; 100]))
        .collect();
    for packet in &packets {
        assert!(world.send(0, packet).is_none());
    }
    world.run(SECOND / 10);
    assert_eq!(world.nodes[1].received, packets);
    let answer = world.udp(1, 0, (6000, 5000), b"yes");
    world.send(1, &answer);
    world.run(SECOND / 10);
    assert_eq!(world.nodes[0].received, [answer]);
    let [a, b] = [world.nodes[0].id, world.nodes[1].id];
    assert!(world.has_event(0, |event| *event == Event::PeerUp { node: b }));
    assert!(world.has_event(1, |event| *event == Event::PeerUp { node: a }));
}

#[test]
fn the_responder_gets_through_even_when_the_plane_stays_silent() {
    let mut world = pair(1);
    world.nodes[1].is_plane_mute = true;
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    world.send(1, &world.udp(1, 0, (2, 1), b"back"));
    world.run(SECOND);
    assert_eq!(world.n_received(0), 1);
    let a = world.nodes[0].id;
    assert!(world.has_event(1, |event| *event == Event::PeerUp { node: a }));
}

#[test]
fn both_may_begin_at_once() {
    let mut world = pair(1);
    for n in 0..20u8 {
        let (there, back) = (world.udp(0, 1, (1, 2), &[n]), world.udp(1, 0, (2, 1), &[n]));
        world.send(0, &there);
        world.send(1, &back);
        world.run(SECOND / 100);
    }
    world.run(SECOND);
    assert_eq!((world.n_received(0), world.n_received(1)), (20, 20));
}

#[test]
fn gets_through_forty_percent_loss_within_half_a_minute() {
    let mut n_connected = 0;
    for seed in 0..100 {
        let mut world = pair(seed);
        world.net.loss_percent = 40;
        world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
        let b = world.nodes[1].id;
        world.run(30 * SECOND);
        n_connected += u32::from(world.has_event(0, |event| *event == Event::PeerUp { node: b }));
    }
    assert!(n_connected >= 97, "{n_connected}");
}

#[test]
fn duplicates_are_not_delivered_and_reordering_costs_nothing() {
    let mut world = pair(5);
    world.send(0, &world.udp(0, 1, (1, 2), b"first"));
    world.run(SECOND);
    world.net.dup_percent = 100;
    world.net.delay_spread_ms = 50;
    for n in 0..500u16 {
        world.send(0, &world.udp(0, 1, (1, 2), &n.to_be_bytes()));
        world.run(SECOND / 1000);
    }
    world.run(SECOND);
    assert_eq!(world.n_received(1), 501);
    let mut found = world.nodes[1].received.clone();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 501);
}

#[test]
fn a_handshake_without_answer_is_given_up_and_begins_anew_with_traffic() {
    let mut world = pair(1);
    world.net.dead.insert(world.nodes[1].endpoints[0].ip());
    world.send(0, &world.udp(0, 1, (1, 2), b"lost"));
    world.run(100 * SECOND);
    let n_tries = world.trace.len();
    assert!((18..25).contains(&n_tries), "{n_tries}");
    world.run(600 * SECOND);
    assert_eq!(world.trace.len(), n_tries, "idle until there is traffic");
    world.net.dead.clear();
    world.send(0, &world.udp(0, 1, (1, 2), b"again"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1, "what waited too long is not sent");
}

#[test]
fn keys_are_renewed_by_the_initiator_while_data_flows() {
    let mut world = pair(1);
    for _ in 0..400 {
        world.send(0, &world.udp(0, 1, (1, 2), b"tick"));
        world.run(SECOND);
    }
    let initiations = world.trace.iter().filter(|line| line.ends_with(" 1 148"));
    assert_eq!(initiations.count(), 4, "at 0, 120, 240 and 360 s");
    assert_eq!(world.n_received(1), 400);
    let is_down = |event: &Event| matches!(event, Event::PeerDown { .. });
    assert!(!world.has_event(0, is_down) && !world.has_event(1, is_down));
}

#[test]
fn one_way_traffic_is_answered_by_keepalives_and_not_by_handshakes() {
    let mut world = pair(1);
    for _ in 0..100 {
        world.send(0, &world.udp(0, 1, (1, 2), b"tick"));
        world.run(SECOND);
    }
    let count = |suffix: &str| {
        world
            .trace
            .iter()
            .filter(|line| line.ends_with(suffix))
            .count()
    };
    assert_eq!(count(" 1 148"), 1);
    let n_keepalives = world
        .trace
        .iter()
        .filter(|line| line.contains(" 1 -> ") && line.ends_with(" 4 32"))
        .count();
    assert!((8..=11).contains(&n_keepalives), "{n_keepalives}");
}

#[test]
fn an_idle_session_is_let_go_on_both_ends() {
    let mut world = pair(1);
    world.send(0, &world.udp(0, 1, (1, 2), b"once"));
    world.run(1000 * SECOND);
    for idx in 0..2 {
        assert!(world.has_event(idx, |event| matches!(event, Event::PeerDown { .. })));
        assert_eq!(world.nodes[idx].engine.poll_timeout(), None);
        let stats = world.nodes[idx].engine.peer_stats(world.instant());
        assert!(!stats[0].is_up && stats[0].last_handshake_age.is_none());
    }
    world.send(1, &world.udp(1, 0, (1, 2), b"again"));
    world.run(SECOND);
    assert_eq!(world.n_received(0), 1);
}

#[test]
fn a_peer_that_restarted_is_found_again() {
    let mut world = pair(1);
    world.send(0, &world.udp(0, 1, (1, 2), b"before"));
    world.run(SECOND);
    let key = world.nodes[1].node_key.clone();
    world.control(1, Update::NodeKey(key));
    world.send(0, &world.udp(0, 1, (1, 2), b"lost"));
    world.run(SECOND / 10);
    world.send(0, &world.udp(0, 1, (1, 2), b"after"));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(1), 2);
    // From an endpoint that the map does not know, the silence has to be noticed first.
    world.nodes[0].told_endpoints = Some(vec![]);
    world.set_netmap(1, world.netmap_of(1));
    let key = world.nodes[1].node_key.clone();
    world.control(1, Update::NodeKey(key));
    for _ in 0..20 {
        world.send(0, &world.udp(0, 1, (1, 2), b"after"));
        world.run(SECOND);
    }
    let n_received = world.n_received(1);
    assert!((6..9).contains(&n_received), "{n_received}");
    // Its own traffic brings it back at once.
    let key = world.nodes[1].node_key.clone();
    world.control(1, Update::NodeKey(key));
    world.send(1, &world.udp(1, 0, (1, 2), b"back"));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(0), 1);
}

#[test]
fn a_rotated_node_key_gets_a_fresh_session() {
    let mut world = pair(1);
    world.send(0, &world.udp(0, 1, (1, 2), b"before"));
    world.run(SECOND);
    let key = NodePrivateKey::from_bytes([77; 32]);
    world.nodes[1].node_key = key.clone();
    world.control(1, Update::NodeKey(key));
    world.set_netmap(0, world.netmap_of(0));
    assert!(world.has_event(0, |event| matches!(event, Event::PeerDown { .. })));
    world.send(0, &world.udp(0, 1, (1, 2), b"after"));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(1), 2);
}

#[test]
fn a_ping_is_answered_through_the_tunnel() {
    let mut world = World::new(2, 1);
    world.tell_all();
    let (now, b) = (world.instant(), world.nodes[1].id);
    let token = world.nodes[0].engine.ping(now, &b).unwrap();
    world.drain(0);
    world.run(SECOND);
    let path = Some(Destination::Udp(world.nodes[1].endpoints[0]));
    let rtt = Duration::from_millis(40);
    let pong = Event::Pong {
        node: b,
        token,
        rtt,
        path,
        path_mtu: Some(1200),
    };
    assert!(
        world.has_event(0, |event| *event == pong),
        "{:?}",
        world.nodes[0].events
    );
    assert_eq!(world.n_received(0), 0, "the answer is the engine's alone");
    // With a session it takes one round trip.
    let now = world.instant();
    let token = world.nodes[0].engine.ping(now, &b).unwrap();
    world.drain(0);
    world.run(SECOND);
    let rtt = Duration::from_millis(20);
    let pong = Event::Pong {
        node: b,
        token,
        rtt,
        path,
        path_mtu: Some(1200),
    };
    assert!(world.has_event(0, |event| *event == pong));
    let a = world.nodes[0].id;
    assert_eq!(world.nodes[0].engine.ping(now, &a), None);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut world = pair(seed);
        world.net.loss_percent = 20;
        world.net.delay_spread_ms = 30;
        for n in 0..60u8 {
            world.send(0, &world.udp(0, 1, (1, 2), &[n]));
            world.send(1, &world.udp(1, 0, (1, 2), &[n]));
            world.run(SECOND);
        }
        world.trace
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
