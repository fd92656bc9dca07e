//! TLS of the coordinator: a chain of its own, pinned by auth keys, or the operator's certificate files.
//!
//! Its own chain is a leaf made anew at each start, signed by a certificate of the coordinator key. Nodes pin that key by
//! its hash in their auth key, so neither a public authority nor a kept file is needed.

pub(crate) mod pin;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use mesh_proto::key::CoordinatorPrivateKey;
use mesh_relay::chain::{LIFETIME, own_chain};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::clock::unix_ms;

/// A leaf is made anew when this much of its life is left.
const LEAF_MARGIN: Duration = Duration::from_secs(60 * 24 * 3600);

/// The certificate in use, replaceable while connections go on.
#[derive(Debug)]
pub(crate) struct Tls {
    source: Source,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    renew_at_ms: ArcSwap<u64>,
}

#[derive(Debug)]
enum Source {
    Own {
        key: CoordinatorPrivateKey,
        hosts: Vec<String>,
    },
    Files {
        cert: PathBuf,
        key: PathBuf,
    },
}

impl Tls {
    /// A chain of the coordinator key, for these hosts.
    pub(crate) fn own(key: CoordinatorPrivateKey, hosts: Vec<String>) -> anyhow::Result<Arc<Self>> {
        Self::new(Source::Own { key, hosts })
    }

    /// The operator's files.
    pub(crate) fn files(cert: PathBuf, key: PathBuf) -> anyhow::Result<Arc<Self>> {
        Self::new(Source::Files { cert, key })
    }

    fn new(source: Source) -> anyhow::Result<Arc<Self>> {
        let provider = Arc::new(ring::default_provider());
        let current = ArcSwap::from(load(&source, &provider)?);
        Ok(Arc::new(Self {
            source,
            provider,
            current,
            renew_at_ms: ArcSwap::from_pointee(renewal()),
        }))
    }

    /// The server's side.
    pub(crate) fn server_config(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Reads files again, and makes an own leaf anew that nears its end. What is in use stays when that fails.
    pub(crate) fn refresh(&self) {
        let is_due = match &self.source {
            Source::Own { .. } => unix_ms() >= **self.renew_at_ms.load(),
            Source::Files { .. } => true,
        };
        if !is_due {
            return;
        }
        match load(&self.source, &self.provider) {
            Ok(certified) => {
                self.current.store(certified);
                self.renew_at_ms.store(Arc::new(renewal()));
            }
            Err(err) => tracing::warn!(
                err = format!("{err:#}"),
                "cannot renew the TLS certificate; the old one stays"
            ),
        }
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn renewal() -> u64 {
    unix_ms().saturating_add(crate::clock::to_ms(LIFETIME - LEAF_MARGIN))
}

fn load(source: &Source, provider: &CryptoProvider) -> anyhow::Result<Arc<CertifiedKey>> {
    let (chain, key) = match source {
        Source::Own { key, hosts } => own_chain(key, hosts, unix_ms())?,
        Source::Files { cert, key } => read_files(cert, key)?,
    };
    let certified = CertifiedKey::from_der(chain, key, provider)
        .context("the TLS certificate and key cannot be used")?;
    Ok(Arc::new(certified))
}

fn read_files(
    cert: &Path,
    key: &Path,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read the certificate chain {}", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| {
        format!(
            "cannot read the certificate's private key {}",
            key.display()
        )
    })?;
    Ok((chain, key))
}
