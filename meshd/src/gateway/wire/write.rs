//! Replies as they are written to callers.

use std::cell::RefCell;
use std::io::{IoSlice, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, TRANSFER_ENCODING};
use http::{Method, StatusCode};

use super::Head;
use crate::gateway::DOOR_HEADER;

/// Data up to this length is copied behind what waits to be written, longer data is written from where it is.
const COPIED_MAX: usize = 8 << 10;
/// Room that is kept for the next reply.
const KEPT_MAX: usize = 16 << 10;

/// What the form of a reply depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReplyTo {
    /// Whether the caller wants the head alone.
    pub(crate) is_head: bool,
    /// Whether the caller speaks HTTP/1.1, and not 1.0.
    pub(crate) is_newest: bool,
    /// Whether the connection may have another request.
    pub(crate) is_kept: bool,
}

impl ReplyTo {
    /// A reply to a request that could not be read.
    pub(crate) const UNREAD: Self = Self {
        is_head: false,
        is_newest: true,
        is_kept: false,
    };

    pub(crate) fn new(head: &Head) -> Self {
        Self {
            is_head: head.method == Method::HEAD,
            is_newest: head.is_newest,
            is_kept: head.is_kept,
        }
    }
}

/// How the end of a reply's body is told (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// There is none; the length that it would have, where it is known.
    None(Option<u64>),
    /// By its length.
    Exact(u64),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

impl Extent {
    /// Of a body whose length may be known.
    pub(crate) fn of(to: &ReplyTo, status: StatusCode, length: Option<u64>) -> Self {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Self::None(None)
        } else if to.is_head {
            Self::None(length)
        } else if let Some(length) = length {
            Self::Exact(length)
        } else if to.is_newest {
            Self::Chunked
        } else {
            Self::Close
        }
    }
}

/// What waits to be written to a caller.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    head: Vec<u8>,
    /// Behind the head.
    tail: Bytes,
    /// How much of both is written.
    n_sent: usize,
}

impl Outbox {
    /// Puts the head of a reply. Gives whether the connection may have another request after it.
    pub(crate) fn begin(
        &mut self,
        to: &ReplyTo,
        status: StatusCode,
        headers: &HeaderMap,
        extent: Extent,
    ) -> bool {
        let is_kept = to.is_kept && extent != Extent::Close;
        let out = &mut self.head;
        out.extend_from_slice(if to.is_newest {
            b"HTTP/1.1 "
        } else {
            b"HTTP/1.0 "
        });
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in headers {
            // How it ends and when it was made is said here alone.
            if [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, DATE].contains(name) {
                continue;
            }
            line(out, name.as_str(), value.as_bytes());
        }
        line(out, DOOR_HEADER, b"1");
        match extent {
            Extent::Exact(n) | Extent::None(Some(n)) => number(out, "content-length", n),
            Extent::Chunked => line(out, "transfer-encoding", b"chunked"),
            Extent::None(None) | Extent::Close => {}
        }
        match (is_kept, to.is_newest) {
            (true, true) => {}
            (true, false) => line(out, "connection", b"keep-alive"),
            (false, _) => line(out, "connection", b"close"),
        }
        with_date(|date| line(out, "date", date));
        out.extend_from_slice(b"\r\n");
        is_kept
    }

    /// Tells a caller that its body is wanted.
    pub(crate) fn go_on(&mut self) {
        self.head
            .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    /// Puts some of a body. Nothing may be put behind a tail until it is written: see [`Self::is_full`].
    pub(crate) fn put(&mut self, data: Bytes, extent: Extent) {
        if data.is_empty() {
            return;
        }
        let is_chunked = extent == Extent::Chunked;
        if is_chunked {
            // A writer into memory does not fail.
            let _ = write!(self.head, "{:x}\r\n", data.len());
        }
        if data.len() <= COPIED_MAX || is_chunked {
            self.head.extend_from_slice(&data);
        } else {
            self.tail = data;
        }
        if is_chunked {
            self.head.extend_from_slice(b"\r\n");
        }
    }

    /// Puts the end of a body.
    pub(crate) fn end(&mut self, extent: Extent) {
        if extent == Extent::Chunked {
            self.head.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// Whether this has to be written before more is put.
    pub(crate) fn is_full(&self) -> bool {
        !self.tail.is_empty() || self.head.len() >= COPIED_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.tail.is_empty()
    }

    /// What is not written yet.
    pub(crate) fn unsent(&self) -> [IoSlice<'_>; 2] {
        let head = self.head.get(self.n_sent..).unwrap_or_default();
        let n_of_tail = self.n_sent.saturating_sub(self.head.len());
        let tail = self.tail.get(n_of_tail..).unwrap_or_default();
        [IoSlice::new(head), IoSlice::new(tail)]
    }

    /// So much of it was written.
    pub(crate) fn sent(&mut self, n: usize) {
        self.n_sent += n;
        if self.n_sent < self.head.len() + self.tail.len() {
            return;
        }
        self.n_sent = 0;
        self.tail = Bytes::new();
        if self.head.capacity() > KEPT_MAX {
            self.head = Vec::new();
        } else {
            self.head.clear();
        }
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

fn number(out: &mut Vec<u8>, name: &str, n: u64) {
    // A writer into memory does not fail.
    let _ = write!(out, "{name}: {n}\r\n");
}

/// The time as HTTP has it (RFC 9110, section 5.6.7), put into words once a second.
fn with_date(put: impl FnOnce(&[u8])) {
    thread_local! {
        static WORDS: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WORDS.with_borrow_mut(|(of, words)| {
        if *of != second || words.is_empty() {
            (*of, *words) = (second, httpdate::fmt_http_date(now));
        }
        put(words.as_bytes());
    });
}

#[cfg(test)]
mod tests;
