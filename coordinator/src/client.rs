//! How operator commands ask a coordinator: over its socket here, or over TLS with an API key.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coordinator::config::unbracketed;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::rt::{Read, Write};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use mesh_proto::auth_key::pin_of;
use mesh_proto::control::{ErrorBody, code};
use mesh_proto::key::CoordinatorKey;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};

use crate::args::Access;

const DEADLINE: Duration = Duration::from_secs(40);
/// Enough for the lists of a large mesh.
const ANSWER_LEN_MAX: usize = 256 << 20;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No coordinator answers there.
    NotRunning(String),
    /// It said no.
    Refused(ErrorBody),
    /// This user may not talk to it.
    Denied(String),
    /// Something else.
    Other(String),
}

impl Failure {
    pub(crate) fn other(err: impl std::fmt::Display) -> Self {
        Self::Other(err.to_string())
    }

    /// The documented exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning(_) => 3,
            Self::Refused(body) if body.error.code == code::NOT_FOUND => 5,
            Self::Refused(body)
                if matches!(
                    body.error.code.as_str(),
                    code::UNAUTHORIZED | code::FORBIDDEN
                ) =>
            {
                6
            }
            Self::Denied(_) => 6,
            Self::Refused(_) | Self::Other(_) => 1,
        }
    }

    pub(crate) fn message(&self) -> &str {
        match self {
            Self::NotRunning(message) | Self::Denied(message) | Self::Other(message) => message,
            Self::Refused(body) => &body.error.message,
        }
    }
}

/// Where the coordinator is.
#[derive(Debug)]
enum Target {
    Socket(PathBuf),
    Remote {
        host: String,
        port: u16,
        api_key: String,
        coordinator_key: CoordinatorKey,
    },
}

/// A way to ask the coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
}

impl Client {
    pub(crate) fn new(access: &Access) -> Result<Self, Failure> {
        let Some(url) = &access.url else {
            let socket = access
                .socket
                .clone()
                .unwrap_or_else(|| coordinator::socket_path(&access.state_dir));
            return Ok(Self {
                target: Target::Socket(socket),
            });
        };
        let (Some(file), Some(coordinator_key)) = (&access.api_key_file, access.coordinator_key)
        else {
            return Err(Failure::other(
                "--url needs --api-key-file and --coordinator-key",
            ));
        };
        let api_key = std::fs::read_to_string(file).map_err(|err| {
            Failure::Other(format!(
                "cannot read the API key file {}: {err}",
                file.display()
            ))
        })?;
        let uri: hyper::Uri = url
            .parse()
            .map_err(|_| Failure::Other(format!("not a URL: {url}")))?;
        let host = match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(host)) => unbracketed(host).to_owned(),
            _ => {
                return Err(Failure::Other(format!(
                    "the URL must begin with https://: {url}"
                )));
            }
        };
        let port = uri.port_u16().unwrap_or(443);
        Ok(Self {
            target: Target::Remote {
                host,
                port,
                api_key: api_key.trim().to_owned(),
                coordinator_key,
            },
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        parse(&self.ask(Method::GET, path, None).await?)
    }

    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(Failure::other)?;
        parse(&self.ask(method, path, Some(body)).await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.ask(Method::DELETE, path, None).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, Failure> {
        let asked = tokio::time::timeout(DEADLINE, self.ask_now(method, path, body)).await;
        asked.map_err(|_| Failure::NotRunning("the coordinator does not answer".to_owned()))?
    }

    async fn ask_now(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/json");
        request = match &self.target {
            Target::Socket(_) => request.header(HOST, "localhost"),
            Target::Remote { host, api_key, .. } => request
                .header(HOST, host)
                .header(AUTHORIZATION, format!("Bearer {api_key}")),
        };
        let request = request
            .body(Full::from(body.unwrap_or_default()))
            .map_err(Failure::other)?;
        let response = match &self.target {
            Target::Socket(path) => exchange(connect_socket(path).await?, request).await?,
            Target::Remote {
                host,
                port,
                coordinator_key,
                ..
            } => exchange(connect_tls(host, *port, coordinator_key).await?, request).await?,
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
            .collect()
            .await;
        let body = body
            .map_err(|err| Failure::Other(format!("the answer broke off: {err}")))?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(refusal) => Err(Failure::Refused(refusal)),
            Err(_) => Err(Failure::Other(format!("unexpected answer: {status}"))),
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|err| Failure::Other(format!("cannot read the coordinator's answer: {err}")))
}

async fn connect_socket(path: &Path) -> Result<UnixStream, Failure> {
    UnixStream::connect(path).await.map_err(|err| {
        if err.kind() == std::io::ErrorKind::PermissionDenied {
            return Failure::Denied(format!(
                "no permission for {}; run this as root or as the coordinator's user: sudo coordinator …",
                path.display()
            ));
        }
        Failure::NotRunning(format!(
            "no coordinator runs here ({}: {err}); start it: coordinator serve, \
             or name its state directory with --state-dir",
            path.display()
        ))
    })
}

async fn connect_tls(
    host: &str,
    port: u16,
    key: &CoordinatorKey,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failure> {
    let down = |err: std::io::Error| {
        Failure::NotRunning(format!("no coordinator is reached at {host}:{port}: {err}"))
    };
    let config = coordinator::client_config(pin_of(key)).map_err(Failure::other)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::Other(format!("not a host: {host}")))?;
    let stream = TcpStream::connect((host, port)).await.map_err(down)?;
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(down)
}

async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    TokioIo<S>: Read + Write,
{
    let failed = |err: hyper::Error| Failure::NotRunning(format!("the coordinator hung up: {err}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    // It ends with the connection, which ends with this command.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(failed)
}
