//! Identifiers: who a node is, which mesh it is in, whose it is.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE32_NOPAD, Encoding};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::key::{CoordinatorKey, MachineKey};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has another length or alphabet than the identifier.
    #[error("{what} must be {expected}")]
    Malformed {
        /// The kind of identifier that was expected.
        what: &'static str,
        /// What it must look like.
        expected: &'static str,
    },
}

/// Writes bytes in an encoding, in which they have `N` characters. No memory is asked for: usage records hold many of these.
pub(crate) fn write_encoded<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    encoding: &Encoding,
    bytes: &[u8],
) -> fmt::Result {
    let mut text = [0; N];
    encoding.encode_mut(bytes, &mut text);
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

macro_rules! text_form {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}
pub(crate) use text_form;

macro_rules! base32_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name([u8; $len]);

        impl $name {
            /// Takes the identifier's own bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The identifier's bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // No memory is asked for: usage records hold many of these.
                let mut text = [0; ($len * 8usize).div_ceil(5)];
                BASE32_NOPAD.encode_mut(&self.0, &mut text);
                text.make_ascii_lowercase();
                f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let malformed = || IdError::Malformed { what: $what, expected: $expected };
                let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| malformed())?;
                Ok(Self(bytes.try_into().map_err(|_| malformed())?))
            }
        }

        text_form!($name);
    };
}

base32_id!(
    /// A node, for ever: the first 80 bits of the hash of its machine key, 16 base32 characters.
    ///
    /// It is also the host part of the node's IPv6 overlay address.
    NodeId, 10, "a node id", "16 characters of a-z and 2-7"
);

base32_id!(
    /// A mesh: the hash of its first coordinator key, 26 base32 characters.
    NetworkId, 16, "a network id", "26 characters of a-z and 2-7"
);

base32_id!(
    /// A relay, 16 base32 characters: the first 80 bits of the hash of its pin and its first URL.
    RelayId, 10, "a relay id", "16 characters of a-z and 2-7"
);

impl RelayId {
    /// The id of the relay that has this key's hash ([`crate::auth_key::pin_of`]) and is reached by this URL first.
    #[must_use]
    pub fn of(pin: &[u8; 32], url: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(b"proxima relay id\0")
            .chain_update(pin)
            .chain_update(url)
            .finalize();
        let mut id = [0; 10];
        id.copy_from_slice(&digest[..10]);
        Self(id)
    }
}

impl NodeId {
    /// The id that belongs to a machine key.
    #[must_use]
    pub fn of(machine_key: &MachineKey) -> Self {
        let digest = Sha256::new()
            .chain_update(b"proxima node id\0")
            .chain_update(machine_key.as_bytes())
            .finalize();
        let mut id = [0; 10];
        id.copy_from_slice(&digest[..10]);
        Self(id)
    }
}

/// Second octets of 10.0.0.0/8 that common software claims: container networks, Kubernetes defaults, home routers.
const CROWDED_OCTETS: [u8; 12] = [0, 1, 2, 8, 10, 42, 43, 88, 96, 100, 152, 244];

impl NetworkId {
    /// The id of the mesh that this coordinator key founds.
    #[must_use]
    pub fn of(first_coordinator_key: &CoordinatorKey) -> Self {
        let digest = Sha256::new()
            .chain_update(b"proxima network id\0")
            .chain_update(first_coordinator_key.as_bytes())
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// The mesh's unique local IPv6 prefix (RFC 4193): `fd`, then 40 bits of the id.
    #[must_use]
    pub fn ipv6_prefix(&self) -> Ipv6Net {
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&self.0[..5]);
        Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
    }

    /// The IPv4 pool that the mesh takes when its operator names none: a /16 of 10.0.0.0/8.
    #[must_use]
    pub fn default_ipv4_pool(&self) -> Ipv4Net {
        let octet = self.0[5..]
            .iter()
            .copied()
            .find(|octet| !CROWDED_OCTETS.contains(octet))
            .unwrap_or(77);
        Ipv4Net::new_assert(Ipv4Addr::new(10, octet, 0, 0), 16)
    }

    /// The IPv6 overlay address of a node: the mesh's prefix, then the node id.
    #[must_use]
    pub fn ipv6_of(&self, node: &NodeId) -> Ipv6Addr {
        let mut octets = self.ipv6_prefix().network().octets();
        octets[6..].copy_from_slice(node.as_bytes());
        Ipv6Addr::from(octets)
    }

    /// The IPv6 service address, `<prefix>::53`.
    #[must_use]
    pub fn service_ipv6(&self) -> Ipv6Addr {
        let mut octets = self.ipv6_prefix().network().octets();
        octets[15] = 0x53;
        Ipv6Addr::from(octets)
    }
}

/// The IPv4 service address of a pool, `x.y.0.53`.
#[must_use]
pub fn service_ipv4(pool: Ipv4Net) -> Ipv4Addr {
    let [a, b, c, _] = pool.network().octets();
    Ipv4Addr::new(a, b, c, 53)
}

/// A user's number; names may change, this does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct UserId(pub i64);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::Malformed { what: $what, expected: $expected })
                }
            }
        }

        text_form!($name);
    };
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

label!(
    /// A node's name: one DNS label, unique in its mesh; `gpu1` is reached as `gpu1.node.proxima`.
    NodeName, "a node name", "1 to 63 characters of a-z, 0-9 and -, not beginning or ending with -", is_dns_label
);

label!(
    /// A machine identity that replaces a user, such as `tag:lab`.
    Tag, "a tag", "`tag:` and then 1 to 59 characters of a-z, 0-9 and -", |text: &str| {
        text.strip_prefix("tag:").is_some_and(|rest| rest.len() <= 59 && is_dns_label(rest))
    }
);

label!(
    /// A user's name in its mesh.
    UserName, "a user name", "1 to 63 characters of a-z, 0-9 and . _ @ + -", |text: &str| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@+-".contains(&b))
    }
);

impl NodeName {
    /// Makes a valid name out of a machine's host name: folded to one DNS label, `node` when nothing is left.
    #[must_use]
    pub fn from_hostname(hostname: &str) -> Self {
        let first = hostname.split('.').next().unwrap_or_default();
        let mut label = crate::name::fold(first);
        label.truncate(50);
        let label = label.trim_matches('-');
        Self(if label.is_empty() { "node" } else { label }.into())
    }

    /// This name with a number behind it, for when the plain one is taken.
    #[must_use]
    pub fn numbered(&self, n: u32) -> Self {
        Self(format!("{}-{n}", self.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let id = NodeId::from_bytes([7; 10]);
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<NodeId>(), Ok(id));
        assert!("short".parse::<NodeId>().is_err());
        let network = NetworkId::from_bytes([9; 16]);
        assert_eq!(network.to_string().parse::<NetworkId>(), Ok(network));
    }

    #[test]
    fn addresses_come_from_the_ids() {
        let network = NetworkId::from_bytes([0xab; 16]);
        let node = NodeId::from_bytes([0x11; 10]);
        assert_eq!(network.ipv6_prefix().to_string(), "fdab:abab:abab::/48");
        assert_eq!(
            network.ipv6_of(&node).to_string(),
            "fdab:abab:abab:1111:1111:1111:1111:1111"
        );
        assert_eq!(network.service_ipv6().to_string(), "fdab:abab:abab::53");
        assert_eq!(
            service_ipv4(network.default_ipv4_pool()).to_string(),
            "10.171.0.53"
        );
    }

    #[test]
    fn a_crowded_octet_is_never_picked() {
        for octet in CROWDED_OCTETS {
            let mut bytes = [octet; 16];
            bytes[15] = 171;
            assert_eq!(
                NetworkId::from_bytes(bytes).default_ipv4_pool().to_string(),
                "10.171.0.0/16"
            );
        }
    }

    #[test]
    fn names_are_checked_and_made() {
        assert!("gpu1".parse::<NodeName>().is_ok());
        assert!("-gpu".parse::<NodeName>().is_err());
        assert!("GPU".parse::<NodeName>().is_err());
        assert_eq!(
            NodeName::from_hostname("Anna's PC.local").as_str(),
            "anna-s-pc"
        );
        assert_eq!(NodeName::from_hostname("___").as_str(), "node");
        assert!("tag:lab".parse::<Tag>().is_ok());
        assert!("lab".parse::<Tag>().is_err());
    }
}
