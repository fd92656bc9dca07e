//! The netmap: who comes, changes and goes.

use std::sync::Arc;
use std::time::Duration;

use mesh_engine::{DropReason, Event, Outbound, Update};

use crate::session::one_user;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn connected() -> World {
    let mut world = World::new(3, 1);
    one_user(&mut world);
    world.tell_all();
    for to in [1, 2] {
        world.send(0, &world.udp(0, to, (1, 2), b"hello"));
    }
    world.run(SECOND);
    assert_eq!((world.n_received(1), world.n_received(2)), (1, 1));
    world
}

#[test]
fn a_removed_peer_is_gone_at_once_and_others_stay() {
    let mut world = connected();
    let gone = world.nodes[1].id;
    let mut netmap = world.netmap_of(0);
    netmap.peers.remove(&gone);
    world.set_netmap(0, netmap);
    assert!(world.has_event(0, |event| *event == Event::PeerDown { node: gone }));
    let refused = world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    assert!(matches!(refused, Some(Outbound::Drop(DropReason::NoRoute))));
    // What it still sends goes nowhere, its handshakes included.
    world.send(1, &world.udp(1, 0, (1, 2), b"hello"));
    world.run(20 * SECOND);
    assert_eq!(world.n_received(0), 0);
    world.send(0, &world.udp(0, 2, (1, 2), b"still"));
    world.run(SECOND);
    assert_eq!(world.n_received(2), 2);
}

#[test]
fn an_expired_peer_drops_by_this_nodes_own_clock() {
    let mut world = connected();
    let id = world.nodes[1].id;
    let mut netmap = world.netmap_of(0);
    let at_ms = world.unix_ms + 60_000;
    netmap.peers.get_mut(&id).unwrap().expires_at_ms = Some(at_ms);
    world.set_netmap(0, netmap.clone());
    world.run(50 * SECOND);
    assert!(world.endpoint(0, 1).is_some());
    world.run(10 * SECOND);
    assert!(world.has_event(0, |event| *event == Event::PeerDown { node: id }));
    assert_eq!(world.nodes[0].engine.peer_stats(world.instant()).len(), 1);
    world.set_netmap(0, netmap.clone());
    assert_eq!(world.nodes[0].engine.peer_stats(world.instant()).len(), 1);
    netmap.peers.get_mut(&id).unwrap().expires_at_ms = None;
    world.set_netmap(0, netmap);
    assert_eq!(world.nodes[0].engine.peer_stats(world.instant()).len(), 2);
}

#[test]
fn a_clock_that_is_set_right_brings_peers_back() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    let mut netmap = world.netmap_of(0);
    let id = world.nodes[1].id;
    netmap.peers.get_mut(&id).unwrap().expires_at_ms = Some(world.unix_ms);
    let netmap = Arc::new(netmap);
    for (unix_ms, n_peers) in [
        (world.unix_ms, 0),
        (world.unix_ms - 1000, 1),
        (world.unix_ms, 0),
    ] {
        let netmap = Arc::clone(&netmap);
        world.control(0, Update::Netmap { netmap, unix_ms });
        assert_eq!(
            world.nodes[0].engine.peer_stats(world.instant()).len(),
            n_peers
        );
    }
}

#[test]
fn a_map_that_says_the_same_changes_nothing() {
    let mut world = connected();
    let n_traced = world.trace.len();
    for idx in 0..3 {
        world.set_netmap(idx, world.netmap_of(idx));
    }
    assert_eq!(world.trace.len(), n_traced);
    world.send(0, &world.udp(0, 1, (1, 2), b"still"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 2);
    assert!(world.trace.iter().all(|line| !line.contains("Down")));
}

#[test]
fn new_endpoints_of_a_peer_are_tried_at_once() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.nodes[1].told_endpoints = Some(vec![]);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(20 * SECOND);
    assert_eq!(world.trace, [] as [String; 0]);
    world.nodes[1].told_endpoints = None;
    world.set_netmap(0, world.netmap_of(0));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(1), 1);
}

#[test]
fn a_node_that_left_its_mesh_knows_nobody() {
    let mut world = connected();
    world.control(0, Update::Clear);
    assert_eq!(world.nodes[0].engine.peer_stats(world.instant()), []);
    assert_eq!(world.nodes[0].engine.poll_timeout(), None);
    let refused = world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    assert!(matches!(refused, Some(Outbound::Drop(DropReason::NoRoute))));
    world.set_netmap(0, world.netmap_of(0));
    world.send(0, &world.udp(0, 1, (1, 2), b"back"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 2);
}
