//! A coordinator as far as a link sees one: its certificates, and answers that a test gives.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_proto::PROTOCOL_VERSION;
use mesh_proto::control::{Identity, PATH_IDENTITY};
use mesh_proto::id::NetworkId;
use mesh_proto::key::CoordinatorKey;
use mesh_proto::request::NONCE_HEADER;
use mesh_proto::tls::COORDINATOR_NAME;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// A chain and the private key of its leaf.
pub(super) type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A coordinator key as an authority over certificates.
pub(super) struct Authority {
    key: CoordinatorKey,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A fresh key.
    pub(super) fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Proxima coordinator key");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self {
            key: CoordinatorKey::from_bytes(key.public_key_raw().try_into().unwrap()),
            certificate: params.self_signed(&key).unwrap(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(super) fn key(&self) -> CoordinatorKey {
        self.key
    }

    /// A new leaf, good for the year 2026, with this authority behind it.
    pub(super) fn chain(&self) -> Chain {
        self.leaf_under_the_name_of(self)
    }

    /// A leaf of this authority, with the certificate of another one behind it.
    pub(super) fn leaf_under_the_name_of(&self, shown: &Self) -> Chain {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut leaf = CertificateParams::new([COORDINATOR_NAME.to_owned()]).unwrap();
        leaf.not_before = date_time_ymd(2026, 1, 1);
        leaf.not_after = date_time_ymd(2026, 12, 31);
        let leaf = leaf.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![leaf.der().clone(), shown.certificate.der().clone()];
        (chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

type Answers = Arc<dyn Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync>;

/// A coordinator that listens. It is gone, and its connections with it, when it is dropped.
pub(super) struct Fake {
    pub(super) url: String,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _listening: AbortOnDropHandle<()>,
}

impl Fake {
    /// One that says who it is and nods at all else.
    pub(super) async fn start(authority: &Authority) -> Self {
        Self::answering(authority, |_, _| (StatusCode::NO_CONTENT, Value::Null)).await
    }

    /// One that says who it is and answers all else, by path and body, as it is told.
    pub(super) async fn answering(
        authority: &Authority,
        answers: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = Arc::new(Mutex::new(server_config(authority.chain())));
        let asked = Arc::default();
        let serving = serve(
            listener,
            Arc::clone(&config),
            authority.key(),
            Arc::new(answers),
            Arc::clone(&asked),
        );
        Self {
            url,
            config,
            asked,
            _listening: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// Shows another certificate from now on.
    pub(super) fn set_chain(&self, chain: Chain) {
        *self.config.lock().unwrap() = server_config(chain);
    }

    /// The requests so far: the path, and what of the body a test may want to see.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// A URL at which nobody listens.
pub(super) async fn dead_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("https://{}", listener.local_addr().unwrap())
}

fn server_config((chain, key): Chain) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

async fn serve(
    listener: TcpListener,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    key: CoordinatorKey,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::clone(&config.lock().unwrap()));
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
        connections.spawn(connection(stream, acceptor, key, answers, asked));
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    key: CoordinatorKey,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
) {
    // A client that does not like the certificate hangs up.
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(|request: Request<Incoming>| {
        let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let secret = if body["auth_secret"].is_string() {
                " with a secret"
            } else {
                ""
            };
            asked.lock().unwrap().push(format!("{path}{secret}"));
            let (status, answer) = if path == PATH_IDENTITY {
                (StatusCode::OK, identity(key))
            } else {
                answers(&path, &body)
            };
            let text = if answer.is_null() {
                String::new()
            } else {
                answer.to_string()
            };
            let answer = Response::builder()
                .status(status)
                .header(NONCE_HEADER, "nonce")
                .body(Full::new(Bytes::from(text)));
            Ok::<_, hyper::Error>(answer.unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn identity(key: CoordinatorKey) -> Value {
    json!(Identity {
        coordinator_key: key,
        network_id: NetworkId::of(&key),
        protocol_version: PROTOCOL_VERSION,
        version: "0.1.0".to_owned(),
    })
}
