//! HTTP/1.1 (RFC 9112): heads of requests and replies, and where their bodies end.
//!
//! Pure: bytes in, values out.

mod reply;
mod request;
mod write;

use bytes::{Buf, Bytes, BytesMut};

pub(super) use reply::Reply;
pub(super) use request::{Fields, Head, take_request};
pub(super) use write::{Extent, Outbox, ReplyTo};

/// The longest head, and the longest trailers.
const HEAD_MAX: usize = 64 << 10;
/// Headers of a message.
const N_HEADERS_MAX: usize = 64;
/// The longest line with the size of a chunk, extensions included.
const SIZE_LINE_MAX: usize = 1_024;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("its head is no HTTP/1.1")]
    Head,
    #[error("its head is too long")]
    HeadTooLong,
    #[error("it is not clear where its body ends")]
    Framing,
    #[error("its chunks are malformed")]
    Chunk,
    #[error("a header is given twice that may be given once")]
    Twice,
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

/// What the headers of a message tell of its end, and of its connection's.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    keeps: bool,
}

impl Told {
    /// Takes a header, if it is one of those.
    ///
    /// # Errors
    /// Two lengths that differ, one that is no plain number, or another coding than chunks: each is read in more than one way.
    fn take(&mut self, name: &str, value: &[u8]) -> Result<bool, WireError> {
        if name.eq_ignore_ascii_case("content-length") {
            let length = length(value).ok_or(WireError::Framing)?;
            if self.length.replace(length).is_some_and(|it| it != length) {
                return Err(WireError::Framing);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(WireError::Framing);
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for word in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                self.closes |= word.eq_ignore_ascii_case(b"close");
                self.keeps |= word.eq_ignore_ascii_case(b"keep-alive");
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Where the body ends; `silent` is what holds when nothing is told.
    ///
    /// # Errors
    /// A length beside chunks, which is how one message is passed off as two: neither is believed.
    fn framing(&self, silent: Framing) -> Result<Framing, WireError> {
        match (self.length, self.is_chunked) {
            (None, false) => Ok(silent),
            (None, true) => Ok(Framing::Chunked(Chunk::Size)),
            (Some(length), false) => Ok(Framing::Length(length)),
            (Some(_), true) => Err(WireError::Framing),
        }
    }
}

/// A length in digits alone: a sign, a list or another base is read in more than one way.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
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

    /// Whether nothing more is to come.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
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
