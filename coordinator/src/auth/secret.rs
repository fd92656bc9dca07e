//! Secrets as they are drawn: auth keys by [`mesh_proto::auth_key`], API keys here. Only their hashes are kept.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// What an API key begins with.
const API_KEY_TAG: &str = "pxa_";
const API_KEY_LEN_MAX: usize = 128;

/// The system gives no random bytes; nothing safe can be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub(crate) struct NoRandomness;

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// A new API key: the text to show once, its public prefix, and the hash to keep.
pub(crate) struct NewApiKeySecret {
    pub(crate) text: String,
    pub(crate) prefix: String,
    pub(crate) hash: [u8; 32],
}

/// Draws an API key.
pub(crate) fn new_api_key() -> Result<NewApiKeySecret, NoRandomness> {
    let prefix = BASE32_NOPAD.encode(&random::<6>()?).to_ascii_lowercase();
    let secret = Zeroizing::new(random::<32>()?);
    let text = format!(
        "{API_KEY_TAG}{prefix}_{}",
        BASE64URL_NOPAD.encode(secret.as_slice())
    );
    let hash = hash_api_key(&text);
    Ok(NewApiKeySecret { text, prefix, hash })
}

/// The prefix of an API key as presented, and its hash; `None` for what cannot be one.
pub(crate) fn parse_api_key(text: &str) -> Option<(&str, [u8; 32])> {
    if text.len() > API_KEY_LEN_MAX {
        return None;
    }
    let (prefix, _) = text.strip_prefix(API_KEY_TAG)?.split_once('_')?;
    Some((prefix, hash_api_key(text)))
}

fn hash_api_key(text: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"proxima api key\0")
        .chain_update(text)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_key_is_found_by_its_prefix_and_known_by_its_hash() {
        let key = new_api_key().unwrap();
        let (prefix, hash) = parse_api_key(&key.text).unwrap();
        assert_eq!((prefix, hash), (key.prefix.as_str(), key.hash));
        let other = key.text.replace(prefix, "aaaaaaaaaa");
        assert_ne!(parse_api_key(&other).unwrap().1, key.hash);
        assert_eq!(parse_api_key("pxk_abc_def"), None);
        assert_eq!(parse_api_key("pxa_"), None);
    }
}
