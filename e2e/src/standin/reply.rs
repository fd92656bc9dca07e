//! Bodies of answers: whole ones, and ones that come piece by piece.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;

/// The body of an answer.
#[derive(Debug)]
pub enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// Each message is one HTTP chunk.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(chunks) => chunks
                .poll_recv(cx)
                .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Past about 2 KB the real one sends chunks.
            Self::Whole(Some(bytes)) if bytes.len() <= 2_048 => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(_)) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A reply with a content type.
pub(crate) fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: Reply,
) -> Response<Reply> {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let value = hyper::header::HeaderValue::from_static(content_type);
    reply.headers_mut().insert("content-type", value);
    reply
}

/// A JSON reply of `/api/*`.
pub(crate) fn json_reply(status: StatusCode, body: &Value) -> Response<Reply> {
    let body = Reply::Whole(Some(Bytes::from(body.to_string())));
    typed(status, "application/json; charset=utf-8", body)
}

/// A plain text reply.
pub(crate) fn text_reply(status: StatusCode, body: &'static str) -> Response<Reply> {
    let body = Reply::Whole(Some(Bytes::from_static(body.as_bytes())));
    typed(status, "text/plain", body)
}

/// A reply of JSON lines that are known at once.
pub(crate) fn ndjson(lines: impl Iterator<Item = Value>) -> Response<Reply> {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let body = Reply::Whole(Some(Bytes::from(text)));
    typed(StatusCode::OK, "application/x-ndjson", body)
}
