//! Verifying a coordinator by its pinned key, as a client.

use std::sync::Arc;

use mesh_proto::tls::{COORDINATOR_NAME, is_pinned};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Accepts a chain that the pinned coordinator key signed, whatever host it was reached by.
#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

/// A client that trusts the coordinator with the pinned key alone.
///
/// # Errors
/// When the TLS library refuses the settings.
pub fn client_config(pin: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = PinVerifier {
        pin,
        provider: Arc::clone(&provider),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

impl PinVerifier {
    /// A store of the one certificate in the chain that carries the pinned key.
    fn roots(&self, chain: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        for certificate in chain {
            let mut roots = RootCertStore::empty();
            if roots.add(certificate.clone().into_owned()).is_err() {
                continue;
            }
            let mut anchors = roots.roots.iter();
            if anchors.any(|root| is_pinned(&root.subject_public_key_info, &self.pin)) {
                return Ok(roots);
            }
        }
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|err| Error::General(err.to_string()))?;
        let name = ServerName::try_from(COORDINATOR_NAME)
            .map_err(|err| Error::General(err.to_string()))?;
        let verify =
            |now| verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now);
        // The pin is the proof, not the date: an operator's clock may be wrong, or the coordinator's.
        match verify(now) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => verify(not_before),
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => verify(not_after),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
