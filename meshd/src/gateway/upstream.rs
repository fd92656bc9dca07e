//! A request to a model server or to another host, on a connection that has it alone and is cut at once when the caller goes.

use std::fmt;
use std::io::{self, IoSlice, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, SERVER};
use http::{Response, StatusCode};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pool::{Connection, Pool};
use super::stream::{Outward, Stream};
use super::wire::{Framing, Reply, Step, WireError};

/// How long a connection may take to come up.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A body up to this length is written together with its head.
const JOINED_MAX: usize = 16 << 10;

/// Room for the head of a request.
const HEAD_ROOM: usize = 192;

/// How long a host may owe a reply on an old connection until it is looked whether it is still there.
const PROBE_AFTER: Duration = Duration::from_millis(500);

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// Nobody answered there.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
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
    framing: Framing,
    first: Option<Bytes>,
    patience: Duration,
    /// Since when nothing has come. A caller that reads slowly is no silence.
    silent_since: Option<Instant>,
    /// Until the reply is whole. Dropping it closes the socket, which is how a backend learns that nobody waits any more.
    connection: Option<Connection>,
    home: Home,
}

/// Where a connection goes when its reply is whole.
struct Home {
    pool: Arc<Pool>,
    place: String,
    is_kept: bool,
    is_costly: bool,
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}

impl UpstreamBody {
    fn new(head: &Reply, connection: Connection, home: Home, patience: Duration) -> Self {
        Self {
            framing: head.framing,
            first: None,
            patience,
            silent_since: None,
            connection: Some(connection),
            home,
        }
    }

    /// How much is yet to come, where the head told.
    pub(crate) fn n_left(&self) -> Option<u64> {
        let n_first = self.first.as_ref().map_or(0, Bytes::len);
        Some(self.framing.n_left()? + n_first as u64)
    }

    /// Whether the last of it was given out, where its length was told.
    pub(crate) fn is_over(&self) -> bool {
        self.first.is_none() && self.framing == Framing::Length(0)
    }

    /// The next bytes.
    pub(crate) fn poll_data(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            let Some(connection) = &mut self.connection else {
                return Poll::Ready(None);
            };
            match self.framing.step(&mut connection.read) {
                Err(err) => return Poll::Ready(Some(Err(self.broken(invalid(err))))),
                Ok(Step::Data(data)) => {
                    self.silent_since = None;
                    if self.framing == Framing::Length(0) {
                        self.go_home();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Step::End) => {
                    self.go_home();
                    return Poll::Ready(None);
                }
                Ok(Step::More) => {}
            }
            let Poll::Ready(filled) = connection.poll_fill(task, self.framing.n_left()) else {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                ready!(connection.alarm.poll(task, since + self.patience));
                self.connection = None;
                return Poll::Ready(Some(Err(UpstreamError::Silent)));
            };
            match filled {
                Ok(0) if self.framing == Framing::Close => {
                    self.connection = None;
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    let err = self.broken(io::ErrorKind::UnexpectedEof.into());
                    return Poll::Ready(Some(Err(err)));
                }
                Ok(_) => {}
                Err(err) => return Poll::Ready(Some(Err(self.broken(err)))),
            }
        }
    }

    fn broken(&mut self, err: io::Error) -> UpstreamError {
        self.connection = None;
        UpstreamError::Broken(err)
    }

    fn go_home(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.home.is_kept
        {
            let Home { pool, place, .. } = &self.home;
            pool.put(place, connection, self.home.is_costly);
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
    /// Another host's door, and the way there.
    Host(SocketAddr, Outward),
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
        Target::Host(addr, _) => addr.to_string(),
    };
    let mut out = Outgoing::new(path, &place, body);
    let deadline = Instant::now() + patience.head;
    let (head, connection) = ask(pool, target, &place, &mut out, deadline).await?;
    let home = Home {
        pool: Arc::clone(pool),
        place,
        is_kept: head.is_kept && out.is_sent(),
        // Each connection has a thread of it, of which there are few.
        is_costly: head
            .headers
            .get(SERVER)
            .is_some_and(|server| server.as_bytes().starts_with(b"llama.cpp")),
    };
    let body = UpstreamBody::new(&head, connection, home, patience.idle);
    let mut reply = Response::new(body);
    *reply.status_mut() = head.status;
    *reply.headers_mut() = head.headers;
    Ok(reply)
}

/// Asks on a connection that is there already, or on a new one.
async fn ask(
    pool: &Pool,
    target: &Target,
    place: &str,
    out: &mut Outgoing,
    deadline: Instant,
) -> Result<(Reply, Connection), UpstreamError> {
    if let Some(mut connection) = pool.take(place) {
        let exchanged = tokio::select! {
            exchanged = exchange(&mut connection, out, deadline) => exchanged,
            err = unreachable(target) => return Err(err),
        };
        match exchanged {
            Ok(head) => return Ok((head, connection)),
            // It was closed at the last moment, and nothing was sent.
            Err(UpstreamError::Broken(_)) if out.n_sent == 0 => {}
            Err(err) => return Err(err),
        }
    }
    let opened = tokio::time::timeout_at(deadline, open(target)).await;
    let mut connection = opened.map_err(|_| UpstreamError::Silent)??;
    let head = exchange(&mut connection, out, deadline).await?;
    Ok((head, connection))
}

/// A request on its way.
struct Outgoing {
    head: Vec<u8>,
    body: Bytes,
    n_sent: usize,
}

impl Outgoing {
    fn new(path: &str, place: &str, body: Bytes) -> Self {
        let n_body = body.len();
        let is_joined = n_body <= JOINED_MAX;
        let mut head = Vec::with_capacity(HEAD_ROOM + if is_joined { n_body } else { 0 });
        // A writer into memory does not fail.
        let _ = write!(
            head,
            "POST {path} HTTP/1.1\r\nhost: {place}\r\ncontent-type: application/json\r\naccept: */*\r\ncontent-length: {n_body}\r\n\r\n"
        );
        let body = if is_joined {
            head.extend_from_slice(&body);
            Bytes::new()
        } else {
            body
        };
        Self {
            head,
            body,
            n_sent: 0,
        }
    }

    fn is_sent(&self) -> bool {
        self.n_sent == self.head.len() + self.body.len()
    }

    /// Ready when all is sent.
    fn poll_send(&mut self, stream: &mut Stream, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_sent() {
            let head = self.head.get(self.n_sent..).unwrap_or_default();
            let n_of_body = self.n_sent.saturating_sub(self.head.len());
            let body = self.body.get(n_of_body..).unwrap_or_default();
            let stream = Pin::new(&mut *stream);
            let written = if body.is_empty() {
                stream.poll_write(task, head)
            } else {
                stream.poll_write_vectored(task, &[IoSlice::new(head), IoSlice::new(body)])
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.n_sent += n,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Sends a request and reads the head of the reply, which may come before all is sent.
async fn exchange(
    connection: &mut Connection,
    out: &mut Outgoing,
    deadline: Instant,
) -> Result<Reply, UpstreamError> {
    let mut unsent: Option<io::Error> = None;
    let broken = |err: io::Error| Poll::Ready(Err(UpstreamError::Broken(err)));
    std::future::poll_fn(|task| {
        if unsent.is_none()
            && let Poll::Ready(Err(err)) = out.poll_send(&mut connection.stream, task)
        {
            if out.n_sent == 0 {
                return broken(err);
            }
            // What made the other end close may be told in its reply.
            unsent = Some(err);
        }
        loop {
            match Reply::take(&mut connection.read) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(err) => return broken(invalid(err)),
            }
            match connection.poll_fill(task, None) {
                Poll::Ready(Ok(0)) => {
                    let eof = || io::ErrorKind::UnexpectedEof.into();
                    return broken(unsent.take().unwrap_or_else(eof));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(err)) => return broken(err),
                Poll::Pending => {
                    ready!(connection.alarm.poll(task, deadline));
                    return Poll::Ready(Err(UpstreamError::Silent));
                }
            }
        }
    })
    .await
}

fn invalid(err: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}

/// Ends when a host that owes a reply on an old connection cannot be reached any more; a new connection would have told.
async fn unreachable(target: &Target) -> UpstreamError {
    if let Target::Host(addr, outward) = target {
        tokio::time::sleep(PROBE_AFTER).await;
        if let Err(err) = connect(outward.connect(*addr)).await {
            return err;
        }
    }
    std::future::pending().await
}

async fn open(target: &Target) -> Result<Connection, UpstreamError> {
    let stream = match target {
        Target::Backend(authority) => {
            let connecting = async { TcpStream::connect(authority).await.map(Stream::Tcp) };
            connect(connecting).await?
        }
        Target::Host(addr, outward) => connect(outward.connect(*addr)).await?,
    };
    Ok(Connection::new(stream))
}

async fn connect(
    connecting: impl Future<Output = io::Result<Stream>>,
) -> Result<Stream, UpstreamError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| UpstreamError::Connect(io::ErrorKind::TimedOut.into()))?
        .map_err(UpstreamError::Connect)?;
    stream
        .tune(Duration::from_secs(1), Duration::from_secs(5))
        .map_err(UpstreamError::Connect)?;
    Ok(stream)
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
