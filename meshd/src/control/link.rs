//! One HTTP connection to a coordinator, reopened when needed, whose requests are signed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mesh_proto::control::{Identity, PATH_IDENTITY, code};
use mesh_proto::key::MachinePrivateKey;
use mesh_proto::request::{NONCE_HEADER, RequestProof};
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ControlError;
use crate::dial::{Dialer, host_and_port};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_LEN_MAX: usize = 1 << 20;

/// A connection that signs. It is used by one task at a time.
#[derive(Debug)]
pub struct Link {
    urls: Vec<String>,
    /// Which of the URLs works; the next one is tried when it stops working.
    current: usize,
    tls: Arc<rustls::ClientConfig>,
    dialer: Dialer,
    machine_key: MachinePrivateKey,
    nonce: Option<String>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// Prepares a link; nothing is sent yet.
    #[must_use]
    pub fn new(
        urls: Vec<String>,
        tls: Arc<rustls::ClientConfig>,
        machine_key: MachinePrivateKey,
    ) -> Self {
        Self {
            urls,
            current: 0,
            tls,
            dialer: Dialer::default(),
            machine_key,
            nonce: None,
            connection: None,
        }
    }

    /// Dials this way in place of straight.
    #[must_use]
    pub fn through(mut self, dialer: Dialer) -> Self {
        self.dialer = dialer;
        self
    }

    /// The coordinator in use.
    #[must_use]
    pub fn url(&self) -> &str {
        self.urls.get(self.current).map_or("", String::as_str)
    }

    /// Who the coordinator says it is.
    ///
    /// # Errors
    /// [`ControlError`] when none of the URLs answers.
    pub async fn identity(&mut self) -> Result<Identity, ControlError> {
        let response = self
            .send(Method::GET, PATH_IDENTITY, &Bytes::new(), None)
            .await?;
        self.read(response).await
    }

    /// Sends a signed request and reads its answer.
    ///
    /// # Errors
    /// [`ControlError`] when no coordinator answers, or it refuses.
    pub async fn call<B: Serialize, R: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &B,
    ) -> Result<R, ControlError> {
        let body = serde_json::to_vec(body).map_err(|err| self.bad_reply(err.to_string()))?;
        let response = self.signed(Method::POST, path, body.into()).await?;
        self.read(response).await
    }

    /// Sends a signed request whose answer has no body.
    ///
    /// # Errors
    /// [`ControlError`] when no coordinator answers, or it refuses.
    pub async fn post<B: Serialize>(&mut self, path: &str, body: &B) -> Result<(), ControlError> {
        let body = serde_json::to_vec(body).map_err(|err| self.bad_reply(err.to_string()))?;
        let response = self.signed(Method::POST, path, body.into()).await?;
        // Reading to the end lets the connection be used again.
        self.collect(response).await.map(drop)
    }

    /// Opens a stream; the connection is used up by it.
    ///
    /// # Errors
    /// [`ControlError`] when no coordinator answers, or it refuses.
    pub async fn open(&mut self, path: &str) -> Result<Response<Incoming>, ControlError> {
        self.signed(Method::GET, path, Bytes::new()).await
    }

    /// Drops the connection, so that the next request makes a new one.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Signs with the nonce at hand; when the coordinator does not know it, once more with the one it gives.
    async fn signed(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        for is_last in [false, true] {
            if self.nonce.is_none() {
                self.identity().await?;
            }
            let nonce = self
                .nonce
                .take()
                .ok_or_else(|| self.bad_reply("it gave no nonce".to_owned()))?;
            let proof = RequestProof::sign(&self.machine_key, method.as_str(), path, &body, &nonce);
            let response = self
                .send(method.clone(), path, &body, Some(proof.to_header()))
                .await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status();
            let error = ControlError::refused(&self.collect_body(response).await?, status);
            let ControlError::Refused { code, .. } = &error else {
                return Err(error);
            };
            if is_last || code != code::BAD_NONCE {
                return Err(error);
            }
        }
        Err(self.bad_reply("it takes none of its own nonces".to_owned()))
    }

    /// Sends by the open connection or a new one; tries each URL once.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: &Bytes,
        proof: Option<String>,
    ) -> Result<Response<Incoming>, ControlError> {
        let mut error = ControlError::Unreachable {
            url: String::new(),
            reason: "no coordinator is known".to_owned(),
        };
        // One try more than there are URLs: the open connection may have been closed by the other side meanwhile.
        for _ in 0..=self.urls.len() {
            let was_open = self.connection.is_some();
            match self
                .try_send(method.clone(), path, body, proof.as_deref())
                .await
            {
                Ok(response) => return Ok(response),
                Err(err) => error = err,
            }
            self.connection = None;
            if !was_open {
                self.current = (self.current + 1) % self.urls.len().max(1);
            }
        }
        Err(error)
    }

    async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        body: &Bytes,
        proof: Option<&str>,
    ) -> Result<Response<Incoming>, ControlError> {
        let url = self.url().to_owned();
        let unreachable = |reason: String| ControlError::Unreachable {
            url: url.clone(),
            reason,
        };
        let authority =
            authority(&url).ok_or_else(|| unreachable("not an https:// URL".to_owned()))?;
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.sender.is_closed() => connection,
            Some(_) | None => self.connect(&url).await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(
                header::USER_AGENT,
                concat!("meshd/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(proof) = proof {
            request = request.header(header::AUTHORIZATION, proof);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.clone()))
            .map_err(|err| unreachable(err.to_string()))?;
        let answer = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let response = timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| unreachable("no answer in time".to_owned()))?
            .map_err(|err| unreachable(err.to_string()))?;
        self.connection = Some(connection);
        if let Some(nonce) = response
            .headers()
            .get(NONCE_HEADER)
            .and_then(|nonce| nonce.to_str().ok())
        {
            self.nonce = Some(nonce.to_owned());
        }
        Ok(response)
    }

    async fn connect(&self, url: &str) -> Result<Connection, ControlError> {
        let unreachable = |reason: String| ControlError::Unreachable {
            url: url.to_owned(),
            reason,
        };
        let (host, port) =
            host_and_port(url).ok_or_else(|| unreachable("the URL has no host".to_owned()))?;
        let name =
            ServerName::try_from(host.clone()).map_err(|err| unreachable(err.to_string()))?;
        let stream = self
            .dialer
            .connect(&host, port)
            .await
            .map_err(|err| unreachable(err.to_string()))?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let stream = timeout(CONNECT_TIMEOUT, handshake)
            .await
            .map_err(|_| unreachable("no TLS handshake in time".to_owned()))?
            .map_err(|err| tls_error(url, &err))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| unreachable(err.to_string()))?;
        let driver = tokio::spawn(async move {
            // Its end shows as a closed sender; the error itself says no more than that.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver })
    }

    async fn read<R: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<R, ControlError> {
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|err| self.bad_reply(err.to_string()))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ControlError> {
        let status = response.status();
        let body = self.collect_body(response).await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(ControlError::refused(&body, status))
        }
    }

    async fn collect_body(&self, response: Response<Incoming>) -> Result<Bytes, ControlError> {
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Bytes::new());
        }
        let body = timeout(
            ANSWER_TIMEOUT,
            Limited::new(response.into_body(), ANSWER_LEN_MAX).collect(),
        );
        let body = body
            .await
            .map_err(|_| self.bad_reply("its answer does not end".to_owned()))?;
        Ok(body
            .map_err(|err| self.bad_reply(err.to_string()))?
            .to_bytes())
    }

    fn bad_reply(&self, reason: String) -> ControlError {
        ControlError::BadReply {
            url: self.url().to_owned(),
            reason,
        }
    }
}

fn tls_error(url: &str, err: &std::io::Error) -> ControlError {
    let url = url.to_owned();
    let inner = err.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(reason)) = inner else {
        return ControlError::Unreachable {
            url,
            reason: err.to_string(),
        };
    };
    // Of a pinned coordinator no date is looked at: this one has a certificate of a public authority.
    let is_date = matches!(
        reason,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    );
    if is_date {
        return ControlError::Unreachable {
            url,
            reason: format!(
                "{reason}: this machine's clock is wrong (timedatectl set-ntp true), or the coordinator's certificate is not \
                 renewed"
            ),
        };
    }
    ControlError::Impostor {
        url,
        reason: format!("its certificate is not the one that the auth key names ({reason})"),
    }
}

/// `host[:port]` of an `https://` URL.
fn authority(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?;
    let authority = rest.split('/').next().unwrap_or_default();
    (!authority.is_empty()).then(|| authority.to_owned())
}

#[cfg(test)]
mod tests;
