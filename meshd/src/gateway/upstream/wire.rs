//! HTTP/1.1 (RFC 9112) as the asking side reads it: heads of replies, and where their bodies end.
//!
//! Pure: bytes in, values out.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};

use crate::gateway::{DOOR_HEADER, LOAD_HEADER, QUEUE_HEADER};

/// The longest head of a reply, and the longest trailers.
const HEAD_MAX: usize = 64 << 10;
/// Headers of a reply.
const N_HEADERS_MAX: usize = 64;
/// The longest line with the size of a chunk, extensions included.
const SIZE_LINE_MAX: usize = 1_024;

/// The headers that are read here or by those who ask; the others of a reply are passed over.
const READ: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "retry-after",
    "server",
    "transfer-encoding",
    DOOR_HEADER,
    LOAD_HEADER,
    QUEUE_HEADER,
];

/// What is wrong with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("its head is no HTTP/1.1")]
    Head,
    #[error("its head is too long")]
    HeadTooLong,
    #[error("it is not clear where its body ends")]
    Framing,
    #[error("its chunks are malformed")]
    Chunk,
}

/// The head of a reply.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection may have another request after this one.
    pub(super) is_kept: bool,
}

/// Where a body ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunk),
    /// With the connection.
    Close,
}

/// The place within a chunked body (RFC 9112, section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before a size.
    Size,
    /// Within data, of which so much is left.
    Data(u64),
    /// Behind data.
    End,
    /// Within the trailers, of which so much has passed.
    Trailers(usize),
    /// Behind everything.
    Done,
}

/// What comes next of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Data(Bytes),
    /// Nothing until more has been read.
    More,
    End,
}

/// Takes the head of a reply from the front of what was read; `None` while it is not all there.
///
/// # Errors
/// [`WireError`] when it never will be one.
pub(super) fn take_head(read: &mut BytesMut) -> Result<Option<Head>, WireError> {
    loop {
        let mut room = [httparse::EMPTY_HEADER; N_HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut room);
        let n_bytes = match parsed.parse(read) {
            Ok(httparse::Status::Complete(n)) => n,
            Ok(httparse::Status::Partial) if read.len() > HEAD_MAX => {
                return Err(WireError::HeadTooLong);
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(WireError::Head),
        };
        let code = parsed.code.ok_or(WireError::Head)?;
        let status = StatusCode::from_u16(code).map_err(|_| WireError::Head)?;
        let is_newest = parsed.version == Some(1);
        let mut headers = HeaderMap::new();
        for header in parsed.headers.iter() {
            if !READ
                .iter()
                .any(|name| name.eq_ignore_ascii_case(header.name))
            {
                continue;
            }
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_bytes(header.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(WireError::Head);
            };
            headers.append(name, value);
        }
        read.advance(n_bytes);
        // Nothing was asked that another protocol would answer.
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(WireError::Head);
        }
        if status.is_informational() {
            continue;
        }
        let framing = framing(status, &headers)?;
        let is_kept = is_newest && !says_close(&headers) && framing != Framing::Close;
        return Ok(Some(Head {
            status,
            headers,
            framing,
            is_kept,
        }));
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        let mut words = value.as_bytes().split(|b| *b == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Two lengths that differ, or a length beside chunks, are how one reply is passed off as two: neither is believed.
fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, WireError> {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (Some(coding), None) => {
            let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            if is_chunked && codings.next().is_none() {
                Ok(Framing::Chunked(Chunk::Size))
            } else {
                Err(WireError::Framing)
            }
        }
        (None, Some(length)) => {
            if lengths.any(|other| other != length) {
                return Err(WireError::Framing);
            }
            let digits = length
                .to_str()
                .ok()
                .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
            let length = digits.and_then(|text| text.parse().ok());
            length.map(Framing::Length).ok_or(WireError::Framing)
        }
        (None, None) => Ok(Framing::Close),
        (Some(_), Some(_)) => Err(WireError::Framing),
    }
}

impl Framing {
    /// Takes the next piece of the body from the front of what was read.
    ///
    /// # Errors
    /// [`WireError::Chunk`] when the chunks are none.
    pub(super) fn step(&mut self, read: &mut BytesMut) -> Result<Step, WireError> {
        match self {
            Self::Length(left) => Ok(take(read, left, Step::End)),
            Self::Close if read.is_empty() => Ok(Step::More),
            Self::Close => Ok(Step::Data(read.split().freeze())),
            Self::Chunked(chunk) => chunk.step(read),
        }
    }

    /// How much is yet to come, where that is known.
    pub(super) fn n_left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Close => None,
        }
    }
}

/// So much of the wanted bytes as is there; `end` when none are wanted.
fn take(read: &mut BytesMut, left: &mut u64, end: Step) -> Step {
    if *left == 0 {
        return end;
    }
    if read.is_empty() {
        return Step::More;
    }
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
    *left -= n as u64;
    Step::Data(read.split_to(n).freeze())
}

impl Chunk {
    fn step(&mut self, read: &mut BytesMut) -> Result<Step, WireError> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(read, SIZE_LINE_MAX)? else {
                        return Ok(Step::More);
                    };
                    *self = match size(&line)? {
                        0 => Self::Trailers(0),
                        n => Self::Data(n),
                    };
                }
                Self::Data(0) => *self = Self::End,
                Self::Data(left) => return Ok(take(read, left, Step::More)),
                Self::End => match read.get(..2) {
                    None => return Ok(Step::More),
                    Some(b"\r\n") => {
                        read.advance(2);
                        *self = Self::Size;
                    }
                    Some(_) => return Err(WireError::Chunk),
                },
                Self::Trailers(n_passed) => {
                    let room = HEAD_MAX.saturating_sub(*n_passed);
                    let Some(line) = line(read, room)? else {
                        return Ok(Step::More);
                    };
                    *n_passed += line.len() + 2;
                    if line.is_empty() {
                        *self = Self::Done;
                    }
                }
                Self::Done => return Ok(Step::End),
            }
        }
    }
}

/// Takes a line, which is given without its end.
fn line(read: &mut BytesMut, n_max: usize) -> Result<Option<BytesMut>, WireError> {
    let Some(at) = read.iter().position(|b| *b == b'\n') else {
        return if read.len() > n_max {
            Err(WireError::Chunk)
        } else {
            Ok(None)
        };
    };
    let mut line = read.split_to(at + 1);
    if at > n_max || !line.ends_with(b"\r\n") {
        return Err(WireError::Chunk);
    }
    line.truncate(at - 1);
    Ok(Some(line))
}

fn size(line: &[u8]) -> Result<u64, WireError> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(WireError::Chunk);
    }
    let text = std::str::from_utf8(digits).map_err(|_| WireError::Chunk)?;
    u64::from_str_radix(text, 16).map_err(|_| WireError::Chunk)
}

#[cfg(test)]
mod tests;
