//! A reply on its way to a program of this machine, and the host that it comes from: how it ended is known there.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::relay::Relay;
use super::{BoxError, ReplyBody};
use crate::choice::Work;

/// A body that may know how many tokens went through it.
pub(crate) trait Counted: Body<Data = Bytes, Error = BoxError> + Unpin {
    /// Tokens generated, once the body has ended and if it was told.
    fn n_tokens(&self) -> Option<u64>;
}

impl Counted for Relay {
    fn n_tokens(&self) -> Option<u64> {
        self.counts().n_output
    }
}

impl Counted for ReplyBody {
    fn n_tokens(&self) -> Option<u64> {
        None
    }
}

/// A body whose host learns how it ended. Dropped before its end, it tells nothing: the client left.
pub(crate) struct Tracked<B> {
    body: B,
    work: Option<Work>,
}

impl<B> fmt::Debug for Tracked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}

impl<B> Tracked<B> {
    pub(crate) fn new(body: B, work: Work) -> Self {
        Self {
            body,
            work: Some(work),
        }
    }
}

impl<B: Counted> Body for Tracked<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(task));
        match &frame {
            // A body of known length is not asked for more than that.
            Some(Ok(_)) if this.body.is_end_stream() => {
                if let Some(mut work) = this.work.take() {
                    work.finished(this.body.n_tokens(), Instant::now());
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                if let Some(mut work) = this.work.take() {
                    work.failed(Instant::now());
                }
            }
            None => {
                if let Some(mut work) = this.work.take() {
                    work.finished(this.body.n_tokens(), Instant::now());
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
