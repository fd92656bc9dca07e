//! TLS to a coordinator: its own key, pinned by the auth key, or a public certificate.
//!
//! A coordinator with a certificate of its own presents `[leaf, authority]`, where the authority is self-signed by the
//! coordinator key. The pin picks the authority, and the authority vouches for the leaf under one fixed name, so the URL
//! may hold any address.

use std::sync::Arc;

use mesh_proto::tls::{COORDINATOR_NAME, is_pinned};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

pub(super) fn config(pin: [u8; 32]) -> Result<Arc<ClientConfig>, String> {
    config_at(pin, Arc::new(DefaultTimeProvider))
}

/// The same by another clock than this machine's.
pub(super) fn config_at(
    pin: [u8; 32],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = PinnedVerifier {
        pin,
        public: public_verifier(&provider),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|err| err.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Checks public certificates by the system's authorities; `None` on a machine that has none.
fn public_verifier(provider: &Arc<CryptoProvider>) -> Option<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return None;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .ok()
}

#[derive(Debug)]
struct PinnedVerifier {
    pin: [u8; 32],
    public: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    /// A store with the one authority that the pin names.
    fn pinned_root(&self, chain: &[CertificateDer<'_>]) -> Option<RootCertStore> {
        chain.iter().find_map(|cert| {
            let mut store = RootCertStore::empty();
            store.add(cert.clone().into_owned()).ok()?;
            let key_info = &store.roots.first()?.subject_public_key_info;
            is_pinned(key_info, &self.pin).then_some(store)
        })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(root) = self.pinned_root(chain) else {
            let public = self
                .public
                .as_ref()
                .ok_or(CertificateError::UnknownIssuer)?;
            return public.verify_server_cert(leaf, chain, server_name, ocsp, now);
        };
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(root), Arc::clone(&self.provider))
                .build()
                .map_err(|err| rustls::Error::General(err.to_string()))?;
        let name = ServerName::try_from(COORDINATOR_NAME)
            .map_err(|err| rustls::Error::General(err.to_string()))?;
        let verify = |now| verifier.verify_server_cert(leaf, chain, &name, ocsp, now);
        // The pin is the proof, not the date: a machine whose clock is wrong must get in all the same. A leaf's own key
        // lives in its coordinator's memory alone, beside the coordinator key, and is no older than its last start.
        match verify(now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => verify(not_before),
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after,
                ..
            })) => verify(not_after),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
