//! Tests of the upgrade and the proof, with a relay made of the wire's own words on the other end of a pipe.

use mesh_proto::id::RelayId;
use mesh_proto::relay::{ChallengeSecret, HELLO_MAX, Pin};
use tokio::io::{DuplexStream, duplex};

use super::*;

const URL: &str = "https://relay.example:7443";

fn entry() -> RelayEntry {
    let pin = Pin::from_bytes([9; 32]);
    RelayEntry {
        id: RelayId::of(pin.as_bytes(), URL),
        name: String::new(),
        urls: vec![URL.to_owned()],
        pin,
        udp: vec![],
        stun: vec![],
    }
}

fn key() -> NodePrivateKey {
    NodePrivateKey::from_bytes([1; 32])
}

/// Upgrades and greets as a node does.
async fn node(mut stream: DuplexStream) -> Result<Vec<u8>, DialError> {
    let mut read = upgrade(&mut stream, URL).await?;
    greet(&mut stream, &mut read, &entry(), URL, &key()).await?;
    Ok(read.to_vec())
}

/// Reads the request's head, says `answer`, then whatever `say` writes.
async fn answered(answer: &[u8]) -> Result<Vec<u8>, DialError> {
    let (near, mut far) = duplex(64 << 10);
    let relay = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(far.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("\r\nupgrade: proxima-relay\r\n"), "{head}");
        assert!(head.contains("\r\nhost: relay.example:7443\r\n"), "{head}");
        far.write_all(answer).await.unwrap();
        // Kept open until the node is done.
        far
    };
    let (outcome, _far) = tokio::join!(node(near), relay);
    outcome
}

#[tokio::test]
async fn a_node_proves_its_key_and_keeps_what_comes_behind_the_welcome() {
    let (near, mut far) = duplex(64 << 10);
    let relay = async {
        let mut read = BytesMut::new();
        while !read.ends_with(b"\r\n\r\n") {
            far.read_buf(&mut read).await.unwrap();
        }
        read.clear();
        let secret = ChallengeSecret::from_bytes([7; 32]);
        let challenge = Frame::Challenge {
            version: VERSION,
            challenge: secret.challenge(),
        };
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        challenge.write(&mut answer);
        far.write_all(&answer).await.unwrap();
        while frame_len(&read, HELLO_MAX).unwrap().is_none() {
            far.read_buf(&mut read).await.unwrap();
        }
        let Frame::Hello { node, proof, .. } = Frame::parse(&read).unwrap() else {
            panic!("a hello was due")
        };
        assert!(secret.verify(&entry().pin, &node, &proof));
        assert_eq!(node, key().public());
        let mut welcome = Frame::Welcome {
            bytes_per_second: 0,
        }
        .to_vec();
        Frame::Ping([3; 8]).write(&mut welcome);
        far.write_all(&welcome).await.unwrap();
        far
    };
    let (outcome, _far) = tokio::join!(node(near), relay);
    assert_eq!(outcome.unwrap(), Frame::Ping([3; 8]).to_vec());
}

#[tokio::test]
async fn what_is_no_relay_is_told_apart() {
    let mut endless = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    endless.resize(3 * HEAD_LEN_MAX, b'x');
    let mut unexpected = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    Frame::RateLimited { pause_ms: 1 }.write(&mut unexpected);
    let mut newer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    Frame::Challenge {
        version: VERSION + 1,
        challenge: [1; 32],
    }
    .write(&mut newer);
    let mut no_key = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    Frame::Challenge {
        version: VERSION,
        challenge: [0; 32],
    }
    .write(&mut no_key);
    for answer in [
        &b"HTTP/1.1 404 Not Found\r\n\r\n"[..],
        &endless,
        &unexpected,
        &newer,
        &no_key,
    ] {
        let err = answered(answer).await.unwrap_err();
        assert!(matches!(err, DialError::NoRelay { .. }), "{err}");
    }
}

#[tokio::test]
async fn a_denial_says_when_to_come_back() {
    let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    Frame::Denied {
        reason: Denial::NotRegistered,
        retry_after_ms: 5_000,
    }
    .write(&mut answer);
    match answered(&answer).await.unwrap_err() {
        DialError::Denied {
            reason,
            retry_after,
        } => {
            assert_eq!(reason, Denial::NotRegistered);
            assert_eq!(retry_after, Duration::from_secs(5));
        }
        other @ (DialError::Io { .. } | DialError::NoRelay { .. } | DialError::NoUrl) => {
            panic!("{other}")
        }
    }
}
