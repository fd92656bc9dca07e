//! Hostile input: it is dropped, costs little, and never panics.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_engine::{
    Admit, ChecksumState, Event, Inbound, Opened, Outbound, PeerHandle, Sealed, Update,
};
use mesh_proto::key::NodePrivateKey;
use proptest::prelude::*;

use crate::ip;
use crate::session::one_user;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn pair() -> (World, PeerHandle) {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    world.run(SECOND);
    let now = world.instant();
    let outbound = world.nodes[0].plane.outbound(
        now,
        &mut world.udp(0, 1, (1, 2), b"x"),
        ChecksumState::Complete,
    );
    let Outbound::Peer(peer) = outbound else {
        panic!("there is a peer");
    };
    (world, peer)
}

fn evil() -> SocketAddr {
    "198.51.100.66:6".parse().unwrap()
}

/// A packet that begins like a good one between two nodes, with some bytes changed.
fn mangled(world: &World, is_inbound: bool, kind: u8, changes: &[(u16, u8)], cut: u16) -> Vec<u8> {
    let (from, to) = if is_inbound { (1, 0) } else { (0, 1) };
    let mut packet = match kind % 4 {
        0 => world.udp(from, to, (7, 53), &[1; 40]),
        1 => world.tcp6(from, to, (7, 11434), &[1; 40]),
        2 => ip::echo(
            world.nodes[from].ipv6.into(),
            world.nodes[to].ipv6.into(),
            true,
            7,
            &[1; 40],
        ),
        _ => {
            let quoted = world.udp(to, from, (7, 53), &[1; 40]);
            let segment = [&[3, 3, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
            let (src, dst) = (world.nodes[from].ipv4.into(), world.nodes[to].ipv4.into());
            ip::ip(src, dst, 1, &segment)
        }
    };
    for (at, byte) in changes {
        let at = usize::from(*at) % packet.len();
        packet[at] = *byte;
    }
    let cut = packet.len() - usize::from(cut) % packet.len();
    packet.truncate(cut);
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mangled_packets_never_panic_and_never_change_sides(
        kinds in proptest::collection::vec(
            (any::<u8>(), proptest::collection::vec((0..80u16, any::<u8>()), 0..6), prop_oneof![Just(0u16), any::<u16>()]),
            1..30,
        ),
    ) {
        let (world, peer) = pair();
        let now = world.instant();
        for (kind, changes, cut) in &kinds {
            let plane = &world.nodes[0].plane;
            let mut packet = mangled(&world, true, *kind, changes, *cut);
            if matches!(plane.admit(now, &peer, &mut packet), Admit::Deliver) {
                let parts = ip::parts(&packet);
                let (own, from) = (&world.nodes[0], &world.nodes[1]);
                prop_assert!(parts.src == from.ipv4 || parts.src == from.ipv6);
                prop_assert!(parts.dst == own.ipv4 || parts.dst == own.ipv6);
            }
            for state in [ChecksumState::Complete, ChecksumState::Partial] {
                let mut packet = mangled(&world, false, *kind, changes, *cut);
                plane.outbound(now, &mut packet, state);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_and_are_answered_with_silence(
        datagrams in proptest::collection::vec(
            (0..8u8, proptest::collection::vec(any::<u8>(), 0..300)),
            1..20,
        ),
    ) {
        let (mut world, peer) = pair();
        let n_traced = world.trace.len();
        let now = world.instant();
        for (kind, bytes) in datagrams {
            let len = match kind { 1 => 148, 2 => 92, 3 => 64, _ => bytes.len() };
            let mut datagram = bytes.clone();
            datagram.resize(len, 7);
            if kind != 0 && len >= 4 {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            world.receive(0, evil(), &datagram);
            let mut copy = datagram.clone();
            world.nodes[0].plane.outbound(now, &mut copy, ChecksumState::Complete);
            world.nodes[0].plane.admit(now, &peer, &mut copy);
            world.nodes[0].engine.handle_udp(now, evil(), &datagram);
            world.drain(0);
            let mut out = [0; 20];
            let opened = peer.open().open(evil(), &datagram, &mut out);
            prop_assert!(matches!(opened, Opened::Dropped(_)));
        }
        prop_assert_eq!(world.trace.len(), n_traced);
    }

    #[test]
    fn true_datagrams_cut_or_changed_do_not_open(at in 0..200usize, bit in 0..8u8, cut in 0..200usize) {
        let (world, peer) = pair();
        let packet = world.udp(0, 1, (1, 2), &[5; 150]);
        let mut datagram = vec![0; 400];
        let Sealed::Datagram(len) = peer.seal().seal(&packet, &mut datagram) else {
            panic!("there is a session");
        };
        datagram.truncate(len);
        let Inbound::Data(from) = world.nodes[1].plane.inbound(world.instant(), &datagram) else {
            panic!("the session is known");
        };
        let mut changed = datagram.clone();
        changed[at % len] ^= 1 << bit;
        let mut out = vec![0; 400];
        for bad in [&changed[..], &datagram[..cut % len]] {
            let opened = from.open().open(evil(), bad, &mut out);
            prop_assert!(matches!(opened, Opened::Dropped(_)), "{:?}", opened);
        }
        // A buffer of any size is refused or enough.
        let mut short = vec![0; cut];
        let opened = from.open().open(evil(), &datagram, &mut short);
        prop_assert!(matches!(opened, Opened::Dropped(_)) == (cut < len), "{:?}", opened);
        let mut short = vec![0; cut];
        let sealed = peer.seal().seal(&packet, &mut short);
        prop_assert_eq!(matches!(sealed, Sealed::Datagram(_)), cut >= len);
    }
}

#[test]
fn no_length_panics() {
    let (mut world, peer) = pair();
    let mut out = vec![0; 70_000];
    for len in (0..2000).chain([9000, 65_535, 65_536]) {
        let mut datagram = vec![0; len];
        if len >= 4 {
            datagram[0] = 4;
        }
        world.receive(0, evil(), &datagram);
        let _ = peer.open().open(evil(), &datagram, &mut out);
        for out_len in [0, 31, 32, 147, 148, len, len + 31, len + 32, len + 47] {
            let _ = peer.seal().seal(&datagram, &mut out[..out_len]);
            let _ = peer.open().open(evil(), &datagram, &mut out[..out_len]);
        }
    }
}

#[test]
fn packets_that_wait_are_bounded() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.net.dead.insert(world.nodes[1].endpoints[0].ip());
    world.tell_all();
    for n in 0..1000u16 {
        world.send(0, &world.udp(0, 1, (1, 2), &n.to_be_bytes()));
    }
    assert!(world.nodes[0].n_plane_events < 10);
    world.net.dead.clear();
    world.run(2 * SECOND);
    let received = &world.nodes[1].received;
    assert_eq!(received.len(), 64, "the newest are kept");
    assert_eq!(received[63][28..], 999u16.to_be_bytes());
}

#[test]
fn a_flood_of_handshakes_from_one_source_does_not_stop_another() {
    let mut world = World::new(2, 1);
    one_user(&mut world);
    world.tell_all();
    // A stranger who knows node 1's key: initiations with a right mac1, but no peer.
    let mut stranger = World::new(2, 2);
    stranger.control(0, Update::NodeKey(NodePrivateKey::from_bytes([99; 32])));
    one_user(&mut stranger);
    stranger.tell_all();
    stranger.send(0, &stranger.udp(0, 1, (1, 2), b"x"));
    let initiation = stranger.net.receive(Duration::MAX).unwrap().bytes;
    assert_eq!(initiation.len(), 148);
    for _ in 0..5000 {
        world.receive(1, evil(), &initiation);
    }
    // A stranger is not answered, but by a request to prove that he is there when there are so many of him.
    let n_asked = world
        .trace
        .iter()
        .filter(|line| line.ends_with(" 3 64"))
        .count();
    assert_eq!(n_asked, world.trace.len());
    assert!((4800..5000).contains(&n_asked), "{n_asked}");
    world.send(0, &world.udp(0, 1, (1, 2), b"hello"));
    // The honest one is asked too, and proves it with its next try.
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1);
    let a = world.nodes[0].id;
    assert!(world.has_event(1, |event| *event == Event::PeerUp { node: a }));
}
