//! Talks to `meshd` over its control socket: one HTTP/1.1 call a connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use mesh_proto::control::{ErrorBody, code};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit::{Exit, Failure};
use crate::start;

/// A map of ten thousand nodes as status is below 8 MiB.
const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;
/// For calls that only read what the daemon knows.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to one `meshd`.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether anything listens on the socket.
    pub(crate) async fn is_up(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        parse(&self.call(Method::GET, path, None, CALL_TIMEOUT).await?)
    }

    /// Like [`Self::get`] for a call that the daemon answers only after a while.
    pub(crate) async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, Failure> {
        parse(
            &self
                .call(Method::GET, path, None, limit + CALL_TIMEOUT)
                .await?,
        )
    }

    pub(crate) async fn get_text(&self, path: &str) -> Result<String, Failure> {
        let bytes = self.call(Method::GET, path, None, CALL_TIMEOUT).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) async fn post<B, T>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, Failure>
    where
        B: Serialize + Sync,
        T: DeserializeOwned,
    {
        let body = serde_json::to_vec(body).map_err(|err| Failure::failed(err.to_string()))?;
        parse(
            &self
                .call(Method::POST, path, Some(body), limit + CALL_TIMEOUT)
                .await?,
        )
    }

    /// Posts nothing and expects nothing but success.
    pub(crate) async fn post_empty(&self, path: &str) -> Result<(), Failure> {
        self.call(Method::POST, path, None, CALL_TIMEOUT)
            .await
            .map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Bytes, Failure> {
        tokio::time::timeout(limit, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Exit::NotFound,
                    "timeout",
                    format!(
                        "meshd took the call and did not answer within {} s",
                        limit.as_secs()
                    ),
                )
                .with_fix_note("journalctl -u meshd -n 50", "what it is busy with"))
            })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|err| self.unreachable(&err))?;
        let broken = |err: hyper::Error| {
            Failure::failed(format!(
                "meshd broke off the call ({err}); is it being restarted?"
            ))
            .with_fix("meshctl status")
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|err| Failure::failed(err.to_string()))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let bytes = Limited::new(answer.into_body(), ANSWER_LEN_MAX)
                .collect()
                .await
                .map_err(|err| Failure::failed(format!("meshd broke off its answer ({err})")))?
                .to_bytes();
            Ok((status, bytes))
        };
        // The connection moves while the exchange waits; when it ends first, the exchange says how.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        let (status, bytes) = tokio::select! {
            done = &mut exchange => done?,
            _ = &mut connection => exchange.await?,
        };
        if status.is_success() {
            return Ok(bytes);
        }
        Err(refusal(status, &bytes))
    }

    fn unreachable(&self, err: &io::Error) -> Failure {
        let path = self.socket.display();
        if err.kind() == io::ErrorKind::PermissionDenied {
            return Failure::new(
                Exit::Refused,
                code::FORBIDDEN,
                format!("you may not talk to meshd: its socket {path} is open to root and the group proxima only"),
            )
            .with_fix_note("sudo meshctl …", "this once")
            .with_fix_note("sudo usermod -aG proxima \"$USER\"", "for good; log in again after it");
        }
        let is_absent =
            [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&err.kind());
        let message = if is_absent {
            format!("the daemon meshd is not running (nothing answers on {path})")
        } else {
            format!("cannot reach meshd on {path}: {err}")
        };
        Failure::new(Exit::NotRunning, "not_running", message)
            .with_fix(start::start_command(&self.socket))
    }
}

fn refusal(status: StatusCode, bytes: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => Failure::from_daemon(&body.error.code, body.error.message),
        Err(_) => Failure::failed(format!(
            "meshd answered {status} with no reason; are meshctl and meshd of one version?"
        ))
        .with_fix("meshctl version"),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    // An empty answer stands for null, so that calls without a result need no second path.
    let bytes = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(bytes).map_err(|err| {
        Failure::failed(format!(
            "meshd's answer is not understood ({err}); are meshctl and meshd of one version?"
        ))
        .with_fix("meshctl version")
    })
}
