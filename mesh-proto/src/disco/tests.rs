//! Tests of disco: golden bytes, directions, limits, hostile bytes.

use proptest::prelude::*;

use super::*;

fn pair() -> (DiscoSeal, DiscoSeal) {
    let (a, b) = (
        DiscoPrivateKey::from_bytes([1; 32]),
        DiscoPrivateKey::from_bytes([2; 32]),
    );
    let seal = |own: &DiscoPrivateKey, peer: &DiscoPrivateKey| {
        DiscoSeal::new(own, &peer.public()).unwrap()
    };
    (seal(&a, &b), seal(&b, &a))
}

fn samples() -> Vec<(&'static str, Message)> {
    let endpoint = |text: &str, kind| Candidate {
        endpoint: text.parse().unwrap(),
        kind,
    };
    vec![
        (
            include_str!("../../tests/golden/disco_ping.hex"),
            Message::Ping {
                id: *b"ping id 1234",
                datagram_len: 91,
            },
        ),
        (
            include_str!("../../tests/golden/disco_pong.hex"),
            Message::Pong {
                id: *b"ping id 1234",
                seen: "198.51.100.7:41820".parse().unwrap(),
            },
        ),
        (
            include_str!("../../tests/golden/disco_call_me_maybe.hex"),
            Message::CallMeMaybe {
                mapping: Mapping::EndpointDependent,
                endpoints: vec![
                    endpoint("192.168.1.4:41820", CandidateKind::Interface),
                    endpoint("[2001:db8::9]:41820", CandidateKind::PortMapped),
                    endpoint("203.0.113.5:9", CandidateKind::ServerReflexive),
                ],
            },
        ),
    ]
}

#[test]
fn a_pong_is_no_longer_than_a_ping_that_is_answered() {
    let (a, _) = pair();
    let id = *b"ping id 1234";
    for seen in ["198.51.100.7:41820", "[2001:db8::9]:41820"] {
        let seen = seen.parse().unwrap();
        let pong = a.seal(&[9; NONCE_LEN], &Message::Pong { id, seen });
        let datagram_len = PONG_LEN;
        let ping = a.seal(&[9; NONCE_LEN], &Message::Ping { id, datagram_len });
        assert_eq!((pong.len(), ping.len()), (109, 109));
    }
}

#[test]
fn messages_are_the_golden_bytes() {
    let (a, b) = pair();
    for (golden, message) in samples() {
        let datagram = a.seal(&[9; NONCE_LEN], &message);
        let hex = data_encoding::HEXLOWER.encode(&datagram);
        assert_eq!(hex, golden.trim(), "{message:?}");
        assert_eq!(b.open(&datagram), Ok(message));
    }
}

#[test]
fn a_message_opens_for_its_receiver_alone_and_unchanged() {
    let (a, b) = pair();
    let (_, ping) = samples().swap_remove(0);
    let datagram = a.seal(&[9; NONCE_LEN], &ping);
    assert_eq!(a.open(&datagram), Err(DiscoError::NotOurs), "reflected");
    let c = DiscoPrivateKey::from_bytes([3; 32]);
    let of_a = DiscoPrivateKey::from_bytes([1; 32]).public();
    let other = DiscoSeal::new(&c, &of_a).unwrap();
    assert_eq!(other.open(&datagram), Err(DiscoError::NotAuthentic));
    for at in 0..datagram.len() {
        let mut changed = datagram.clone();
        changed[at] ^= 1;
        assert!(b.open(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_key_that_nobody_holds_is_refused() {
    let own = DiscoPrivateKey::from_bytes([1; 32]);
    assert!(DiscoSeal::new(&own, &DiscoKey::from_bytes([0; 32])).is_none());
}

#[test]
fn a_ping_is_as_long_as_asked() {
    let (a, b) = pair();
    for (asked, expected) in [(0, 91), (91, 91), (1280, 1280), (u16::MAX, 9000)] {
        let id = [7; 12];
        let ping = Message::Ping {
            id,
            datagram_len: asked,
        };
        let datagram = a.seal(&[9; NONCE_LEN], &ping);
        assert_eq!(datagram.len(), expected);
        let read = Message::Ping {
            id,
            datagram_len: u16::try_from(expected).unwrap(),
        };
        assert_eq!(b.open(&datagram), Ok(read));
    }
}

#[test]
fn there_are_never_too_many_endpoints() {
    let (a, b) = pair();
    let candidate = Candidate {
        endpoint: "203.0.113.5:9".parse().unwrap(),
        kind: CandidateKind::Other,
    };
    let message = Message::CallMeMaybe {
        mapping: Mapping::Unknown,
        endpoints: vec![candidate; 500],
    };
    let Ok(Message::CallMeMaybe { endpoints, .. }) = b.open(&a.seal(&[9; NONCE_LEN], &message))
    else {
        panic!("it opens");
    };
    assert_eq!(endpoints.len(), N_ENDPOINTS_MAX);
}

#[test]
fn disco_is_told_from_wireguard_and_stun() {
    let (a, _) = pair();
    let datagram = a.seal(&[9; NONCE_LEN], &samples().swap_remove(0).1);
    assert!(is_disco(&datagram) && !crate::stun::is_stun(&datagram));
    assert!(!(1..=4).contains(&datagram[0]));
    assert!(!is_disco(&crate::stun::binding_request(&[1; 12])));
    assert_eq!(sender(&datagram), Some(a.own));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        is_framed: bool,
    ) {
        let (a, _) = pair();
        if is_framed {
            for (byte, magic) in bytes.iter_mut().zip(MAGIC.iter().chain(a.peer.as_bytes())) {
                *byte = *magic;
            }
        }
        prop_assert!(a.open(&bytes).is_err());
        let _ = Message::decode(&bytes, bytes.len());
    }
}
