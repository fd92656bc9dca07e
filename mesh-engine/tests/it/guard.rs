//! Guards around the session layer, against peers and strangers who speak WireGuard by hand.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_engine::{DropReason, Inbound};
use mesh_proto::key::NodePrivateKey;

use crate::session::{one_user, pair};
use crate::wire::{self, Initiator, Keys, tai64n};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Half a century before the stamps of the engines.
const PAST_S: u64 = 200_000_000;
/// And as long after.
const FUTURE_S: u64 = 3_400_000_000;

/// The first counter that is not allowed (WireGuard paper, section 6.1).
const COUNTER_END: u64 = u64::MAX - (1 << 13);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn evil() -> SocketAddr {
    at("203.0.113.66:6")
}

/// Speaks to node 1 with the key of node 0.
fn as_node_0(world: &World) -> Initiator {
    Initiator::new(&world.nodes[0].node_key, &world.nodes[1].node_key.public())
}

/// Everything in flight, as node 1 sent it.
fn sent(world: &mut World) -> Vec<(SocketAddr, Vec<u8>)> {
    std::iter::from_fn(|| world.net.receive(Duration::MAX))
        .map(|datagram| (datagram.dst, datagram.bytes))
        .collect()
}

/// Agrees on keys with node 1 and confirms them.
fn shake(world: &mut World, from: SocketAddr, sender: u32, unix_s: u64) -> Keys {
    let pending = as_node_0(world).initiation(sender, tai64n(unix_s, 0));
    world.receive(1, from, &pending.message);
    let [(dst, response)] = &sent(world)[..] else {
        panic!("an initiation has one answer");
    };
    assert_eq!(*dst, from);
    let keys = pending.finish(response);
    world.receive(1, from, &keys.seal(0, &[]));
    keys
}

fn drops(world: &World, idx: usize, wanted: DropReason) -> u64 {
    let mut drops = world.nodes[idx].plane.drops();
    drops.find(|(reason, _)| *reason == wanted).unwrap().1
}

#[test]
fn a_counter_near_its_end_is_refused_and_breaks_nothing() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    let keys = shake(&mut world, from, 7, PAST_S);
    let packet = world.udp(0, 1, (1, 2), b"hello");
    for counter in [
        u64::MAX,
        u64::MAX - 1,
        u64::MAX - 1024,
        COUNTER_END + 1,
        COUNTER_END,
    ] {
        world.receive(1, from, &keys.seal(counter, &packet));
        assert_eq!(world.n_received(1), 0, "{counter}");
    }
    assert_eq!(drops(&world, 1, DropReason::NotAuthentic), 5);
    world.receive(1, from, &keys.seal(COUNTER_END - 1, &packet));
    assert_eq!(world.n_received(1), 1);
    for counter in [1, COUNTER_END - 1, COUNTER_END] {
        world.receive(1, from, &keys.seal(counter, &packet));
    }
    assert_eq!(world.n_received(1), 1);
}

#[test]
fn an_authentic_peer_may_seal_any_rubbish() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    let keys = shake(&mut world, from, 7, PAST_S);
    let good = world.udp(0, 1, (1, 2), &[7; 60]);
    let mut counter = 0;
    for len in (0..90).chain([1279, 1280, 9000, 65_475]) {
        for version in 0..=15 {
            let mut content = good.clone();
            content.resize(len, 0x45);
            if let Some(first) = content.first_mut() {
                *first = version << 4 | 5;
            }
            for total in [0, 1, 19, 20, 39, 40, 65_535] {
                let mut content = content.clone();
                if let Some(field) = content.get_mut(2..4) {
                    field.copy_from_slice(&u16::to_be_bytes(total));
                }
                counter += 1;
                world.receive(1, from, &keys.seal(counter, &content));
            }
        }
    }
    world.receive(1, from, &keys.seal(counter + 1, &good));
    assert_eq!(world.nodes[1].received.last(), Some(&good));
}

#[test]
fn any_authentic_datagram_moves_the_path_and_no_other_does() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    let keys = shake(&mut world, from, 7, PAST_S);
    assert_eq!(world.endpoint(1, 0), Some(from));
    let stranger = world.udp(1, 1, (1, 2), b"not from its address");
    let contents = [
        vec![],
        vec![0xff; 40],
        stranger,
        world.udp(0, 1, (1, 2), b"x"),
    ];
    let mut counter = 0;
    for (n, content) in (1..).zip(&contents) {
        counter += 1;
        let moved = SocketAddr::new([203, 0, 113, 100 + n].into(), 9);
        let datagram = keys.seal(counter, content);
        world.receive(1, moved, &datagram);
        assert_eq!(world.endpoint(1, 0), Some(moved), "{content:?}");
        // The same again is a replay.
        world.receive(1, evil(), &datagram);
        let mut forged = keys.seal(counter + 1, content);
        *forged.last_mut().unwrap() ^= 1;
        world.receive(1, evil(), &forged);
        assert_eq!(world.endpoint(1, 0), Some(moved), "{content:?}");
    }
    // An initiation is answered where it came from, but may be an old one: it moves nothing.
    let before = world.endpoint(1, 0);
    let pending = as_node_0(&world).initiation(8, tai64n(PAST_S, 5));
    world.receive(1, evil(), &pending.message);
    assert_eq!(world.endpoint(1, 0), before);
}

#[test]
fn a_cookie_moves_no_path_and_is_used_by_the_next_try() {
    let mut world = pair(1);
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    let [(_, first)] = &sent(&mut world)[..] else {
        panic!("one candidate, one initiation");
    };
    let (responder, cookie) = (world.nodes[1].node_key.public(), [5; 16]);
    let reply = wire::cookie_reply(&responder, first, cookie);
    let mut forged = reply.clone();
    forged[40] ^= 1;
    world.receive(0, evil(), &forged);
    let mut misled = reply.clone();
    misled[4] ^= 1;
    world.receive(0, evil(), &misled);
    world.receive(0, evil(), &reply);
    assert_eq!(world.endpoint(0, 1), None);
    world.run(SECOND);
    let second = world.trace.iter().filter(|line| line.ends_with(" 1 148"));
    assert_eq!(second.count(), 2);
    assert!(!wire::proves(first, &cookie));
    // The second was answered, so look at it in a world where nothing arrives.
    let mut world = pair(1);
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    let (_, first) = sent(&mut world).remove(0);
    let reply = wire::cookie_reply(&responder, &first, cookie);
    world.receive(0, evil(), &reply);
    world.net.delay = 10 * SECOND;
    world.run(SECOND);
    let (dst, second) = sent(&mut world).remove(0);
    assert_eq!(dst, world.nodes[1].endpoints[0]);
    assert!(wire::proves(&second, &cookie));
}

/// Node 1's key in the hands of somebody whom it does not know.
fn stranger(world: &World) -> Initiator {
    let key = NodePrivateKey::from_bytes([99; 32]);
    Initiator::new(&key, &world.nodes[1].node_key.public())
}

#[test]
fn a_flood_of_initiations_keeps_no_honest_peer_out() {
    for n_sources in [1, 1000, u32::MAX] {
        let mut world = pair(1);
        let message = stranger(&world).initiation(3, tai64n(PAST_S, 0)).message;
        let honest = world.nodes[0].endpoints[0];
        let (mut n_flood, mut n_to_flood) = (0_u32, 0);
        for ms in 0..5000 {
            for _ in 0..20 {
                n_flood += 1;
                let ip = 0xc633_6400_u32.wrapping_add(n_flood % n_sources);
                world.receive(1, SocketAddr::new(ip.to_be_bytes().into(), 7), &message);
            }
            if ms == 1500 {
                world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
            }
            world.run(SECOND / 1000);
            n_to_flood += world
                .trace
                .iter()
                .filter(|line| line.contains(" 1 -> 198.51."))
                .count();
            world.trace.clear();
        }
        assert_eq!(world.n_received(1), 1, "{n_sources} sources");
        assert_eq!(world.endpoint(1, 0), Some(honest));
        assert!(
            n_to_flood <= 100_000,
            "answers are fewer and shorter than questions"
        );
    }
}

#[test]
fn a_cookie_is_good_for_its_own_address_and_port_alone() {
    let mut world = pair(1);
    let flood = stranger(&world).initiation(3, tai64n(PAST_S, 0)).message;
    for n in 0..1000_u32 {
        let ip = 0xc633_6400 + n;
        world.receive(1, SocketAddr::new(ip.to_be_bytes().into(), 7), &flood);
    }
    sent(&mut world);
    let initiator = as_node_0(&world);
    let mut pending = initiator.initiation(4, tai64n(PAST_S, 0));
    let (own, other_port, other_ip) = (
        at("203.0.113.66:6"),
        at("203.0.113.66:7"),
        at("203.0.113.67:6"),
    );
    world.receive(1, own, &pending.message);
    let (dst, reply) = sent(&mut world).remove(0);
    assert_eq!((dst, reply.len(), reply[0]), (own, 64, 3));
    let cookie = initiator.cookie(&reply, &pending.message).unwrap();
    pending.prove(&cookie);
    for other in [other_port, other_ip] {
        world.receive(1, other, &pending.message);
        let (dst, reply) = sent(&mut world).remove(0);
        assert_eq!((dst, reply.len(), reply[0]), (other, 64, 3));
    }
    world.receive(1, own, &pending.message);
    let (dst, response) = sent(&mut world).remove(0);
    assert_eq!((dst, response.len(), response[0]), (own, 92, 2));
    pending.finish(&response);
}

#[test]
fn a_peer_whose_clock_went_back_is_met_half_way() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    // It was here with its clock far ahead, restarts with the right one, and does not know of that session any more.
    shake(&mut world, from, 7, FUTURE_S);
    world.run(3 * SECOND);
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1);
    world.send(1, &world.udp(1, 0, (2, 1), b"back"));
    world.run(SECOND);
    assert_eq!(world.n_received(0), 1);
    for _ in 0..300 {
        world.send(0, &world.udp(0, 1, (1, 2), b"tick"));
        world.run(SECOND);
    }
    assert_eq!(world.n_received(1), 301);
}

#[test]
fn replayed_initiations_cost_a_handshake_now_and_then_and_reach_no_stranger() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    let old = as_node_0(&world).initiation(6, tai64n(PAST_S, 0)).message;
    shake(&mut world, from, 7, PAST_S + 1);
    let n_before = world.trace.len();
    for _ in 0..600 {
        world.receive(1, evil(), &old);
        world.run(SECOND / 10);
    }
    let lines = &world.trace[n_before..];
    assert!(
        lines.iter().all(|line| !line.contains("203.0.113.66")),
        "{lines:?}"
    );
    let n_initiations = lines.iter().filter(|line| line.ends_with(" 1 148")).count();
    assert!(
        (1..=6).contains(&n_initiations),
        "{n_initiations} in a minute"
    );
}

#[test]
fn a_slow_path_needs_no_second_handshake() {
    for one_way_ms in [100, 240, 400, 700, 1200, 2500] {
        let mut world = pair(1);
        world.net.delay = Duration::from_millis(one_way_ms);
        world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
        world.run(30 * SECOND);
        assert_eq!(world.n_received(1), 1, "{one_way_ms} ms");
        world.send(1, &world.udp(1, 0, (2, 1), b"back"));
        world.run(SECOND * 8);
        assert_eq!(world.n_received(0), 1, "{one_way_ms} ms");
        let n_back = world
            .trace
            .iter()
            .filter(|line| line.contains(" 1 -> ") && line.ends_with(" 1 148"));
        assert_eq!(n_back.count(), 0, "{one_way_ms} ms: {:#?}", world.trace);
    }
}

#[test]
fn who_began_at_once_does_not_renew_twice() {
    for stagger_ms in [0, 1, 9, 15, 30] {
        let mut world = pair(1);
        world.send(0, &world.udp(0, 1, (1, 2), b"there"));
        world.run(Duration::from_millis(stagger_ms));
        world.send(1, &world.udp(1, 0, (2, 1), b"back"));
        world.run(SECOND);
        let is_initiation = |line: &&String| line.ends_with(" 1 148");
        let n_first = world.trace.iter().filter(is_initiation).count();
        for _ in 0..600 {
            world.send(0, &world.udp(0, 1, (1, 2), b"there"));
            world.send(1, &world.udp(1, 0, (2, 1), b"back"));
            world.run(SECOND);
        }
        assert_eq!((world.n_received(0), world.n_received(1)), (601, 601));
        let n_later = world.trace.iter().filter(is_initiation).count() - n_first;
        assert!(
            (4..=5).contains(&n_later),
            "{n_later} after {stagger_ms} ms"
        );
    }
}

#[test]
fn idle_peers_fall_silent() {
    let mut world = pair(1);
    for n in 0..5 {
        world.send(0, &world.udp(0, 1, (1, 2), &[n]));
        world.send(1, &world.udp(1, 0, (2, 1), &[n]));
        world.run(SECOND / 2);
    }
    world.run(15 * SECOND);
    for (span, n_expected) in [(100, 0), (10, 3), (1000, 2)] {
        // Keys that were used are renewed once, with a handshake of three messages; those were not used and go.
        let n_before = world.trace.len();
        world.run(span * SECOND);
        assert_eq!(
            world.trace.len() - n_before,
            n_expected,
            "{:#?}",
            &world.trace[n_before..]
        );
    }
}

#[test]
fn retries_come_at_other_times_each() {
    let tries = |seed| {
        let mut world = pair(seed);
        world.net.dead.insert(world.nodes[1].endpoints[0].ip());
        world.send(0, &world.udp(0, 1, (1, 2), b"lost"));
        world.run(95 * SECOND);
        let lines = world.trace.iter().filter(|line| line.ends_with(" 1 148"));
        lines.cloned().collect::<Vec<_>>()
    };
    let (one, other) = (tries(1), tries(2));
    assert!(one.len() >= 18 && other.len() >= 18);
    let n_same = one
        .iter()
        .skip(1)
        .filter(|line| other.contains(line))
        .count();
    assert_eq!(n_same, 0);
}

#[test]
fn a_clock_that_jumps_breaks_nothing() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    let hour = 3600 * SECOND;
    for n in 0..400_u64 {
        world.now = match n % 5 {
            0 => Duration::ZERO,
            1 => SECOND * (n as u32),
            2 => hour * (n as u32),
            3 => world.now.saturating_sub(hour),
            _ => world.now,
        };
        let now = world.instant();
        world.send(0, &world.udp(0, 1, (1, 2), b"there"));
        world.send(1, &world.udp(1, 0, (2, 1), b"back"));
        for idx in 0..2 {
            world.nodes[idx].engine.handle_timeout(now);
            world.drain(idx);
            drop(world.nodes[idx].engine.peer_stats(now));
        }
        while let Some(datagram) = world.net.receive(Duration::MAX) {
            let idx = usize::from(datagram.dst == world.nodes[1].endpoints[0]);
            world.receive(idx, datagram.from, &datagram.bytes);
        }
    }
    assert!(world.n_received(0) > 50 && world.n_received(1) > 50);
    assert!(matches!(
        world.nodes[0].plane.inbound(world.start, &[4; 32]),
        Inbound::Drop(_)
    ));
}

#[test]
fn garbage_of_every_length_is_not_answered() {
    let mut world = pair(1);
    let from = world.nodes[0].endpoints[0];
    let keys = shake(&mut world, from, 7, PAST_S);
    let n_before = world.trace.len();
    let noise: Vec<u8> = (0..65_507_u32)
        .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8)
        .collect();
    for len in 0..=noise.len() {
        let mut datagram = noise[..len].to_vec();
        for kind in 0..=5 {
            if let Some(head) = datagram.get_mut(..4) {
                head.copy_from_slice(&[kind, 0, 0, 0]);
            }
            world.receive(1, evil(), &datagram);
        }
        // Past the look at the index too, where a stranger does not get.
        if len >= 32 && (len < 2100 || len % 61 == 0) {
            datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
            datagram[4..8].copy_from_slice(&keys.receiver.to_le_bytes());
            world.receive(1, evil(), &datagram);
        }
        if len % 1000 == 0 {
            world.run(SECOND / 100);
        }
    }
    assert_eq!(world.trace[n_before..], [] as [String; 0]);
    assert_eq!(world.endpoint(1, 0), Some(from));
    let packet = world.udp(0, 1, (1, 2), b"still");
    world.receive(1, from, &keys.seal(1, &packet));
    assert_eq!(world.nodes[1].received, [packet]);
}
