//! WireGuard's initiator by hand, straight from the paper (sections 5.4.2 to 5.4.7): it says whatever a test wants.

use blake2::Blake2s256;
use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use hmac::SimpleHmac;
use mesh_proto::key::{NodeKey, NodePrivateKey};
use x25519_dalek::{PublicKey, StaticSecret};

type Key = [u8; 32];

/// Somebody with a static key of his own who speaks to one responder.
pub(crate) struct Initiator {
    secret: StaticSecret,
    responder: PublicKey,
}

/// An initiation that waits for its response.
pub(crate) struct Pending {
    pub(crate) message: Vec<u8>,
    secret: StaticSecret,
    ephemeral: StaticSecret,
    chain: Key,
    hash: Key,
}

/// The initiator's end of a session.
pub(crate) struct Keys {
    sending: Key,
    /// The responder's index.
    pub(crate) receiver: u32,
}

/// TAI64N of a Unix time.
pub(crate) fn tai64n(unix_s: u64, nanos: u32) -> [u8; 12] {
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&((1 << 62) + 37 + unix_s).to_be_bytes());
    stamp[8..].copy_from_slice(&nanos.to_be_bytes());
    stamp
}

impl Initiator {
    pub(crate) fn new(own: &NodePrivateKey, responder: &NodeKey) -> Self {
        Self {
            secret: own.secret().clone(),
            responder: PublicKey::from(*responder.as_bytes()),
        }
    }

    /// A message of type 1. Its sender's index also draws its ephemeral key.
    pub(crate) fn initiation(&self, sender: u32, stamp: [u8; 12]) -> Pending {
        let seed = hash(&[b"ephemeral", &sender.to_le_bytes(), &stamp]);
        let ephemeral = StaticSecret::from(seed);
        let own = PublicKey::from(&self.secret);
        let mut message = vec![1, 0, 0, 0];
        message.extend(sender.to_le_bytes());
        let mut chain = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
        let mut hashed = hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
        hashed = hash(&[&hashed, self.responder.as_bytes()]);
        let public = PublicKey::from(&ephemeral);
        message.extend(public.as_bytes());
        hashed = hash(&[&hashed, public.as_bytes()]);
        [chain] = kdf(&chain, public.as_bytes());
        let key;
        [chain, key] = kdf(&chain, ephemeral.diffie_hellman(&self.responder).as_bytes());
        let sealed = seal(&key, 0, own.as_bytes(), &hashed);
        hashed = hash(&[&hashed, &sealed]);
        message.extend(sealed);
        let key;
        [chain, key] = kdf(
            &chain,
            self.secret.diffie_hellman(&self.responder).as_bytes(),
        );
        let sealed = seal(&key, 0, &stamp, &hashed);
        hashed = hash(&[&hashed, &sealed]);
        message.extend(sealed);
        let mac1 = mac(&hash(&[b"mac1----", self.responder.as_bytes()]), &message);
        message.extend(mac1);
        message.extend([0; 16]);
        Pending {
            message,
            secret: self.secret.clone(),
            ephemeral,
            chain,
            hash: hashed,
        }
    }

    /// The cookie in a reply to one of these messages.
    pub(crate) fn cookie(&self, reply: &[u8], message: &[u8]) -> Option<[u8; 16]> {
        let cipher =
            XChaCha20Poly1305::new(&hash(&[b"cookie--", self.responder.as_bytes()]).into());
        let payload = Payload {
            msg: &reply[32..],
            aad: mac1_of(message),
        };
        let cookie = cipher.decrypt(reply[8..32].into(), payload).ok()?;
        cookie.try_into().ok()
    }
}

/// A cookie reply that anybody can make who saw a message and knows whom it was for.
pub(crate) fn cookie_reply(from: &NodeKey, message: &[u8], cookie: [u8; 16]) -> Vec<u8> {
    let cipher = XChaCha20Poly1305::new(&hash(&[b"cookie--", from.as_bytes()]).into());
    let payload = Payload {
        msg: &cookie,
        aad: mac1_of(message),
    };
    let nonce = [9; 24];
    let sealed = cipher.encrypt(&nonce.into(), payload).unwrap();
    [&[3, 0, 0, 0], &message[4..8], &nonce[..], &sealed].concat()
}

fn mac1_of(message: &[u8]) -> &[u8] {
    &message[message.len() - 32..message.len() - 16]
}

/// Whether a message carries this cookie's mac2.
pub(crate) fn proves(message: &[u8], cookie: &[u8; 16]) -> bool {
    let (covered, mac2) = message.split_at(message.len() - 16);
    mac(cookie, covered) == mac2
}

impl Pending {
    /// Puts in the proof of the sender's address (mac2).
    pub(crate) fn prove(&mut self, cookie: &[u8; 16]) {
        let at = self.message.len() - 16;
        let mac2 = mac(cookie, &self.message[..at]);
        self.message[at..].copy_from_slice(&mac2);
    }

    /// Takes a message of type 2.
    pub(crate) fn finish(&self, response: &[u8]) -> Keys {
        assert!(response.len() == 92 && response[..4] == [2, 0, 0, 0]);
        assert_eq!(response[8..12], self.message[4..8]);
        let public = PublicKey::from(<Key>::try_from(&response[12..44]).unwrap());
        let mut hashed = hash(&[&self.hash, public.as_bytes()]);
        let [mut chain] = kdf(&self.chain, public.as_bytes());
        [chain] = kdf(&chain, self.ephemeral.diffie_hellman(&public).as_bytes());
        [chain] = kdf(&chain, self.secret.diffie_hellman(&public).as_bytes());
        let (tau, key);
        [chain, tau, key] = kdf(&chain, &[0; 32]);
        hashed = hash(&[&hashed, &tau]);
        open(&key, 0, &response[44..60], &hashed).unwrap();
        let [sending, _] = kdf(&chain, &[]);
        Keys {
            sending,
            receiver: u32::from_le_bytes(response[4..8].try_into().unwrap()),
        }
    }
}

impl Keys {
    /// A message of type 4 with any counter and any content.
    pub(crate) fn seal(&self, counter: u64, content: &[u8]) -> Vec<u8> {
        let mut message = vec![4, 0, 0, 0];
        message.extend(self.receiver.to_le_bytes());
        message.extend(counter.to_le_bytes());
        message.extend(seal(&self.sending, counter, content, &[]));
        message
    }
}

fn hash(parts: &[&[u8]]) -> Key {
    let mut hasher = Blake2s256::new();
    for part in parts {
        blake2::Digest::update(&mut hasher, part);
    }
    hasher.finalize().into()
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 16] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize_fixed().into()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut hmac = SimpleHmac::<Blake2s256>::new_from_slice(key).unwrap();
    for part in parts {
        hmac.update(part);
    }
    hmac.finalize_fixed().into()
}

/// HKDF as the paper has it.
fn kdf<const N: usize>(chain: &Key, input: &[u8]) -> [Key; N] {
    let secret = hmac(chain, &[input]);
    let mut last: Vec<u8> = vec![];
    let mut n = 0;
    [(); N].map(|()| {
        n += 1;
        let key = hmac(&secret, &[&last, &[n]]);
        last = key.to_vec();
        key
    })
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn seal(key: &Key, counter: u64, msg: &[u8], aad: &[u8]) -> Vec<u8> {
    let cipher = ChaCha20Poly1305::new(&(*key).into());
    cipher
        .encrypt(&nonce(counter).into(), Payload { msg, aad })
        .unwrap()
}

fn open(key: &Key, counter: u64, msg: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let cipher = ChaCha20Poly1305::new(&(*key).into());
    cipher
        .decrypt(&nonce(counter).into(), Payload { msg, aad })
        .ok()
}
