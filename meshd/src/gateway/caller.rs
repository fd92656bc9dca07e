//! The serving side of one connection: requests in turn, each answered before the next is read; and whether the caller is
//! still there, for a request of whom nobody waits any more is dropped at once.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::Body as _;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::ReplyBody;
use super::dialect::{Dialect, Refusal};
use super::pool::Connection;
use super::stream::Stream;
use super::wire::{Extent, Framing, Head, Outbox, ReplyTo, Step, WireError, take_request};

/// How long the head of a request may take, an idle connection included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(8);
/// What a caller whose body nobody wants may still send, so that it sees the answer before the connection is cut.
const UNWANTED_MAX: usize = 4 << 20;
const UNWANTED_FOR: Duration = Duration::from_secs(2);

/// A request as it came. Its body is read by whoever answers it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: RequestBody,
}

/// The body of a request, on the connection that it comes over.
pub(crate) struct RequestBody(Arc<Mutex<Caller>>);

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

impl RequestBody {
    /// What is there already: data, or the end; `None` where more has to come.
    pub(crate) fn there(&self) -> Option<Option<io::Result<Bytes>>> {
        lock(&self.0).step()
    }

    /// The next data, or the end.
    pub(crate) async fn next(&self) -> Option<io::Result<Bytes>> {
        std::future::poll_fn(|task| lock(&self.0).poll_data(task)).await
    }
}

/// A connection, what was read from it, and what waits to be written to it.
struct Caller {
    connection: Connection,
    /// What is left of the body of the request in work.
    body: Framing,
    awaits_continue: bool,
    out: Outbox,
}

/// Answers requests until the connection ends.
///
/// # Errors
/// How it ended, where that was no proper end.
pub(crate) async fn serve<A, F>(stream: Stream, answer: A) -> io::Result<()>
where
    A: Fn(Request) -> F,
    F: Future<Output = Response<ReplyBody>>,
{
    let caller = Arc::new(Mutex::new(Caller {
        connection: Connection::new(stream),
        body: Framing::Length(0),
        awaits_continue: false,
        out: Outbox::default(),
    }));
    loop {
        let head = match next_head(&caller).await? {
            Some(Ok(head)) => head,
            Some(Err(err)) => {
                let reply = unreadable(err).reply(Dialect::Ollama);
                send(&caller, ReplyTo::UNREAD, reply).await?;
                return linger(&caller).await;
            }
            None => return Ok(()),
        };
        let mut to = ReplyTo::new(&head);
        let body = RequestBody(Arc::clone(&caller));
        let answered = tokio::select! {
            biased;
            reply = answer(Request { head, body }) => reply,
            () = gone(&caller) => return Ok(()),
        };
        to.is_kept &= lock(&caller).skip_body();
        if !send(&caller, to, answered).await? {
            return linger(&caller).await;
        }
        lock(&caller).connection.slim();
    }
}

/// The head of the next request, or what is wrong with it; `None` when no more will come.
async fn next_head(caller: &Mutex<Caller>) -> io::Result<Option<Result<Head, WireError>>> {
    let mut deadline = None;
    std::future::poll_fn(|task| {
        let mut caller = lock(caller);
        loop {
            match take_request(&mut caller.connection.read) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    caller.body = head.framing;
                    caller.awaits_continue = head.awaits_continue;
                    return Poll::Ready(Ok(Some(Ok(head))));
                }
                Err(err) => return Poll::Ready(Ok(Some(Err(err)))),
            }
            match caller.connection.poll_fill(task, None) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => break,
            }
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + HEAD_TIMEOUT);
        caller
            .connection
            .alarm
            .poll(task, deadline)
            .map(|()| Ok(None))
    })
    .await
}

fn unreadable(err: WireError) -> Refusal {
    let status = match err {
        WireError::HeadTooLong => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        WireError::Head | WireError::Framing | WireError::Chunk | WireError::Twice => {
            StatusCode::BAD_REQUEST
        }
    };
    Refusal::new(status, format!("the request cannot be read: {err}"))
}

/// Ready when the caller has closed the connection.
async fn gone(caller: &Mutex<Caller>) {
    std::future::poll_fn(|task| lock(caller).poll_gone(task)).await;
}

/// Sends a reply. Gives whether the connection may have another request.
///
/// # Errors
/// When the caller is gone or the body broke; what was sent by then has no proper end.
async fn send(caller: &Mutex<Caller>, to: ReplyTo, reply: Response<ReplyBody>) -> io::Result<bool> {
    let (head, mut body) = reply.into_parts();
    let extent = Extent::of(&to, head.status, body.size_hint().exact());
    let is_kept = lock(caller)
        .out
        .begin(&to, head.status, &head.headers, extent);
    let mut n_left = match extent {
        Extent::None(_) => 0,
        Extent::Exact(n) => n,
        Extent::Chunked | Extent::Close => u64::MAX,
    };
    std::future::poll_fn(|task| {
        loop {
            if n_left == 0 || lock(caller).out.is_full() {
                ready!(lock(caller).poll_flush(task))?;
                if n_left == 0 {
                    return Poll::Ready(Ok(is_kept));
                }
            }
            match Pin::new(&mut body).poll_frame(task) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    if let Extent::Exact(_) = extent {
                        let n = u64::try_from(data.len()).unwrap_or(u64::MAX);
                        n_left = n_left.checked_sub(n).ok_or(io::ErrorKind::InvalidData)?;
                    }
                    lock(caller).out.put(data, extent);
                }
                Poll::Ready(None) => {
                    if let Extent::Exact(_) = extent {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    n_left = 0;
                    lock(caller).out.end(extent);
                }
                Poll::Ready(Some(Err(err))) => {
                    // The caller may see what came before.
                    let _ = lock(caller).poll_flush(task)?;
                    return Poll::Ready(Err(io::Error::other(err)));
                }
                Poll::Pending => {
                    let mut caller = lock(caller);
                    let _ = caller.poll_flush(task)?;
                    ready!(caller.poll_gone(task));
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
    })
    .await
}

/// Ends a connection on which more may be on its way: to close it at once would be a reset, by which the caller may lose the
/// answer.
async fn linger(caller: &Mutex<Caller>) -> io::Result<()> {
    if !lock(caller).is_owed() {
        return Ok(());
    }
    std::future::poll_fn(|task| Pin::new(&mut lock(caller).connection.stream).poll_shutdown(task))
        .await?;
    let mut n_left = UNWANTED_MAX;
    let reading = std::future::poll_fn(|task| {
        let mut caller = lock(caller);
        while n_left > 0 {
            caller.connection.read.clear();
            match ready!(caller.connection.poll_fill(task, Some(n_left as u64))) {
                Ok(0) | Err(_) => break,
                Ok(n) => n_left = n_left.saturating_sub(n),
            }
        }
        Poll::Ready(())
    });
    // It is cut then.
    let _ = tokio::time::timeout(UNWANTED_FOR, reading).await;
    Ok(())
}

impl Caller {
    /// What of the body is there.
    fn step(&mut self) -> Option<Option<io::Result<Bytes>>> {
        match self.body.step(&mut self.connection.read) {
            Ok(Step::Data(data)) => Some(Some(Ok(data))),
            Ok(Step::End) => Some(None),
            Ok(Step::More) => None,
            Err(err) => Some(Some(Err(io::Error::new(io::ErrorKind::InvalidData, err)))),
        }
    }

    fn poll_data(&mut self, task: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(step) = self.step() {
                return Poll::Ready(step);
            }
            if std::mem::take(&mut self.awaits_continue) {
                self.out.go_on();
            }
            if let Poll::Ready(Err(err)) = self.poll_flush(task) {
                return Poll::Ready(Some(Err(err)));
            }
            match ready!(self.connection.poll_fill(task, self.body.n_left())) {
                Ok(0) => {
                    let eof = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(eof)));
                }
                Ok(_) => {}
                Err(err) => return Poll::Ready(Some(Err(err))),
            }
        }
    }

    /// Ready when the caller has closed the connection. While it sends it is there, and while the next request waits here.
    fn poll_gone(&mut self, task: &mut Context<'_>) -> Poll<()> {
        if !self.body.is_over() || !self.connection.read.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.connection.poll_fill(task, None)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(_) => Poll::Pending,
        }
    }

    fn poll_flush(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let stream = Pin::new(&mut self.connection.stream);
            let [head, tail] = self.out.unsent();
            let written = if tail.is_empty() {
                stream.poll_write(task, &head)
            } else {
                stream.poll_write_vectored(task, &[head, tail])
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.out.sent(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Passes over a body that nobody asked for, as far as it is there. Gives whether that was all of it.
    fn skip_body(&mut self) -> bool {
        while let Some(Some(Ok(_))) = self.step() {}
        self.body.is_over()
    }

    /// Whether the caller may still send something that nobody reads.
    fn is_owed(&self) -> bool {
        !self.body.is_over() || !self.connection.read.is_empty()
    }
}

fn lock(caller: &Mutex<Caller>) -> MutexGuard<'_, Caller> {
    caller.lock().unwrap_or_else(PoisonError::into_inner)
}
