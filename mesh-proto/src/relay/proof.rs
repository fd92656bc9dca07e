//! The proof of a node key: a Diffie-Hellman of it with a key that the relay made for this connection alone.
//!
//! ```text
//! proof = HMAC-SHA-256(X25519(node key, challenge), context ‖ relay's pin ‖ challenge ‖ node key)
//! ```
//!
//! It proves the very key that frames are routed by, so a relay needs to know nothing but the node keys of its mesh, and
//! no secret is shared between relays. The relay's pin is covered: a relay cannot pass another relay's challenge on
//! and be that node there. A challenge serves one connection, so nothing can be replayed.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::Pin;
use crate::key::{NodeKey, NodePrivateKey};

/// The length of a proof in bytes.
pub const PROOF_LEN: usize = 32;

const CONTEXT: &[u8] = b"proxima relay v1\0";

/// That a node holds its node key, for one connection to one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof(pub(super) [u8; PROOF_LEN]);

/// The relay's half of a challenge: used for one connection and forgotten.
pub struct ChallengeSecret(StaticSecret);

impl ChallengeSecret {
    /// Takes 32 bytes of secret; draw them from the system's random source.
    #[must_use]
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self(StaticSecret::from(secret))
    }

    /// What the node is sent.
    #[must_use]
    pub fn challenge(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// Whether a proof holds for a node key at the relay of this pin. Takes the same time either way.
    #[must_use]
    pub fn verify(&self, relay: &Pin, node: &NodeKey, proof: &Proof) -> bool {
        let shared = shared(&self.0, node.as_bytes());
        shared.is_some_and(|shared| {
            mac(&shared, relay, &self.challenge(), node)
                .verify_slice(&proof.0)
                .is_ok()
        })
    }
}

impl std::fmt::Debug for ChallengeSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChallengeSecret([redacted])")
    }
}

/// Answers the challenge of the relay of this pin; `None` when the challenge is no key.
#[must_use]
pub fn prove(node: &NodePrivateKey, relay: &Pin, challenge: &[u8; 32]) -> Option<Proof> {
    let shared = shared(node.secret(), challenge)?;
    let mac = mac(&shared, relay, challenge, &node.public());
    Some(Proof(mac.finalize().into_bytes().into()))
}

/// `None` for a point of small order: its secret would be known to all.
fn shared(secret: &StaticSecret, public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    shared
        .was_contributory()
        .then(|| Zeroizing::new(shared.to_bytes()))
}

fn mac(shared: &[u8; 32], relay: &Pin, challenge: &[u8; 32], node: &NodeKey) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(shared)
        .expect("HMAC takes a key of any length");
    mac.update(CONTEXT);
    mac.update(relay.as_bytes());
    mac.update(challenge);
    mac.update(node.as_bytes());
    mac
}
