//! Nonces: each request of a node is good once, for a short time, on this process alone.
//!
//! A nonce proves itself (time, randomness, and a MAC under a key of this process), so handing one out costs no memory;
//! only used ones are remembered, in two halves that follow each other, bounded.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::secret::{NoRandomness, random};

/// How long a nonce may wait for its use.
const LIFETIME: Duration = Duration::from_secs(300);
/// Used nonces that are remembered a half; more requests than that in five minutes are refused.
const N_USED_MAX: usize = 1 << 20;

type Body = [u8; 16];

/// Why a nonce was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NonceError {
    /// Not of this process, too old, or used.
    Bad,
    /// Too many requests to remember.
    TooMany,
}

/// The nonces of this process.
pub(crate) struct Nonces {
    key: [u8; 32],
    started: Instant,
    n_used_max: usize,
    used: Mutex<Used>,
}

struct Used {
    since: Instant,
    young: HashSet<Body>,
    old: HashSet<Body>,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nonces").finish_non_exhaustive()
    }
}

impl Nonces {
    pub(crate) fn new(now: Instant) -> Result<Self, NoRandomness> {
        Ok(Self {
            key: random()?,
            started: now,
            n_used_max: N_USED_MAX,
            used: Mutex::new(Used {
                since: now,
                young: HashSet::new(),
                old: HashSet::new(),
            }),
        })
    }

    /// A fresh nonce.
    pub(crate) fn issue(&self, now: Instant) -> Result<String, NoRandomness> {
        let mut body: Body = [0; 16];
        body[..4].copy_from_slice(&self.seconds(now).to_be_bytes());
        body[4..].copy_from_slice(&random::<12>()?);
        let mut nonce = [0; 32];
        nonce[..16].copy_from_slice(&body);
        nonce[16..].copy_from_slice(&self.mac(&body).finalize().into_bytes()[..16]);
        Ok(BASE64URL_NOPAD.encode(&nonce))
    }

    /// Uses a nonce up.
    pub(crate) fn spend(&self, nonce: &str, now: Instant) -> Result<(), NonceError> {
        let body = self.open(nonce, now).ok_or(NonceError::Bad)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(used.since) > LIFETIME {
            used.old = std::mem::take(&mut used.young);
            used.since = now;
        }
        if used.old.contains(&body) {
            return Err(NonceError::Bad);
        }
        if used.young.len() >= self.n_used_max {
            return Err(NonceError::TooMany);
        }
        if used.young.insert(body) {
            Ok(())
        } else {
            Err(NonceError::Bad)
        }
    }

    fn open(&self, nonce: &str, now: Instant) -> Option<Body> {
        let bytes: [u8; 32] = BASE64URL_NOPAD
            .decode(nonce.as_bytes())
            .ok()?
            .try_into()
            .ok()?;
        let (body, tag) = bytes.split_first_chunk::<16>()?;
        self.mac(body).verify_truncated_left(tag).ok()?;
        let [a, b, c, d, ..] = *body;
        let age = self
            .seconds(now)
            .checked_sub(u32::from_be_bytes([a, b, c, d]))?;
        (u64::from(age) < LIFETIME.as_secs()).then_some(*body)
    }

    fn mac(&self, body: &Body) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(body);
        mac
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.started).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once() {
        let now = Instant::now();
        let nonces = Nonces::new(now).unwrap();
        let nonce = nonces.issue(now).unwrap();
        assert_eq!(nonces.spend(&nonce, now), Ok(()));
        assert_eq!(nonces.spend(&nonce, now), Err(NonceError::Bad));
    }

    #[test]
    fn a_used_nonce_is_remembered_for_its_whole_life() {
        let now = Instant::now();
        let nonces = Nonces::new(now).unwrap();
        let later = now + Duration::from_secs(290);
        let nonce = nonces.issue(later).unwrap();
        assert_eq!(nonces.spend(&nonce, later), Ok(()));
        for seconds in [301, 450, 589] {
            let then = now + Duration::from_secs(seconds);
            let other = nonces.issue(then).unwrap();
            assert_eq!(nonces.spend(&other, then), Ok(()));
            assert_eq!(
                nonces.spend(&nonce, then),
                Err(NonceError::Bad),
                "after {seconds}"
            );
        }
    }

    #[test]
    fn old_foreign_and_mangled_nonces_are_refused() {
        let now = Instant::now();
        let nonces = Nonces::new(now).unwrap();
        let nonce = nonces.issue(now).unwrap();
        assert_eq!(nonces.spend(&nonce, now + LIFETIME), Err(NonceError::Bad));
        let foreign = Nonces::new(now).unwrap().issue(now).unwrap();
        for bad in [
            foreign.as_str(),
            "",
            "x",
            &nonce[1..],
            &format!("{nonce}AA"),
        ] {
            assert_eq!(nonces.spend(bad, now), Err(NonceError::Bad), "{bad}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let nonces = Nonces {
            n_used_max: 2,
            ..Nonces::new(now).unwrap()
        };
        let spend = || nonces.spend(&nonces.issue(now).unwrap(), now);
        assert_eq!(
            (spend(), spend(), spend()),
            (Ok(()), Ok(()), Err(NonceError::TooMany))
        );
    }
}
