//! A request to a model server or to another host, on a connection that has it alone and is cut at once when the caller goes.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::pool::{Connection, Pool};

/// How long a connection may take to come up.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a host may owe a reply on an old connection until it is looked whether it is still there.
const PROBE_AFTER: Duration = Duration::from_millis(500);

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// Nobody answered there.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    /// It is connected and says nothing for longer than any work takes.
    #[error("nothing came for too long")]
    Silent,
    /// The reply is larger than anything expected.
    #[error("the reply is too large or broke off")]
    Body,
}

/// How long a silence is borne, so that what is frozen holds no slot for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the head of the reply.
    pub(crate) head: Duration,
    /// Between two pieces of its body.
    pub(crate) idle: Duration,
}

impl Patience {
    /// For a question that needs no model.
    pub(crate) const SHORT: Self = Self {
        head: Duration::from_secs(30),
        idle: Duration::from_secs(10),
    };

    /// For an answer: a stream begins after the load and the prompt, a whole one comes when all is generated.
    pub(crate) const fn of(is_stream: bool) -> Self {
        Self {
            head: Duration::from_mins(if is_stream { 15 } else { 60 }),
            idle: Duration::from_mins(5),
        }
    }

    /// For what another host does, which has a queue before the work.
    pub(crate) fn through_queue(self) -> Self {
        Self {
            head: self.head + Duration::from_secs(150),
            idle: self.idle + Duration::from_secs(10),
        }
    }
}

/// A reply's body together with the connection that it comes over.
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    first: Option<Bytes>,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    is_waiting: bool,
    /// Until the reply is whole. Dropping it closes the socket, which is how a backend learns that nobody waits any more.
    connection: Option<(Connection, Arc<Pool>, String)>,
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}

impl UpstreamBody {
    /// The next bytes.
    pub(crate) fn poll_data(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(task) else {
                // Counted from the first wait after a piece: a caller that reads slowly is no silence.
                if !self.is_waiting {
                    self.is_waiting = true;
                    let deadline = Instant::now() + self.patience;
                    self.silence.as_mut().reset(deadline);
                }
                ready!(self.silence.as_mut().poll(task));
                return Poll::Ready(Some(Err(UpstreamError::Silent)));
            };
            self.is_waiting = false;
            match frame {
                None => {
                    if let Some((connection, pool, place)) = self.connection.take() {
                        pool.put(&place, connection);
                    }
                    return Poll::Ready(None);
                }
                Some(Err(err)) => return Poll::Ready(Some(Err(UpstreamError::Broken(err)))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }

    /// Waits for the first byte and keeps it for the reader.
    pub(crate) async fn peek(&mut self) -> Result<(), UpstreamError> {
        if self.first.is_none()
            && let Some(chunk) = std::future::poll_fn(|task| self.poll_data(task)).await
        {
            self.first = Some(chunk?);
        }
        Ok(())
    }

    /// Reads it to its end.
    pub(crate) async fn collect(mut self, n_max: usize) -> Result<Vec<u8>, UpstreamError> {
        let mut whole = Vec::new();
        while let Some(chunk) = std::future::poll_fn(|task| self.poll_data(task)).await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > n_max {
                return Err(UpstreamError::Body);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A model server, `127.0.0.1:11434`.
    Backend(String),
    /// Another host's door.
    Host(SocketAddr),
}

/// Sends a request with a JSON body and waits for the head of the reply. Dropping the future cuts the connection.
///
/// # Errors
/// [`UpstreamError`] when no reply began.
pub(crate) async fn post(
    pool: &Arc<Pool>,
    target: &Target,
    path: &'static str,
    body: Bytes,
    patience: Patience,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    let place = match target {
        Target::Backend(authority) => authority.clone(),
        Target::Host(addr) => addr.to_string(),
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_str(&place) {
        headers.insert(HOST, host);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    let asked = async {
        if let Some(mut connection) = pool.take(&place) {
            let sent = tokio::select! {
                sent = connection.sender.try_send_request(request) => sent,
                err = unreachable(target) => return Err(err),
            };
            match sent {
                Ok(reply) => return Ok((reply, connection)),
                Err(mut err) => match err.take_message() {
                    // It was never sent.
                    Some(back) => request = back,
                    None => return Err(UpstreamError::Broken(err.into_error())),
                },
            }
        }
        let mut connection = open(target).await?;
        let reply = connection.sender.send_request(request).await;
        Ok((reply.map_err(UpstreamError::Broken)?, connection))
    };
    let (reply, connection) = tokio::time::timeout(patience.head, asked)
        .await
        .map_err(|_| UpstreamError::Silent)??;
    Ok(reply.map(|incoming| UpstreamBody {
        incoming,
        first: None,
        patience: patience.idle,
        silence: Box::pin(tokio::time::sleep(patience.idle)),
        is_waiting: false,
        connection: Some((connection, Arc::clone(pool), place)),
    }))
}

/// Ends when a host that owes a reply on an old connection cannot be reached any more; a new connection would have told.
async fn unreachable(target: &Target) -> UpstreamError {
    if let Target::Host(addr) = target {
        tokio::time::sleep(PROBE_AFTER).await;
        if let Err(err) = connect(TcpStream::connect(addr)).await {
            return err;
        }
    }
    std::future::pending().await
}

async fn open(target: &Target) -> Result<Connection, UpstreamError> {
    let stream = match target {
        Target::Backend(authority) => connect(TcpStream::connect(authority)).await?,
        Target::Host(addr) => connect(TcpStream::connect(addr)).await?,
    };
    let (sender, connection) = http1::Builder::new()
        .max_headers(64)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(UpstreamError::Broken)?;
    let driver = tokio::spawn(async move {
        // What goes wrong here is told by the reply as well.
        let _ = connection.await;
    });
    Ok(Connection {
        sender,
        _driver: AbortOnDropHandle::new(driver),
    })
}

async fn connect(
    connecting: impl Future<Output = std::io::Result<TcpStream>>,
) -> Result<TcpStream, UpstreamError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| UpstreamError::Connect(std::io::ErrorKind::TimedOut.into()))?
        .map_err(UpstreamError::Connect)?;
    tune(&stream, Duration::from_secs(1), Duration::from_secs(5))
        .map_err(UpstreamError::Connect)?;
    Ok(stream)
}

/// Makes a connection notice in seconds that its other end died without a word.
pub(crate) fn tune(
    stream: &TcpStream,
    keepalive: Duration,
    user_timeout: Duration,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(keepalive)
        .with_interval(keepalive)
        .with_retries(2);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(user_timeout))
}

/// Headers of a reply that are passed on.
const PASSED: [HeaderName; 2] = [CONTENT_TYPE, http::header::RETRY_AFTER];

/// The part of a reply's head that is the caller's business.
pub(crate) fn passed_head(status: StatusCode, headers: &HeaderMap) -> (StatusCode, HeaderMap) {
    let mut passed = HeaderMap::new();
    for name in PASSED {
        if let Some(value) = headers.get(&name) {
            passed.insert(name, value.clone());
        }
    }
    // No model server redirects or switches protocols; a host that does is up to something.
    let is_plain = status == StatusCode::OK || status.is_client_error() || status.is_server_error();
    let status = if is_plain {
        status
    } else {
        StatusCode::BAD_GATEWAY
    };
    (status, passed)
}

#[cfg(test)]
mod tests;
