//! A reply on its way back: passed on frame by frame, counted, and never ended cleanly when it broke.

mod filter;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

pub(crate) use filter::{End, Filter};

use super::BoxError;
use super::count::{Counts, Record};
use super::dialect::Dialect;
use super::pace::Watch;
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
    watch: Option<Watch>,
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
            watch: None,
        }
    }

    /// Has the pace of the answer noted.
    pub(crate) fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Holds a slot, and writes the record, until the reply is over.
    pub(crate) fn holding(mut self, slot: Slot, record: Record) -> Self {
        self.filter.keep_for_counts();
        self.slot = Some(slot);
        self.record = Some(record);
        self
    }

    /// The figures of the reply, as far as it came.
    pub(crate) fn counts(&self) -> Counts {
        self.filter.counts()
    }

    /// Ends the work. Without another word the record says that the caller went.
    fn end(&mut self, outcome: impl FnOnce(&mut Record)) {
        self.upstream = None;
        self.slot = None;
        let watch = self.watch.take();
        if let Some(mut record) = self.record.take() {
            record.set(self.filter.counts());
            outcome(&mut record);
            if let Some(watch) = watch
                && record.is_complete()
            {
                watch.end(self.filter.counts().n_output);
            }
        }
    }

    fn pass(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(record) = &mut self.record {
            record.passed(&data);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// Says that the stream broke, then cuts it.
    fn cut(&mut self, before: Vec<u8>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.end(Record::broke);
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
        self.end(|_| {});
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
                    let is_last = upstream.is_over() && !this.filter.is_stream();
                    let out = this.filter.push(chunk);
                    if is_last {
                        // Nobody asks for more when all that was promised is out.
                        this.filter.finish();
                        this.state = State::Done;
                        let passed = (!out.is_empty()).then(|| this.pass(out));
                        this.end(Record::complete);
                        if let Some(passed) = passed {
                            return passed;
                        }
                        continue;
                    }
                    if !out.is_empty() {
                        if let Some(watch) = &mut this.watch
                            && this.filter.is_stream()
                        {
                            watch.piece();
                        }
                        return this.pass(out);
                    }
                }
                Some(Err(err)) => {
                    tracing::debug!(%err, "reply broke off");
                    if let Some(record) = &mut this.record {
                        record.fail(&err);
                    }
                    return this.cut(Vec::new());
                }
                None => match this.filter.finish() {
                    End::Complete(rest) => {
                        this.state = State::Done;
                        let passed = (!rest.is_empty()).then(|| this.pass(rest.into()));
                        this.end(Record::complete);
                        if let Some(passed) = passed {
                            return passed;
                        }
                    }
                    End::Broken(rest) => return this.cut(rest),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn size_hint(&self) -> SizeHint {
        let n_left = self.upstream.as_ref().and_then(UpstreamBody::n_left);
        // A stream may lose events or gain last words; a whole reply is passed as it is.
        match n_left.filter(|n| *n > 0 && !self.filter.is_stream()) {
            Some(n) => SizeHint::with_exact(n),
            None => SizeHint::default(),
        }
    }
}
