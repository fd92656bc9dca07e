//! A reply on its way back: passed on frame by frame, counted, and never ended cleanly when it broke.

mod filter;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Sleep;

pub(crate) use filter::{End, Filter};

use super::BoxError;
use super::count::Record;
use super::dialect::Dialect;
use super::queue::Slot;
use super::upstream::UpstreamBody;

/// How long the last words of a broken stream have to get out before the connection is cut.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// The body that a caller gets. Dropping it ends the request to the backend at once.
pub(crate) struct Relay {
    upstream: Option<UpstreamBody>,
    filter: Filter,
    dialect: Dialect,
    state: State,
    record: Option<Record>,
    slot: Option<Slot>,
}

enum State {
    Passing,
    /// The last words are out; the connection is cut when the time is over.
    Cutting(Pin<Box<Sleep>>),
    Done,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    pub(crate) fn new(upstream: UpstreamBody, filter: Filter, dialect: Dialect) -> Self {
        Self {
            upstream: Some(upstream),
            filter,
            dialect,
            state: State::Passing,
            record: None,
            slot: None,
        }
    }

    /// Holds a slot, and writes the record, until the reply is over.
    pub(crate) fn holding(mut self, slot: Slot, record: Record) -> Self {
        self.slot = Some(slot);
        self.record = Some(record);
        self
    }

    fn end(&mut self, is_complete: bool) {
        self.upstream = None;
        self.slot = None;
        if let Some(mut record) = self.record.take() {
            record.set(self.filter.counts());
            if is_complete {
                record.complete();
            }
        }
    }

    /// Says that the stream broke, then cuts it.
    fn cut(&mut self, before: Vec<u8>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.end(false);
        if !self.filter.is_stream() {
            self.state = State::Done;
            return Poll::Ready(Some(Err("the model server broke off its reply".into())));
        }
        let mut last = before;
        if !self.filter.saw_error() {
            last.extend_from_slice(
                &self.dialect.stream_error(
                    "the host broke off in the middle of the answer; it is incomplete",
                ),
            );
        }
        self.state = State::Cutting(Box::pin(tokio::time::sleep(LAST_WORDS)));
        Poll::Ready(Some(Ok(Frame::data(last.into()))))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Done => return Poll::Ready(None),
                State::Cutting(sleep) => {
                    ready!(sleep.as_mut().poll(task));
                    this.state = State::Done;
                    return Poll::Ready(Some(Err("the stream broke".into())));
                }
                State::Passing => {}
            }
            let Some(upstream) = &mut this.upstream else {
                this.state = State::Done;
                continue;
            };
            match ready!(upstream.poll_data(task)) {
                Some(Ok(chunk)) => {
                    let out = this.filter.push(chunk);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                }
                Some(Err(err)) => {
                    tracing::debug!(%err, "reply broke off");
                    return this.cut(Vec::new());
                }
                None => match this.filter.finish() {
                    End::Complete(rest) => {
                        this.end(true);
                        this.state = State::Done;
                        if !rest.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                        }
                    }
                    End::Broken(rest) => return this.cut(rest),
                },
            }
        }
    }
}
