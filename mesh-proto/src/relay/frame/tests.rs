//! Tests of the relay's frames: golden bytes, round trips, hostile bytes, and what a proof holds for.

use proptest::prelude::*;

use super::*;
use crate::key::NodePrivateKey;
use crate::relay::{ChallengeSecret, PROOF_LEN, Pin, prove};

const RELAY: Pin = Pin::from_bytes([9; 32]);

fn node(n: u8) -> NodePrivateKey {
    NodePrivateKey::from_bytes([n; 32])
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

/// Every frame with fixed contents, by the name it has in the golden file.
fn samples() -> Vec<(&'static str, Frame<'static>)> {
    let secret = ChallengeSecret::from_bytes([7; 32]);
    let challenge = secret.challenge();
    let key = node(1).public();
    let datagrams = Datagrams::new(&[4, 1, 2, 4, 3], 3).unwrap();
    vec![
        (
            "challenge",
            Frame::Challenge {
                version: VERSION,
                challenge,
            },
        ),
        (
            "hello",
            Frame::Hello {
                version: VERSION,
                node: key,
                proof: prove(&node(1), &RELAY, &challenge).unwrap(),
            },
        ),
        (
            "welcome",
            Frame::Welcome {
                bytes_per_second: 125_000_000,
            },
        ),
        (
            "denied",
            Frame::Denied {
                reason: Denial::NotRegistered,
                retry_after_ms: 5_000,
            },
        ),
        ("send", Frame::Send { to: key, datagrams }),
        (
            "received",
            Frame::Received {
                from: key,
                datagrams,
            },
        ),
        ("peer_gone", Frame::PeerGone { node: key }),
        ("ping", Frame::Ping(*b"abcdefgh")),
        ("pong", Frame::Pong(*b"abcdefgh")),
        ("health", Frame::Health(Health::Duplicate)),
        (
            "restarting",
            Frame::Restarting {
                reconnect_in_ms: 500,
                try_for_ms: 30_000,
            },
        ),
        ("rate_limited", Frame::RateLimited { pause_ms: 250 }),
        (
            "udp_offer",
            Frame::UdpOffer {
                port: 443,
                token: Token::from_bytes(*b"0123456789abcdef"),
            },
        ),
        ("udp_off", Frame::UdpOff),
    ]
}

#[test]
fn frames_are_as_in_the_golden_file() {
    let golden = include_str!("../../../tests/golden/relay.hex");
    let mut written = String::new();
    for (name, frame) in samples() {
        let bytes = frame.to_vec();
        written += &format!("{name} {}\n", data_encoding::HEXLOWER.encode(&bytes));
        let line = golden
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(line.map(hex).as_ref(), Some(&bytes), "{name}\n{written}");
        assert_eq!(Frame::parse(&bytes), Ok(frame), "{name}");
        assert_eq!(frame_len(&bytes, FRAME_MAX), Ok(Some(bytes.len())));
    }
    assert_eq!(golden.lines().count(), samples().len());
}

#[test]
fn a_frame_may_grow_and_a_new_kind_is_skipped() {
    let grown = hex("03 00000a 0000000000000005 ffff");
    let frame = Frame::Welcome {
        bytes_per_second: 5,
    };
    assert_eq!(Frame::parse(&grown), Ok(frame));
    assert_eq!(Frame::parse(&hex("c8 000001 00")), Ok(Frame::Unknown(200)));
    assert_eq!(
        Frame::parse(&hex("0a 000001 63")),
        Ok(Frame::Health(Health::Other(99)))
    );
}

#[test]
fn a_frame_that_is_cut_or_too_long_is_told() {
    let frame = Frame::Ping(*b"abcdefgh").to_vec();
    for n in 0..frame.len() {
        assert_eq!(frame_len(&frame[..n], FRAME_MAX), Ok(None), "{n}");
    }
    assert_eq!(
        frame_len(&[5, 0xff, 0xff, 0xff], FRAME_MAX),
        Err(FrameError::TooLong(4 + 0xff_ffff))
    );
    assert_eq!(
        frame_len(&[2, 0, 2, 0], HELLO_MAX),
        Err(FrameError::TooLong(516))
    );
    for (_, frame) in samples() {
        let bytes = frame.to_vec();
        if bytes.len() == HEADER_LEN {
            continue;
        }
        let kind = bytes[0];
        assert_eq!(
            Frame::parse(&bytes[..HEADER_LEN]),
            Err(FrameError::Malformed(kind))
        );
    }
}

#[test]
fn datagrams_are_bounded() {
    assert_eq!(Datagrams::new(&[], 1), None);
    assert_eq!(Datagrams::new(&[1], 0), None);
    assert_eq!(Datagrams::new(&[0; N_DATAGRAMS_MAX + 1], 1), None);
    assert_eq!(Datagrams::new(&vec![0; CONTENTS_MAX + 1], 2000), None);
    let all = [1, 2, 3, 4, 5];
    let datagrams = Datagrams::new(&all, 2).unwrap();
    assert_eq!(datagrams.n_datagrams(), 3);
    assert_eq!(
        datagrams.iter().collect::<Vec<_>>(),
        [&[1, 2][..], &[3, 4], &[5]]
    );
}

#[test]
fn handshakes_and_small_packets_are_urgent() {
    let is_urgent = |first: u8, len: usize, stride: usize| {
        let mut contents = vec![0; len];
        contents[0] = first;
        Datagrams::new(&contents, stride).unwrap().is_urgent()
    };
    assert!(is_urgent(1, 148, 148));
    assert!(is_urgent(4, 128, 128));
    assert!(is_urgent(4, 128, 1500));
    assert!(is_urgent(4, 64 * 96, 96));
    assert!(is_urgent(b'P', 700, 700));
    assert!(!is_urgent(4, 1328, 1328));
    assert!(!is_urgent(1, 40_000, 1400));
}

#[test]
fn a_send_is_turned_round_in_place() {
    let (to, from) = (node(1).public(), node(2).public());
    let datagrams = Datagrams::new(&[4, 1, 2], 3).unwrap();
    let mut frame = Frame::Send { to, datagrams }.to_vec();
    assert!(turn_round(&mut frame, &from));
    assert_eq!(
        Frame::parse(&frame),
        Ok(Frame::Received { from, datagrams })
    );
    let received = frame.clone();
    assert!(!turn_round(&mut frame, &to));
    assert!(!turn_round(&mut [5, 0, 0, 0], &to));
    assert_eq!(frame, received);
}

#[test]
fn a_proof_holds_for_its_node_relay_and_challenge_alone() {
    let secret = ChallengeSecret::from_bytes([7; 32]);
    let proof = prove(&node(1), &RELAY, &secret.challenge()).unwrap();
    assert!(secret.verify(&RELAY, &node(1).public(), &proof));
    assert!(!secret.verify(&RELAY, &node(2).public(), &proof));
    assert!(!secret.verify(&Pin::from_bytes([8; 32]), &node(1).public(), &proof));
    let other = ChallengeSecret::from_bytes([6; 32]);
    assert!(!other.verify(&RELAY, &node(1).public(), &proof));
    for at in [0, PROOF_LEN - 1] {
        let mut forged = proof;
        forged.0[at] ^= 1;
        assert!(!secret.verify(&RELAY, &node(1).public(), &forged));
    }
}

#[test]
fn a_key_of_small_order_proves_nothing() {
    let secret = ChallengeSecret::from_bytes([7; 32]);
    let zero = [0; 32];
    assert_eq!(prove(&node(1), &RELAY, &zero), None);
    let forged = mac_of_zero(&secret.challenge());
    assert!(!secret.verify(&RELAY, &NodeKey::from_bytes(zero), &forged));
}

/// What somebody without any secret computes for the node key zero.
fn mac_of_zero(challenge: &[u8; 32]) -> Proof {
    use hmac::{Hmac, Mac as _};
    let mut mac = <Hmac<sha2::Sha256> as hmac::Mac>::new_from_slice(&[0; 32]).unwrap();
    for part in [
        &b"proxima relay v1\0"[..],
        RELAY.as_bytes(),
        challenge,
        &[0; 32],
    ] {
        mac.update(part);
    }
    Proof(mac.finalize().into_bytes().into())
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let key = any::<[u8; 32]>().prop_map(NodeKey::from_bytes);
    let datagrams = (key.clone(), proptest::collection::vec(any::<u8>(), 1..4000));
    prop_oneof![
        (any::<u8>(), any::<[u8; 32]>()).prop_map(|(version, challenge)| Frame::Challenge {
            version,
            challenge
        }
        .to_vec()),
        (any::<u8>(), key.clone(), any::<[u8; 32]>()).prop_map(|(version, node, proof)| {
            let proof = Proof(proof);
            Frame::Hello {
                version,
                node,
                proof,
            }
            .to_vec()
        }),
        any::<u64>().prop_map(|bytes_per_second| Frame::Welcome { bytes_per_second }.to_vec()),
        (any::<u8>(), any::<u32>()).prop_map(|(reason, retry_after_ms)| {
            let reason = Denial::of(reason);
            Frame::Denied {
                reason,
                retry_after_ms,
            }
            .to_vec()
        }),
        (datagrams, 16_usize..2000, any::<bool>()).prop_map(|((key, bytes), stride, is_send)| {
            let datagrams = Datagrams::new(&bytes, stride).unwrap();
            if is_send {
                Frame::Send { to: key, datagrams }.to_vec()
            } else {
                Frame::Received {
                    from: key,
                    datagrams,
                }
                .to_vec()
            }
        }),
        key.prop_map(|node| Frame::PeerGone { node }.to_vec()),
        any::<[u8; 8]>().prop_map(|bytes| Frame::Ping(bytes).to_vec()),
        any::<u8>().prop_map(|health| Frame::Health(Health::of(health)).to_vec()),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(bytes in any_frame()) {
        prop_assert_eq!(frame_len(&bytes, FRAME_MAX), Ok(Some(bytes.len())));
        let frame = Frame::parse(&bytes).unwrap();
        prop_assert_eq!(frame.to_vec(), bytes);
    }

    #[test]
    fn hostile_bytes_are_refused_or_read_and_never_panic(
        kind in 0_u8..16,
        payload in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut bytes = vec![kind, 0];
        bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        if let Ok(Frame::Send { datagrams, .. } | Frame::Received { datagrams, .. }) = Frame::parse(&bytes) {
            prop_assert!(datagrams.n_datagrams() <= N_DATAGRAMS_MAX);
            prop_assert_eq!(datagrams.iter().map(<[u8]>::len).sum::<usize>(), datagrams.contents().len());
        }
        let _ = frame_len(&bytes, HELLO_MAX);
        let _ = turn_round(&mut bytes, &NodeKey::from_bytes([0; 32]));
    }
}
