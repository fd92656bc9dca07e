//! The control protocol from the node's side, for nodes that are not `meshd`: pinned TLS, signed requests, map streams.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::{
    Beat, ErrorBody, MAP_CONTENT_TYPE, NodeUpdate, PATH_BEAT, PATH_IDENTITY, PATH_MAP,
    PATH_REGISTER, PATH_UPDATE, RegisterRequest, RegisterResponse,
};
use mesh_proto::key::{MachinePrivateKey, NodeKey, Purpose};
use mesh_proto::netmap::{MapBody, MapFrame, Netmap};
use mesh_proto::request::{NONCE_HEADER, RequestProof};
use mesh_proto::share::HostOffers;
use mesh_proto::tls::{COORDINATOR_NAME, is_pinned};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;

/// Why a registration did not come about.
#[derive(Debug)]
pub enum Refusal {
    /// The coordinator said no, with one of its codes.
    Code(String),
    /// No answer, or none that makes sense.
    Other(anyhow::Error),
}

impl Refusal {
    /// The same as an error, of who was refused.
    #[must_use]
    pub fn of(self, name: &str) -> anyhow::Error {
        match self {
            Self::Code(code) => anyhow!("{name} is refused: {code}"),
            Self::Other(err) => err.context(name.to_owned()),
        }
    }
}

/// One connection to a coordinator.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    machine_key: MachinePrivateKey,
    nonce: String,
    authority: String,
}

/// A registered node's view of the mesh, kept up to date by its stream.
#[derive(Debug)]
pub struct MapStream {
    body: Incoming,
    pending: Vec<u8>,
    registration: RegisterResponse,
    map: Option<Netmap>,
}

/// 32 bytes from the system.
///
/// # Errors
/// When there is no random device.
pub fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    /// Connects to the first coordinator of an auth key and checks its pin.
    ///
    /// # Errors
    /// When it is not reached or is not the one of the key.
    pub async fn connect(auth_key: &AuthKey, machine_key: MachinePrivateKey) -> Result<Self> {
        let url = auth_key
            .urls()
            .first()
            .context("the key names no coordinator")?;
        let authority = url.strip_prefix("https://").context("not https")?;
        let authority = authority.trim_end_matches('/').to_owned();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                pin: *auth_key.pin(),
                provider,
            }))
            .with_no_client_auth();
        let stream = TcpStream::connect(&authority).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(ServerName::try_from(COORDINATOR_NAME)?, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; its errors reach the requests.
        tokio::spawn(connection);
        let mut client = Self {
            sender,
            machine_key,
            nonce: String::new(),
            authority,
        };
        let request = Request::get(PATH_IDENTITY)
            .header("host", &client.authority)
            .body(Full::default())?;
        let answer = client.sender.send_request(request).await?;
        client.keep_nonce(&answer);
        answer.into_body().collect().await?;
        ensure!(!client.nonce.is_empty(), "the coordinator gave no nonce");
        Ok(client)
    }

    fn keep_nonce(&mut self, answer: &Response<Incoming>) {
        let nonce = answer.headers().get(NONCE_HEADER);
        if let Some(nonce) = nonce.and_then(|nonce| nonce.to_str().ok()) {
            nonce.clone_into(&mut self.nonce);
        }
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>> {
        let proof = RequestProof::sign(&self.machine_key, method, path, &body, &self.nonce);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("authorization", proof.to_header())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        // The connection may not have noticed yet that the answer before was read to its end.
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        self.keep_nonce(&answer);
        Ok(answer)
    }

    /// Registers a tunnel key.
    ///
    /// # Errors
    /// [`Refusal::Code`] when the coordinator says no.
    pub async fn register(
        &mut self,
        auth_key: &AuthKey,
        node_key: NodeKey,
        hostname: &str,
    ) -> Result<RegisterResponse, Refusal> {
        let request = RegisterRequest {
            auth_secret: Some(auth_key.secret_text()),
            node_key,
            node_key_signature: self.machine_key.sign(Purpose::NodeKey, node_key.as_bytes()),
            hostname: hostname.to_owned(),
            os: "linux".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.try_register(&request).await
    }

    async fn try_register(
        &mut self,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, Refusal> {
        let body = serde_json::to_vec(request).map_err(|err| Refusal::Other(err.into()))?;
        let answer = self
            .send("POST", PATH_REGISTER, body)
            .await
            .map_err(Refusal::Other)?;
        let is_ok = answer.status().is_success();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|err| Refusal::Other(err.into()))?.to_bytes();
        if is_ok {
            return serde_json::from_slice(&body).map_err(|err| Refusal::Other(err.into()));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => Err(Refusal::Code(error.error.code)),
            Err(err) => Err(Refusal::Other(err.into())),
        }
    }

    /// Tells where this node is reached.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn report_endpoint(&mut self, endpoint: SocketAddr) -> Result<()> {
        self.report(&NodeUpdate {
            endpoints: Some(vec![endpoint]),
            ..NodeUpdate::default()
        })
        .await
    }

    /// Tells what this node shares.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn report_offers(&mut self, offers: HostOffers) -> Result<()> {
        self.report(&NodeUpdate {
            offers: Some(offers),
            ..NodeUpdate::default()
        })
        .await
    }

    /// Tells that this host lives.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn beat(&mut self) -> Result<()> {
        let beat = serde_json::to_vec(&Beat::default())?;
        self.tell(PATH_BEAT, beat).await
    }

    async fn report(&mut self, update: &NodeUpdate) -> Result<()> {
        self.tell(PATH_UPDATE, serde_json::to_vec(update)?).await
    }

    async fn tell(&mut self, path: &str, body: Vec<u8>) -> Result<()> {
        let answer = self.send("POST", path, body).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }

    /// Opens the map stream; this connection can do nothing else then.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn map_stream(mut self, registration: RegisterResponse) -> Result<MapStream> {
        let path = format!("{PATH_MAP}?epoch=0&version=0");
        let answer = self.send("GET", &path, Vec::new()).await?;
        ensure!(
            answer.status().is_success(),
            "map stream: {}",
            answer.status()
        );
        let content_type = answer.headers().get("content-type").cloned();
        ensure!(
            content_type
                .as_ref()
                .is_some_and(|kind| kind == MAP_CONTENT_TYPE),
            "map stream: content type {content_type:?}"
        );
        Ok(MapStream {
            body: answer.into_body(),
            pending: Vec::new(),
            registration,
            map: None,
        })
    }
}

impl MapStream {
    /// Waits for the next change and gives the map after it.
    ///
    /// # Errors
    /// When the stream ends, or a line is not signed for this node.
    pub async fn next(&mut self) -> Result<&Netmap> {
        loop {
            let line = self.next_line().await?;
            let frame = MapFrame::from_line(
                &line,
                &self.registration.coordinator_key,
                &self.registration.node_id,
            )?;
            match frame.body {
                MapBody::Full(map) => self.map = Some(*map),
                MapBody::Delta { delta, .. } => {
                    self.map
                        .as_mut()
                        .context("a delta before any map")?
                        .apply(*delta);
                }
                MapBody::Heartbeat {} => continue,
            }
            break;
        }
        self.map.as_ref().context("no map")
    }

    /// The map as of the last change.
    #[must_use]
    pub const fn map(&self) -> Option<&Netmap> {
        self.map.as_ref()
    }

    /// Waits for the next piece and throws it away.
    ///
    /// # Errors
    /// When the stream ends.
    pub async fn skip(&mut self) -> Result<()> {
        let frame = self.body.frame().await;
        frame.context("the map stream ended")??;
        Ok(())
    }

    async fn next_line(&mut self) -> Result<String> {
        // A full map comes in many pieces: each is looked at once.
        let mut looked_at = 0;
        loop {
            let new = self.pending.get(looked_at..).unwrap_or_default();
            let end = new.iter().position(|&byte| byte == b'\n');
            if let Some(end) = end.map(|end| looked_at + end) {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8(line)?);
            }
            looked_at = self.pending.len();
            let Some(frame) = self.body.frame().await else {
                bail!("the map stream ended");
            };
            if let Ok(data) = frame?.into_data() {
                self.pending.extend(data);
            }
        }
    }
}

/// Trusts the chain that the pinned coordinator key signed, whatever host it came from.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = || rustls::Error::General("not the coordinator of the auth key".to_owned());
        let mut roots = RootCertStore::empty();
        for cert in intermediates {
            roots.add(cert.clone().into_owned())?;
        }
        roots
            .roots
            .retain(|root| is_pinned(&root.subject_public_key_info, &self.pin));
        if roots.is_empty() {
            return Err(wrong());
        }
        let name = ServerName::try_from(COORDINATOR_NAME).map_err(|_| wrong())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|err| rustls::Error::General(err.to_string()))?
            .verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
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
