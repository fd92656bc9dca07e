//! The TLS chain of those who are known by the hash of their key, coordinators and relays.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use ed25519_dalek::{Signer as _, SigningKey};
use mesh_proto::key::CoordinatorPrivateKey;
use mesh_proto::tls::COORDINATOR_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long a leaf holds.
pub const LIFETIME: Duration = Duration::from_secs(397 * 24 * 3600);
/// Nodes with clocks this far behind can still join.
const BACKDATED: Duration = Duration::from_secs(30 * 24 * 3600);

/// The coordinator key as a certificate authority. The same key always gives the same certificate.
struct Authority {
    signing: SigningKey,
    public: [u8; 32],
}

impl PublicKeyData for Authority {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Authority {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.signing.sign(message).to_bytes().to_vec())
    }
}

/// A certificate of the key and a leaf made anew, signed by it, for these hosts; the leaf first, with its private key.
///
/// # Errors
/// When a host is no name, or the TLS library refuses.
pub fn own_chain(
    key: &CoordinatorPrivateKey,
    hosts: &[String],
    now_ms: u64,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let authority = Authority {
        signing: SigningKey::from_bytes(&key.to_bytes()),
        public: *key.public().as_bytes(),
    };
    let mut root = CertificateParams::default();
    root.distinguished_name = named("Proxima coordinator key");
    root.serial_number = Some(SerialNumber::from(1));
    root.not_before = date_time_ymd(2020, 1, 1);
    root.not_after = date_time_ymd(2999, 1, 1);
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_certificate = root.self_signed(&authority)?;

    let leaf_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = named(COORDINATOR_NAME);
    leaf.subject_alt_names = vec![SanType::DnsName(COORDINATOR_NAME.try_into()?)];
    for host in hosts {
        let name = match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                host.as_str()
                    .try_into()
                    .with_context(|| format!("{host} is not a host name"))?,
            ),
        };
        leaf.subject_alt_names.push(name);
    }
    let now = date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms);
    leaf.not_before = now - BACKDATED;
    leaf.not_after = now + LIFETIME;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let leaf_certificate = leaf.signed_by(&leaf_key, &Issuer::new(root, authority))?;

    let chain = vec![
        leaf_certificate.der().clone(),
        root_certificate.der().clone(),
    ];
    Ok((chain, PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into())))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
