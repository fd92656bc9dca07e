//! Keys: what proves a machine, a tunnel end and a coordinator. Private halves redact themselves and are wiped on drop.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::id::{text_form, write_encoded};

/// Why a key or signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not a key of this kind.
    #[error("not a key: expected `{prefix}` and 43 characters of base64url")]
    Malformed {
        /// The prefix that the kind of key begins with.
        prefix: &'static str,
    },
    /// The bytes are not a point on the curve.
    #[error("not a valid public key")]
    Invalid,
    /// The signature does not belong to this key and message.
    #[error("the signature does not match")]
    BadSignature,
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name([u8; 32]);

        impl $name {
            /// What the text form begins with.
            pub const PREFIX: &'static str = $prefix;

            /// Takes the raw key.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw key.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_encoded::<43>(f, &BASE64URL_NOPAD, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                let malformed = KeyError::Malformed { prefix: $prefix };
                let body = text.strip_prefix($prefix).ok_or(malformed)?;
                let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| malformed)?;
                Ok(Self(bytes.try_into().map_err(|_| malformed)?))
            }
        }

        text_form!($name);
    };
}

public_key!(
    /// The public half of a machine key (Ed25519): the node's identity.
    MachineKey, "mk:"
);
public_key!(
    /// The public half of a node key (X25519): the WireGuard static key of a node.
    NodeKey, "nk:"
);
public_key!(
    /// The public half of a disco key (X25519): seals path discovery ([`crate::disco`]).
    DiscoKey, "dk:"
);
public_key!(
    /// The public half of a coordinator key (Ed25519): signs netmaps.
    CoordinatorKey, "ck:"
);

/// An Ed25519 signature over a message with a context string in front.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Signature([u8; 64]);

impl Signature {
    /// The raw signature.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| KeyError::BadSignature)?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError::BadSignature)?))
    }
}

text_form!(Signature);

/// What a signature is for. Two purposes never share a message, so one can never be passed off as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request of a node to its coordinator ([`crate::request`]).
    Request,
    /// A machine key vouches for a node key.
    NodeKey,
    /// A coordinator vouches for a map frame ([`crate::netmap`]).
    MapFrame,
    /// A coordinator vouches for whom a relay serves ([`crate::relay`]).
    Members,
}

impl Purpose {
    const fn context(self) -> &'static [u8] {
        match self {
            Self::Request => b"proxima request v1\0",
            Self::NodeKey => b"proxima node key v1\0",
            Self::MapFrame => b"proxima map frame v1\0",
            Self::Members => b"proxima relay members v1\0",
        }
    }

    fn message(self, body: &[u8]) -> Vec<u8> {
        [self.context(), body].concat()
    }
}

fn sign(key: &SigningKey, purpose: Purpose, body: &[u8]) -> Signature {
    Signature(key.sign(&purpose.message(body)).to_bytes())
}

fn verify(
    key: &[u8; 32],
    purpose: Purpose,
    body: &[u8],
    signature: &Signature,
) -> Result<(), KeyError> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| KeyError::Invalid)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(&purpose.message(body), &signature)
        .map_err(|_| KeyError::BadSignature)
}

macro_rules! signing_key {
    ($(#[$doc:meta])* $private:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $private(SigningKey);

        impl $private {
            /// Takes 32 bytes of secret; draw them from the system's random source.
            #[must_use]
            pub fn from_bytes(secret: &[u8; 32]) -> Self {
                Self(SigningKey::from_bytes(secret))
            }

            /// The secret, for storing it.
            #[must_use]
            pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
                Zeroizing::new(self.0.to_bytes())
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public::from_bytes(self.0.verifying_key().to_bytes())
            }

            /// Signs a message for one purpose.
            #[must_use]
            pub fn sign(&self, purpose: Purpose, body: &[u8]) -> Signature {
                sign(&self.0, purpose, body)
            }
        }

        impl fmt::Debug for $private {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($private), "([redacted])"))
            }
        }

        impl $public {
            /// Checks a signature made by the private half for the same purpose.
            ///
            /// # Errors
            /// [`KeyError::Invalid`] when this is no key, [`KeyError::BadSignature`] when it did not sign this.
            pub fn verify(&self, purpose: Purpose, body: &[u8], signature: &Signature) -> Result<(), KeyError> {
                verify(self.as_bytes(), purpose, body, signature)
            }
        }
    };
}

signing_key!(
    /// The private machine key. Never leaves its machine.
    MachinePrivateKey, MachineKey
);
signing_key!(
    /// The private coordinator key. Never leaves its coordinator.
    CoordinatorPrivateKey, CoordinatorKey
);

macro_rules! agreement_key {
    ($(#[$doc:meta])* $private:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $private(x25519_dalek::StaticSecret);

        impl $private {
            /// Takes 32 bytes of secret; draw them from the system's random source.
            #[must_use]
            pub fn from_bytes(secret: [u8; 32]) -> Self {
                Self(x25519_dalek::StaticSecret::from(secret))
            }

            /// The secret as the layer above takes it.
            #[must_use]
            pub const fn secret(&self) -> &x25519_dalek::StaticSecret {
                &self.0
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public::from_bytes(x25519_dalek::PublicKey::from(&self.0).to_bytes())
            }
        }

        impl fmt::Debug for $private {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($private), "([redacted])"))
            }
        }
    };
}

agreement_key!(
    /// The private node key: the WireGuard static secret. Never leaves its machine.
    NodePrivateKey, NodeKey
);
agreement_key!(
    /// The private disco key. Never leaves its machine.
    DiscoPrivateKey, DiscoKey
);

impl NodePrivateKey {
    /// The secret, for storing it.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_form_and_kinds_do_not_mix() {
        let key = MachinePrivateKey::from_bytes(&[1; 32]).public();
        assert_eq!(key.to_string().parse::<MachineKey>(), Ok(key));
        assert!(key.to_string().parse::<NodeKey>().is_err());
        assert!("mk:AAAA".parse::<MachineKey>().is_err());
    }

    #[test]
    fn a_signature_holds_for_its_purpose_key_and_message_alone() {
        let private = MachinePrivateKey::from_bytes(&[1; 32]);
        let public = private.public();
        let signature = private.sign(Purpose::Request, b"hello");
        assert_eq!(
            public.verify(Purpose::Request, b"hello", &signature),
            Ok(())
        );
        assert_eq!(
            public.verify(Purpose::NodeKey, b"hello", &signature),
            Err(KeyError::BadSignature)
        );
        assert_eq!(
            public.verify(Purpose::Request, b"hellp", &signature),
            Err(KeyError::BadSignature)
        );
        let other = MachinePrivateKey::from_bytes(&[2; 32]).public();
        assert_eq!(
            other.verify(Purpose::Request, b"hello", &signature),
            Err(KeyError::BadSignature)
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!(
            "{:?}",
            (
                MachinePrivateKey::from_bytes(&[1; 32]),
                NodePrivateKey::from_bytes([1; 32]),
                DiscoPrivateKey::from_bytes([1; 32])
            )
        );
        assert_eq!(
            text,
            "(MachinePrivateKey([redacted]), NodePrivateKey([redacted]), DiscoPrivateKey([redacted]))"
        );
    }
}
