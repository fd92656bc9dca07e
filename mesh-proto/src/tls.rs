//! What a coordinator's own certificates say, for those who make them and those who verify them by an auth key's pin.
//!
//! The handshake is a TLS library's work and stays in the programs.

use crate::auth_key::pin_of;
use crate::key::CoordinatorKey;

/// The name in every certificate that a coordinator makes by itself, whatever its address: who pins the key verifies this
/// one.
pub const COORDINATOR_NAME: &str = "coordinator.proxima.internal";

/// An Ed25519 `SubjectPublicKeyInfo` up to the key itself, without the outer sequence (RFC 8410, section 4).
const ED25519_KEY_INFO: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Whether the key of a certificate is the coordinator key that an auth key pins. `key_info` is the content of its
/// `SubjectPublicKeyInfo`, without the outer sequence.
#[must_use]
pub fn is_pinned(key_info: &[u8], pin: &[u8; 32]) -> bool {
    let key = key_info.strip_prefix(&ED25519_KEY_INFO);
    key.and_then(|key| <[u8; 32]>::try_from(key).ok())
        .is_some_and(|key| pin_of(&CoordinatorKey::from_bytes(key)) == *pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_pinned_key_of_the_right_kind_is_the_one() {
        let key = CoordinatorKey::from_bytes([7; 32]);
        let pin = pin_of(&key);
        let info = [&ED25519_KEY_INFO[..], key.as_bytes()].concat();
        assert!(is_pinned(&info, &pin));
        assert!(!is_pinned(
            &info,
            &pin_of(&CoordinatorKey::from_bytes([8; 32]))
        ));
        assert!(!is_pinned(&info[..41], &pin), "cut");
        assert!(!is_pinned(&[&info[..], &[0]].concat(), &pin), "longer");
        assert!(!is_pinned(key.as_bytes(), &pin), "no kind");
        let mut x25519 = info;
        // id-X25519 is 1.3.101.110, id-Ed25519 1.3.101.112.
        x25519[6] = 0x6e;
        assert!(!is_pinned(&x25519, &pin), "another kind");
        assert!(!is_pinned(&[], &pin));
    }
}
