//! Paths: candidates, selection, roaming, and the reflexive address.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_engine::{Destination, Event, Update};
use mesh_proto::stun::{binding_success, parse_request};

use crate::session::one_user;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_handshake_to_many_wrong_candidates_finds_the_right_one() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    let right = world.nodes[1].endpoints[0];
    let mut told: Vec<SocketAddr> = (100..110u8)
        .map(|n| SocketAddr::new([203, 0, 113, n].into(), 7))
        .collect();
    told.insert(6, right);
    world.nodes[1].told_endpoints = Some(told);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1);
    assert_eq!(world.endpoint(0, 1), Some(right));
    let n_initiations = world
        .trace
        .iter()
        .filter(|line| line.ends_with(" 1 148"))
        .count();
    assert_eq!(n_initiations, 8);
    let told = Event::PathChanged {
        node: world.nodes[1].id,
        path: Destination::Udp(right),
    };
    assert!(world.has_event(0, |event| *event == told));
}

#[test]
fn follows_a_peer_that_moves() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    let moved = at("203.0.113.77:4444");
    world.nodes[1].endpoints = vec![moved];
    world.send(1, &world.udp(1, 0, (2, 1), b"I am here now"));
    world.run(SECOND / 10);
    assert_eq!(world.endpoint(0, 1), Some(moved));
    let told = Event::PathChanged {
        node: world.nodes[1].id,
        path: Destination::Udp(moved),
    };
    assert!(world.has_event(0, |event| *event == told));
    world.send(0, &world.udp(0, 1, (1, 2), b"welcome"));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(1), 2);
}

#[test]
fn a_path_that_falls_silent_gives_way_to_another_candidate() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    for (idx, host) in [(0, 4), (1, 5)] {
        let lan = SocketAddr::new([192, 168, 7, host].into(), 41);
        world.nodes[idx].endpoints.insert(0, lan);
    }
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    assert_eq!(
        world.endpoint(0, 1),
        Some(at("192.168.7.5:41")),
        "the LAN is preferred"
    );
    world.net.dead.insert("192.168.7.5".parse().unwrap());
    for _ in 0..20 {
        world.send(0, &world.udp(0, 1, (1, 2), b"anyone?"));
        world.run(SECOND);
    }
    assert_eq!(world.endpoint(0, 1), Some(at("203.0.113.2:1002")));
    assert!(world.n_received(1) > 4);
}

#[test]
fn a_lan_path_is_kept_while_it_lives() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    for (idx, host) in [(0, 4), (1, 5)] {
        let lan = SocketAddr::new([192, 168, 7, host].into(), 41);
        world.nodes[idx].endpoints.insert(0, lan);
    }
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    world.control(0, Update::Rebind);
    world.run(SECOND);
    assert_eq!(world.endpoint(0, 1), Some(at("192.168.7.5:41")));
    assert_eq!(world.endpoint(1, 0), Some(at("192.168.7.4:41")));
}

#[test]
fn a_rebind_proves_paths_at_once() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    let moved = at("203.0.113.88:4444");
    world.nodes[0].endpoints = vec![moved];
    world.control(0, Update::LocalEndpoints(vec![moved]));
    world.control(0, Update::Rebind);
    world.run(SECOND / 10);
    assert_eq!(world.endpoint(1, 0), Some(moved));
    world.send(1, &world.udp(1, 0, (2, 1), b"there"));
    world.run(SECOND / 10);
    assert_eq!(world.n_received(0), 1);
}

#[test]
fn replayed_or_forged_datagrams_move_no_path() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    // Catches what node 0 sends, as someone on the path can.
    let mut caught = vec![];
    for _ in 0..20 {
        world.run(SECOND / 200);
        while let Some(datagram) = world.net.receive(Duration::MAX) {
            caught.push(datagram.clone());
            let owner = world
                .nodes
                .iter()
                .position(|node| node.endpoints.contains(&datagram.dst));
            world.receive(owner.unwrap(), datagram.from, &datagram.bytes);
        }
    }
    assert!(world.n_received(1) == 1 && caught.len() >= 4);
    let right = world.nodes[0].endpoints[0];
    let evil = at("198.51.100.66:6");
    for datagram in &caught {
        let to = usize::from(datagram.dst == world.nodes[1].endpoints[0]);
        world.receive(to, evil, &datagram.bytes);
        let mut forged = datagram.bytes.clone();
        *forged.last_mut().unwrap() ^= 1;
        world.receive(to, evil, &forged);
    }
    assert_eq!(world.endpoint(1, 0), Some(right));
    assert_eq!(world.endpoint(0, 1), Some(world.nodes[1].endpoints[0]));
    assert_eq!(world.n_received(1), 1);
}

#[test]
fn the_reflexive_address_is_asked_for_told_and_kept_fresh() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    let server = at("203.0.113.250:3478");
    world.network.stun = vec![server];
    world.tell_all();
    let answer = |world: &mut World, seen: &str| {
        let mut n_requests = 0;
        world.run(Duration::from_millis(1));
        while let Some(datagram) = world.net.receive(Duration::MAX) {
            if datagram.dst == server && datagram.from == world.nodes[0].endpoints[0] {
                n_requests += 1;
                let id = parse_request(&datagram.bytes).unwrap();
                world.receive(
                    0,
                    at("198.51.100.9:3478"),
                    &binding_success(&id, at("6.6.6.6:6")),
                );
                world.receive(0, server, &binding_success(&id, at(seen)));
            }
        }
        n_requests
    };
    assert_eq!(answer(&mut world, "198.51.100.1:99"), 1);
    let seen = |text| Event::ReflexiveEndpoint(at(text));
    let reflexive = |world: &World| {
        let events = world.nodes[0].events.iter().cloned();
        events
            .filter(|event| matches!(event, Event::ReflexiveEndpoint(_)))
            .collect::<Vec<_>>()
    };
    assert_eq!(reflexive(&world), [seen("198.51.100.1:99")]);
    world.run(119 * SECOND);
    assert_eq!(
        answer(&mut world, "198.51.100.1:99"),
        0,
        "idle: every two minutes"
    );
    world.run(SECOND);
    assert_eq!(answer(&mut world, "198.51.100.1:99"), 1);
    assert_eq!(reflexive(&world).len(), 1, "no news, no event");
    world.control(0, Update::Rebind);
    assert_eq!(answer(&mut world, "198.51.100.1:100"), 1);
    assert_eq!(reflexive(&world)[1..], [seen("198.51.100.1:100")]);
}

#[test]
fn what_tcp_sent_into_an_outage_is_sent_again_when_it_ends() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    let moved = at("203.0.113.77:4444");
    let (lost, first) = (
        world.nodes[1].endpoints[0],
        world.tcp6(0, 1, (1, 2), b"first"),
    );
    world.send(0, &first);
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1);
    world.net.dead.insert(lost.ip());
    // As TCP does: at once, and then ever later.
    let datagram = world.udp(0, 1, (1, 2), b"gone is gone");
    for pause_ms in [200, 400, 800, 1600] {
        world.send(0, &first);
        world.send(0, &datagram);
        world.run(Duration::from_millis(pause_ms));
    }
    assert_eq!(world.n_received(1), 1, "it is not cut off");
    world.nodes[1].endpoints = vec![moved];
    world.control(1, Update::LocalEndpoints(vec![moved]));
    world.control(1, Update::Rebind);
    world.run(SECOND / 5);
    let n_again = world.n_received(1) - 1;
    assert!((1..=8).contains(&n_again), "{n_again} came again");
    assert!(
        world.nodes[1]
            .received
            .iter()
            .all(|packet| *packet == first),
        "something else than TCP came again"
    );
    world.send(1, &world.udp(1, 0, (2, 1), b"heard"));
    world.run(SECOND);
    let n_received = world.n_received(1);
    world.run(5 * SECOND);
    assert_eq!(world.n_received(1), n_received, "it comes for ever");
}
