//! Guards around boringtun, and the index table.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;

use super::index::Indices;
use super::*;
use crate::config::{PAD_UP_TO, REPLAY_WINDOW, RETRY_AFTER, RETRY_JITTER_MS};
use crate::filter::Rules;
use crate::peer::{self, PeerHandle};
use crate::plane::Shared;
use crate::seed::Seed;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn identity(key: &NodePrivateKey) -> Identity {
    Identity::new(key, Stamps::new(1_800_000_000_000_000_000))
}

fn pair() -> [Box<dyn Session>; 2] {
    let [a, b] = [1, 2].map(|n| NodePrivateKey::from_bytes([n; 32]));
    let mut sessions = [
        NoiseSession::boxed(&identity(&a), &b.public(), 7),
        NoiseSession::boxed(&identity(&b), &a.public(), 9),
    ];
    let [first, second] = &mut sessions;
    let (mut there, mut back) = ([0; 148], [0; 148]);
    let len = first.initiate(&mut there).unwrap();
    let Read::Reply(len) = second.open(FROM, &there[..len], &mut back) else {
        panic!("an initiation is answered");
    };
    let Read::Reply(len) = first.open(FROM, &back[..len], &mut there) else {
        panic!("a response is confirmed");
    };
    assert_eq!(second.open(FROM, &there[..len], &mut back), Read::Keepalive);
    sessions
}

fn ip_packet(len: usize) -> Vec<u8> {
    let mut packet = vec![3; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet
}

#[test]
fn packets_are_padded_to_16_and_come_out_as_they_went_in() {
    let [mut first, mut second] = pair();
    let (mut sealed, mut opened) = ([0; 3000], [0; 3000]);
    for len in (20..200).chain([1279, 1280, 1281, 1439, 1440, 1441, 2000]) {
        let packet = ip_packet(len);
        let sealed_len = first.seal(&packet, &mut sealed).unwrap();
        let padded_len = if len <= PAD_UP_TO {
            len.next_multiple_of(16)
        } else {
            len
        };
        assert_eq!(sealed_len, padded_len + DATA_OVERHEAD_LEN);
        assert!(sealed_len <= len + crate::SEAL_OVERHEAD);
        let read = second.open(FROM, &sealed[..sealed_len], &mut opened);
        assert_eq!(read, Read::Packet(len));
        assert_eq!(opened[..len], packet);
        let replayed = second.open(FROM, &sealed[..sealed_len], &mut opened);
        assert_eq!(replayed, Read::Refused(DropReason::NotAuthentic));
    }
}

#[test]
fn short_buffers_are_refused() {
    let [mut first, mut second] = pair();
    let mut sealed = [0; 300];
    for out_len in 0..148 {
        let mut out = vec![0; out_len];
        assert_eq!(
            first.seal(&ip_packet(20), &mut out),
            Err(DropReason::BufferTooSmall)
        );
        assert_eq!(first.initiate(&mut out), None);
        assert_eq!(first.tick(&mut out), Tick::Nothing);
    }
    let len = first.seal(&ip_packet(160), &mut sealed).unwrap();
    for out_len in 0..len {
        let mut out = vec![0; out_len];
        let read = second.open(FROM, &sealed[..len], &mut out);
        assert_eq!(read, Read::Refused(DropReason::BufferTooSmall));
    }
}

/// Packets of one session, in the order in which they were sealed.
fn sealed(session: &mut Box<dyn Session>, n: u32) -> Vec<Vec<u8>> {
    let mut out = [0; 200];
    let seal = |n: u32| {
        let mut packet = ip_packet(32);
        packet[28..].copy_from_slice(&n.to_be_bytes());
        let len = session.seal(&packet, &mut out).unwrap();
        out[..len].to_vec()
    };
    (0..n).map(seal).collect()
}

#[test]
fn reordering_within_the_replay_window_loses_nothing_and_doubles_nothing() {
    let [mut first, mut second] = pair();
    let datagrams = sealed(&mut first, 100_000);
    let mut out = [0; 200];
    let (mut seed, mut n_opened) = (Seed::new([8; 32]), 0);
    for (block_idx, block) in datagrams.chunks(1024).enumerate() {
        let mut order: Vec<_> = block.iter().collect();
        if block_idx % 2 == 0 {
            // The worst case: the newest comes first, and all others after it.
            order.reverse();
        } else {
            // Blocks of half a window in any order: no datagram is overtaken by as many as a window holds.
            for half in order.chunks_mut(512) {
                for n in 0..half.len() {
                    let other = seed.below(half.len() as u64);
                    half.swap(n, usize::try_from(other).unwrap());
                }
            }
        }
        for datagram in order {
            assert_eq!(second.open(FROM, datagram, &mut out), Read::Packet(32));
            n_opened += 1;
            let replayed = second.open(FROM, datagram, &mut out);
            assert_eq!(replayed, Read::Refused(DropReason::NotAuthentic));
        }
    }
    assert_eq!(n_opened, 100_000);
    for datagram in &datagrams {
        let replayed = second.open(FROM, datagram, &mut out);
        assert_eq!(replayed, Read::Refused(DropReason::NotAuthentic));
    }
}

#[test]
fn the_replay_window_is_that_of_boringtun() {
    let [mut first, mut second] = pair();
    let datagrams = sealed(&mut first, 3000);
    let mut out = [0; 200];
    for newest in [1024, 2500] {
        let mut open = |at: usize| second.open(FROM, &datagrams[at], &mut out);
        assert_eq!(open(newest), Read::Packet(32));
        let late = open(newest - REPLAY_WINDOW);
        assert_eq!(late, Read::Refused(DropReason::NotAuthentic));
        assert_eq!(open(newest - REPLAY_WINDOW + 1), Read::Packet(32));
    }
}

#[test]
fn an_authentic_datagram_without_an_ip_packet_is_told_from_a_forged_one() {
    let [mut first, mut second] = pair();
    let (mut sealed, mut out) = ([0; 200], [0; 200]);
    for content in [&[0x15; 40][..], &[0x45; 16], &[0x60; 32]] {
        let len = first.seal(content, &mut sealed).unwrap();
        assert_eq!(second.open(FROM, &sealed[..len], &mut out), Read::Rubbish);
        let replayed = second.open(FROM, &sealed[..len], &mut out);
        assert_eq!(replayed, Read::Refused(DropReason::NotAuthentic));
    }
}

#[test]
fn an_old_initiation_is_told_from_a_forged_one() {
    let [mut first, mut second] = pair();
    let (mut older, mut newer, mut out) = ([0; 148], [0; 148], [0; 148]);
    first.initiate(&mut older).unwrap();
    first.initiate(&mut newer).unwrap();
    assert!(matches!(
        second.open(FROM, &newer, &mut out),
        Read::Reply(92)
    ));
    for old in [&newer, &older] {
        assert_eq!(second.open(FROM, old, &mut out), Read::Old);
    }
    older[100] ^= 1;
    let forged = second.open(FROM, &older, &mut out);
    assert_eq!(forged, Read::Refused(DropReason::NotAuthentic));
}

#[test]
fn initiations_go_on_from_the_mark_of_an_earlier_run_and_stay_with_a_new_key() {
    let [a, b, c] = [1, 2, 3].map(|n| NodePrivateKey::from_bytes([n; 32]));
    let (mut there, mut back) = ([0; 148], [0; 148]);
    // A peer that never begins a handshake itself, and remembers all the time.
    let mut peer = NoiseSession::boxed(&identity(&b), &a.public(), 9);
    let far_ns = 4_000_000_000_000_000_000;
    for (from_ns, is_newer) in [
        (far_ns, true),
        (5, false),
        (far_ns, false),
        (far_ns + 1, true),
    ] {
        let own = Identity::new(&a, Stamps::new(from_ns));
        let len = NoiseSession::boxed(&own, &b.public(), 7).initiate(&mut there);
        let read = peer.open(FROM, &there[..len.unwrap()], &mut back);
        assert_eq!(
            matches!(read, Read::Reply(_)),
            is_newer,
            "{from_ns}: {read:?}"
        );
        assert_eq!(read == Read::Old, !is_newer, "{from_ns}: {read:?}");
    }
    let own = Identity::new(&a, Stamps::new(7));
    let mut other = NoiseSession::boxed(&identity(&c), &a.public(), 9);
    for _ in 0..3 {
        let mut session = NoiseSession::boxed(&own.with_key(&a), &c.public(), 7);
        let len = session.initiate(&mut there).unwrap();
        assert!(matches!(
            other.open(FROM, &there[..len], &mut back),
            Read::Reply(_)
        ));
    }
}

#[test]
fn retries_are_ours_and_not_of_tunn() {
    // `Tunn` begins anew after 5 s without jitter; the last of our delays must always come before.
    let last = RETRY_AFTER[RETRY_AFTER.len() - 1] + Duration::from_millis(RETRY_JITTER_MS);
    assert!(last < Duration::from_secs(5));
}

#[test]
fn only_who_knows_the_key_is_listened_to() {
    let [a, b, c] = [1, 2, 3].map(|n| identity(&NodePrivateKey::from_bytes([n; 32])));
    let to_b = NodePrivateKey::from_bytes([2; 32]).public();
    let mut initiation = [0; 148];
    NoiseSession::boxed(&a, &to_b, 1).initiate(&mut initiation);
    assert!(b.is_meant(&initiation) && !c.is_meant(&initiation));
    let a_key = NodePrivateKey::from_bytes([1; 32]).public();
    assert_eq!(b.initiator(&initiation), Some(a_key));
    assert_eq!(c.initiator(&initiation), None);
    initiation[50] ^= 1;
    assert!(!b.is_meant(&initiation));
    assert_eq!(b.initiator(&initiation[..147]), None);
}

#[test]
fn an_address_is_proven_by_the_cookie_that_was_sent_to_it() {
    let [a, b] = [1, 2].map(|n| NodePrivateKey::from_bytes([n; 32]));
    let (own, mut session) = (
        identity(&b),
        NoiseSession::boxed(&identity(&a), &b.public(), 1),
    );
    let from: SocketAddr = "192.0.2.1:5".parse().unwrap();
    let (mut initiation, mut cookie) = ([0; 148], [0; 64]);
    session.initiate(&mut initiation).unwrap();
    let mut forged = initiation;
    forged[50] ^= 1;
    assert_eq!(own.prove(from, &forged, &mut cookie), Proof::Nonsense);
    assert_eq!(
        own.prove(from, &initiation, &mut cookie),
        Proof::Missing(64)
    );
    assert_eq!(
        session.open(from.ip(), &cookie, &mut [0; 148]),
        Read::Cookie
    );
    session.initiate(&mut initiation).unwrap();
    assert_eq!(own.prove(from, &initiation, &mut cookie), Proof::Given);
    for other in ["192.0.2.1:6", "192.0.2.2:5", "[::ffff:192.0.2.1]:5"] {
        let other = other.parse().unwrap();
        assert_eq!(
            own.prove(other, &initiation, &mut cookie),
            Proof::Missing(64)
        );
    }
}

#[test]
fn indices_never_clash_and_lead_to_their_peer() {
    let indices = Indices::new();
    let mut seed = Seed::new([5; 32]);
    let shared = Arc::new(Shared::new(Instant::now()));
    let peers: Vec<PeerHandle> = (0..50)
        .map(|n| {
            let identity = peer::Identity {
                node: NodeId::from_bytes([n; 10]),
                node_key: NodeKey::from_bytes([n; 32]),
                ipv4: [10, 0, 0, n].into(),
                ipv6: Ipv6Addr::from(u128::from(n)),
                wins_ties: false,
            };
            PeerHandle::new(Arc::clone(&shared), identity, Arc::new(Rules::default()))
        })
        .collect();
    let mut taken = BTreeSet::new();
    for n in 0..20_000 {
        let peer = &peers[n % 50];
        let index = indices.allocate(&mut seed, n, peer).unwrap();
        assert!(index < 1 << 24 && taken.insert(index));
        for session in [0, 255] {
            assert_eq!(indices.peer(index << 8 | session).as_ref(), Some(peer));
        }
    }
    let spread = taken.iter().filter(|index| **index >= 1 << 23).count();
    assert!((9_500..10_500).contains(&spread), "{spread}");
    assert_eq!(
        indices.allocate(&mut seed, crate::config::N_INDICES_MAX, &peers[0]),
        None
    );
    let gone = taken.pop_first().unwrap();
    indices.release(gone);
    assert_eq!(indices.peer(gone << 8), None);
}
