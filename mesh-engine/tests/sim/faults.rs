//! What goes wrong one thing at a time, with the time that each may take.

use std::time::Duration;

use mesh_engine::Destination;

use crate::lab::{Lab, ipv4, ipv6};
use crate::matrix::{Site, watch};
use crate::random::Random;
use crate::underlay::{INTERNET, Weather};

const DELAY: Duration = Duration::from_millis(10);
const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// Two nodes behind home routers with one relay, connected directly.
fn connected() -> (Lab, usize, usize) {
    let mut lab = Lab::new(3);
    lab.add_relay(DELAY);
    let a = Site::PortRestricted.add(&mut lab, 1, DELAY);
    let b = Site::PortRestricted.add(&mut lab, 2, DELAY);
    lab.begin();
    lab.run(SECOND * 2);
    let (_, direct) = watch(&mut lab, a, b, SECOND * 5);
    assert!(direct.is_some());
    lab.run(SECOND);
    (lab, a, b)
}

/// Sends each 50 ms for a while and returns the longest time in which nothing came back.
fn longest_gap(lab: &mut Lab, a: usize, b: usize, span: Duration, first: u64) -> Duration {
    let began = lab.now;
    let mut number = first;
    while lab.now < began + span {
        lab.send(a, b, number);
        number += 1;
        lab.run(TENTH / 2);
    }
    let mut last = began;
    let mut longest = Duration::ZERO;
    // The echo comes back with the number that went out.
    let echoes = lab.nodes[a]
        .received
        .iter()
        .filter(|(at, got)| *at > began && *got >= first);
    for (at, _) in echoes {
        longest = longest.max(*at - last);
        last = *at;
    }
    longest.max(began + span - last)
}

#[test]
fn a_dead_direct_path_gives_way_to_the_relay_and_comes_back() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND * 2, 1);
    lab.cut.insert((a, b));
    let gap = longest_gap(&mut lab, a, b, SECOND * 6, 10_000);
    assert!(gap <= Duration::from_millis(1600), "no traffic for {gap:?}");
    assert!(!lab.is_direct(a, b));
    lab.cut.clear();
    let healed = lab.now;
    while !lab.is_direct(a, b) && lab.now < healed + SECOND * 5 {
        lab.send(a, b, 50_000);
        lab.run(TENTH / 2);
    }
    assert!(
        lab.now - healed <= SECOND,
        "direct after {:?}",
        lab.now - healed
    );
    let gap = longest_gap(&mut lab, a, b, SECOND * 3, 60_000);
    assert!(
        gap <= TENTH * 2,
        "it stalled for {gap:?} though nothing was wrong"
    );
}

#[test]
fn a_relay_that_dies_costs_direct_paths_nothing() {
    let (mut lab, a, b) = connected();
    lab.set_relay(0, false);
    let gap = longest_gap(&mut lab, a, b, SECOND * 3, 1);
    assert!(gap <= TENTH * 2, "it stalled for {gap:?}");
    lab.set_relay(0, true);
    let gap = longest_gap(&mut lab, a, b, SECOND * 3, 10_000);
    assert!(gap <= TENTH * 2, "it stalled for {gap:?}");
}

#[test]
fn a_relay_that_is_started_again_carries_data_within_five_seconds() {
    let mut lab = Lab::new(3);
    lab.add_relay(DELAY);
    let a = Site::Symmetric.add(&mut lab, 1, DELAY);
    let b = Site::Symmetric.add(&mut lab, 2, DELAY);
    lab.begin();
    lab.run(SECOND * 2);
    longest_gap(&mut lab, a, b, SECOND * 2, 1);
    lab.set_relay(0, false);
    lab.run(SECOND * 2);
    lab.set_relay(0, true);
    let gap = longest_gap(&mut lab, a, b, SECOND * 6, 10_000);
    assert!(gap <= SECOND * 5, "no traffic for {gap:?}");
}

#[test]
fn when_the_home_relay_is_gone_another_takes_over() {
    let mut lab = Lab::new(3);
    lab.add_relay(DELAY);
    lab.add_relay(DELAY * 4);
    let a = Site::Symmetric.add(&mut lab, 1, DELAY);
    let b = Site::Symmetric.add(&mut lab, 2, DELAY);
    lab.begin();
    lab.run(SECOND * 2);
    longest_gap(&mut lab, a, b, SECOND * 2, 1);
    let near = lab.relays[0].entry.id;
    assert_eq!(lab.path(a, b).and_then(|path| path.relay()), Some(near));
    lab.set_relay(0, false);
    let gap = longest_gap(&mut lab, a, b, SECOND * 10, 10_000);
    assert!(gap <= SECOND * 5, "no traffic for {gap:?}");
    let far = lab.relays[1].entry.id;
    assert_eq!(lab.path(a, b).and_then(|path| path.relay()), Some(far));
}

#[test]
fn a_node_that_moves_is_followed_within_a_second() {
    for mover in [0, 1] {
        let (mut lab, a, b) = connected();
        longest_gap(&mut lab, a, b, SECOND * 2, 1);
        let outer = ipv4(203, 0, 77, 1);
        let realm = lab
            .underlay
            .add_realm(INTERNET, outer, crate::nat::Behaviour::PORT_RESTRICTED);
        lab.move_node([a, b][mover], realm, &[ipv4(192, 168, 77, 2)]);
        let moved = lab.now;
        let gap = longest_gap(&mut lab, a, b, SECOND * 4, 10_000);
        assert!(
            gap <= Duration::from_millis(1600),
            "mover {mover}: {gap:?} since {moved:?}"
        );
        assert!(lab.is_direct(a, b));
    }
}

#[test]
fn with_udp_blocked_the_relay_carries_all() {
    let mut lab = Lab::new(3);
    lab.add_relay(DELAY);
    let a = Site::Open.add(&mut lab, 1, DELAY);
    let b = Site::PortRestricted.add(&mut lab, 2, DELAY);
    lab.nodes[b].is_udp_blocked = true;
    lab.begin();
    lab.run(SECOND);
    lab.send(a, b, 1);
    lab.run(SECOND);
    assert!(lab.received_at(b, 1).is_some() && lab.received_at(a, 1).is_some());
    assert!(matches!(lab.path(a, b), Some(Destination::Relay { .. })));
    assert!(lab.relays[0].n_frames > 4);
}

#[test]
fn what_a_path_takes_is_found_out_and_a_black_hole_is_left() {
    let (mut lab, a, b) = connected();
    let mtu = |lab: &Lab| {
        let stats = lab.nodes[a].engine.peer_stats(lab.instant());
        stats.iter().find_map(|stats| stats.path_mtu)
    };
    longest_gap(&mut lab, a, b, SECOND * 2, 1);
    assert_eq!(mtu(&lab), Some(1440));
    for (n, link_mtu, found) in [
        (1, 1499, 1424),
        (2, 1280, 1216),
        (3, 1000, 768),
        (4, 1320, 1248),
    ] {
        lab.link_mtu = link_mtu;
        let gap = longest_gap(&mut lab, a, b, SECOND * 3, 10_000 * n);
        // What is short passes all the time, and the path is not left.
        assert!(gap <= TENTH * 2, "{link_mtu}: no traffic for {gap:?}");
        assert!(lab.is_direct(a, b), "{link_mtu}");
        let used = mtu(&lab).unwrap();
        assert!(usize::from(used) + 60 <= link_mtu, "{used} of {link_mtu}");
        // More is asked for within minutes.
        longest_gap(&mut lab, a, b, SECOND * 300, 10_000 * n + 5000);
        assert_eq!(mtu(&lab), Some(found), "of {link_mtu}");
    }
}

#[test]
fn ipv6_is_preferred_when_it_is_as_good() {
    let mut lab = Lab::new(3);
    lab.add_relay(DELAY);
    let a = lab.add_node(INTERNET, &[ipv4(203, 0, 1, 1), ipv6(1)], DELAY);
    let b = lab.add_node(INTERNET, &[ipv4(203, 0, 2, 1), ipv6(2)], DELAY);
    lab.begin();
    lab.run(SECOND);
    longest_gap(&mut lab, a, b, SECOND * 3, 1);
    let path = lab.path(a, b).unwrap().endpoint().unwrap();
    assert!(path.is_ipv6(), "{path}");
}

#[test]
fn an_idle_mesh_is_silent() {
    let (mut lab, a, b) = connected();
    lab.run(SECOND * 300);
    assert_eq!((lab.path(a, b), lab.path(b, a)), (None, None));
    let before = lab.n_datagrams;
    lab.run(SECOND * 600);
    let n_datagrams = lab.n_datagrams - before;
    // Two nodes ask two STUN endpoints every two minutes.
    assert!(
        n_datagrams <= 2 * 2 * 6,
        "{n_datagrams} datagrams in ten idle minutes"
    );
    lab.send(a, b, 77);
    let began = lab.now;
    lab.run(SECOND);
    assert!(lab.received_at(b, 77).is_some_and(|at| at - began < SECOND));
}

#[test]
fn a_quiet_session_keeps_its_direct_path() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND, 1);
    lab.run(SECOND * 100);
    assert!(lab.is_direct(a, b), "NATs forget after 30 s");
    lab.send(a, b, 77);
    let began = lab.now;
    lab.run(SECOND);
    assert!(lab.received_at(b, 77).is_some_and(|at| at - began < TENTH));
}

#[test]
fn a_restarted_peer_is_reached_again_at_once() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND, 1);
    lab.restart_node(b);
    let gap = longest_gap(&mut lab, a, b, SECOND * 4, 10_000);
    assert!(gap <= SECOND, "no traffic for {gap:?}");
}

#[test]
fn a_restarted_peer_loses_nothing_that_is_sent_later() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND, 1);
    lab.run(SECOND * 5);
    lab.restart_node(b);
    lab.run(SECOND);
    lab.send(a, b, 77);
    lab.run(TENTH);
    assert!(lab.received_at(b, 77).is_some());
}

#[test]
fn without_a_coordinator_restarted_nodes_find_each_other() {
    let (mut lab, a, b) = connected();
    lab.set_coordinator(false);
    lab.restart_node(a);
    lab.restart_node(b);
    let gap = longest_gap(&mut lab, a, b, SECOND * 4, 10_000);
    assert!(gap <= SECOND * 2, "no traffic for {gap:?}");
}

#[test]
fn without_a_coordinator_restarted_nodes_keep_their_direct_path() {
    let (mut lab, a, b) = connected();
    lab.set_coordinator(false);
    lab.restart_node(a);
    lab.restart_node(b);
    longest_gap(&mut lab, a, b, SECOND * 4, 10_000);
    // What was said last went unanswered, as the end of a conversation does.
    for _ in 0..200 {
        lab.run(TENTH);
        assert!(lab.is_direct(a, b) && lab.is_direct(b, a));
    }
}

#[test]
fn a_lossy_direct_path_is_not_left() {
    let (mut lab, a, b) = connected();
    for loss_percent in [5, 20] {
        lab.underlay.weather = Weather {
            loss_percent,
            ..Weather::FAIR
        };
        let (mut n_direct, mut n_looks) = (0, 0);
        for number in 0..400 {
            lab.send(a, b, number);
            lab.run(TENTH / 2);
            n_looks += 1;
            n_direct += u32::from(lab.is_direct(a, b));
        }
        assert!(
            n_direct * 100 >= n_looks * 97,
            "{loss_percent} % loss: {n_direct} of {n_looks}"
        );
    }
}

#[test]
fn a_suspended_node_is_back_within_two_seconds() {
    let (mut lab, a, b) = connected();
    lab.nodes[b].is_suspended = true;
    lab.run(SECOND * 600);
    lab.resume(b);
    let gap = longest_gap(&mut lab, a, b, SECOND * 4, 10_000);
    assert!(gap <= SECOND * 2, "no traffic for {gap:?}");
}

#[test]
fn a_router_that_forgets_its_mappings_costs_little() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND, 1);
    let nat = lab.underlay.nat_of(lab.nodes[b].realm).unwrap();
    lab.underlay.nats[nat].restart();
    let gap = longest_gap(&mut lab, a, b, SECOND * 5, 10_000);
    assert!(gap <= Duration::from_millis(1600), "no traffic for {gap:?}");
    assert!(lab.is_direct(a, b));
}

#[test]
fn forged_and_replayed_discovery_is_answered_by_nothing() {
    let (mut lab, a, b) = connected();
    longest_gap(&mut lab, a, b, SECOND, 1);
    let path = lab.path(a, b);
    let caught = lab.catch_disco(b, a);
    assert!(!caught.is_empty());
    lab.run(SECOND);
    let mut random = Random::new(5);
    let before = (lab.n_datagrams, lab.nodes[a].engine.n_held());
    let evil = std::net::SocketAddr::new(ipv4(198, 18, 6, 6), 6);
    for n in 0..20_000 {
        let mut bytes = caught[n % caught.len()].clone();
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        bytes[at] ^= 1 + u8::try_from(random.below(255)).unwrap();
        lab.inject(a, evil, &bytes);
    }
    assert_eq!(lab.n_datagrams, before.0, "not one datagram");
    assert!(lab.nodes[a].engine.n_held() <= before.1);
    // A replay is authentic: it gets an answer, and the path that it hints at proves nothing.
    for bytes in &caught {
        lab.inject(a, evil, bytes);
    }
    longest_gap(&mut lab, a, b, SECOND * 3, 5000);
    assert_eq!(lab.path(a, b), path);
}
