//! The auth key: one string that a person pastes to let a node join.
//!
//! `pxk_<prefix>_<body>`: the prefix is public and names the key in lists; the body is base64url of
//! `version (1) ‖ pin (32) ‖ secret (32) ‖ n_urls (1) ‖ { len (1) ‖ url }… ‖ checksum (4)`. The checksum is the start of
//! SHA-256 over everything before it, prefix included, so that a key cut or mistyped is told apart from a refused one.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::key::CoordinatorKey;

const TAG: &str = "pxk_";
const VERSION: u8 = 1;
const PREFIX_LEN: usize = 10;
const N_URLS_MAX: usize = 8;
/// No auth key of ours is longer; anything longer is refused before it is decoded.
const TEXT_LEN_MAX: usize = 4096;

/// Why a text is not an auth key. The words are for the person who pasted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthKeyError {
    /// It does not begin like one.
    #[error("this is not an auth key: auth keys begin with `pxk_`")]
    NotAnAuthKey,
    /// The checksum is wrong: cut, mistyped or mangled.
    #[error("this auth key is damaged (cut or mistyped): copy it again, whole")]
    Damaged,
    /// Made by a newer coordinator.
    #[error(
        "this auth key is of a newer format than this program knows: update Proxima on this machine"
    )]
    TooNew,
}

/// An auth key, as pasted. It prints as its public prefix; [`AuthKey::reveal`] gives the whole.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct AuthKey {
    #[zeroize(skip)]
    prefix: String,
    #[zeroize(skip)]
    pin: [u8; 32],
    secret: [u8; 32],
    #[zeroize(skip)]
    urls: Vec<String>,
}

impl AuthKey {
    /// Makes a key out of 32 secret bytes and 6 public ones, both drawn from the system's random source.
    ///
    /// At most eight URLs of at most 255 bytes are kept.
    #[must_use]
    pub fn new(
        coordinator: &CoordinatorKey,
        secret: [u8; 32],
        public: [u8; 6],
        urls: Vec<String>,
    ) -> Self {
        let prefix = BASE32_NOPAD.encode(&public).to_ascii_lowercase();
        let urls = urls
            .into_iter()
            .filter(|url| url.len() <= 255)
            .take(N_URLS_MAX)
            .collect();
        Self {
            prefix,
            pin: pin_of(coordinator),
            secret,
            urls,
        }
    }

    /// The public part, by which lists name the key.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The coordinators that take this key.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The hash that the coordinator's key must have.
    #[must_use]
    pub const fn pin(&self) -> &[u8; 32] {
        &self.pin
    }

    /// What a coordinator stores: the hash of the secret. A 256-bit random secret needs no slow hash.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        hash_secret(&self.prefix, &self.secret)
    }

    /// The secret as sent in a registration.
    #[must_use]
    pub fn secret_text(&self) -> String {
        format!("{}_{}", self.prefix, BASE64URL_NOPAD.encode(&self.secret))
    }

    /// The whole key, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut body = vec![VERSION];
        body.extend(self.pin);
        body.extend(self.secret);
        body.push(u8::try_from(self.urls.len()).unwrap_or(0));
        for url in &self.urls {
            body.push(u8::try_from(url.len()).unwrap_or(0));
            body.extend(url.as_bytes());
        }
        body.extend(checksum(&self.prefix, &body));
        let text = format!("{TAG}{}_{}", self.prefix, BASE64URL_NOPAD.encode(&body));
        body.zeroize();
        text
    }
}

/// The hash by which an auth key pins its coordinator.
#[must_use]
pub fn pin_of(coordinator: &CoordinatorKey) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"proxima pin\0")
        .chain_update(coordinator.as_bytes())
        .finalize()
        .into()
}

/// Splits and hashes the secret of a registration: the key's public prefix and the hash to look for.
///
/// # Errors
/// [`AuthKeyError::Damaged`] when the text cannot be one.
pub fn parse_secret_text(text: &str) -> Result<(String, [u8; 32]), AuthKeyError> {
    let (prefix, secret) = text.split_once('_').ok_or(AuthKeyError::Damaged)?;
    if prefix.len() != PREFIX_LEN || text.len() > 128 {
        return Err(AuthKeyError::Damaged);
    }
    let mut secret = BASE64URL_NOPAD
        .decode(secret.as_bytes())
        .map_err(|_| AuthKeyError::Damaged)?;
    let hash = <[u8; 32]>::try_from(secret.as_slice()).map(|secret| hash_secret(prefix, &secret));
    secret.zeroize();
    Ok((prefix.to_owned(), hash.map_err(|_| AuthKeyError::Damaged)?))
}

fn hash_secret(prefix: &str, secret: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"proxima auth key\0")
        .chain_update(prefix)
        .chain_update(secret)
        .finalize()
        .into()
}

fn checksum(prefix: &str, body: &[u8]) -> [u8; 4] {
    let digest = Sha256::new()
        .chain_update(prefix)
        .chain_update(body)
        .finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

impl FromStr for AuthKey {
    type Err = AuthKeyError;

    fn from_str(text: &str) -> Result<Self, AuthKeyError> {
        let text = text.trim();
        let rest = text.strip_prefix(TAG).ok_or(AuthKeyError::NotAnAuthKey)?;
        if text.len() > TEXT_LEN_MAX {
            return Err(AuthKeyError::Damaged);
        }
        let (prefix, body) = rest.split_once('_').ok_or(AuthKeyError::Damaged)?;
        let mut body = BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| AuthKeyError::Damaged)?;
        let key = Self::from_body(prefix, &body);
        body.zeroize();
        key
    }
}

impl AuthKey {
    fn from_body(prefix: &str, body: &[u8]) -> Result<Self, AuthKeyError> {
        let (content, sum) = body.split_last_chunk::<4>().ok_or(AuthKeyError::Damaged)?;
        if prefix.len() != PREFIX_LEN || checksum(prefix, content) != *sum {
            return Err(AuthKeyError::Damaged);
        }
        let (&version, content) = content.split_first().ok_or(AuthKeyError::Damaged)?;
        if version != VERSION {
            return Err(AuthKeyError::TooNew);
        }
        let (pin, content) = content
            .split_first_chunk::<32>()
            .ok_or(AuthKeyError::Damaged)?;
        let (secret, content) = content
            .split_first_chunk::<32>()
            .ok_or(AuthKeyError::Damaged)?;
        let (&n_urls, mut content) = content.split_first().ok_or(AuthKeyError::Damaged)?;
        let mut urls = Vec::new();
        for _ in 0..n_urls {
            let (&len, rest) = content.split_first().ok_or(AuthKeyError::Damaged)?;
            let (url, rest) = rest
                .split_at_checked(usize::from(len))
                .ok_or(AuthKeyError::Damaged)?;
            urls.push(
                std::str::from_utf8(url)
                    .map_err(|_| AuthKeyError::Damaged)?
                    .to_owned(),
            );
            content = rest;
        }
        if !content.is_empty() {
            return Err(AuthKeyError::Damaged);
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            pin: *pin,
            secret: *secret,
            urls,
        })
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthKey({}…)", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::CoordinatorPrivateKey;

    fn key() -> AuthKey {
        let coordinator = CoordinatorPrivateKey::from_bytes(&[3; 32]).public();
        AuthKey::new(
            &coordinator,
            [4; 32],
            [5; 6],
            vec!["https://192.0.2.1:7443".to_owned()],
        )
    }

    #[test]
    fn a_key_survives_pasting() {
        let text = key().reveal();
        assert!(text.starts_with("pxk_"));
        let parsed: AuthKey = format!("  {text}\n").parse().unwrap();
        assert_eq!(parsed, key());
        assert_eq!(parsed.urls(), ["https://192.0.2.1:7443"]);
        let (prefix, hash) = parse_secret_text(&parsed.secret_text()).unwrap();
        assert_eq!(
            (prefix.as_str(), hash),
            (parsed.prefix(), parsed.secret_hash())
        );
    }

    #[test]
    fn every_cut_and_every_changed_character_is_noticed() {
        let text = key().reveal();
        for end in 0..text.len() {
            assert!(text[..end].parse::<AuthKey>().is_err(), "cut at {end}");
        }
        for at in 4..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed.parse::<AuthKey>().is_err(), "changed at {at}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?}", key()).contains("BAQE"));
    }
}
