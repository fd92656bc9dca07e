//! Heads of replies, as the asking side reads them.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::header::{HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};

use super::{Framing, HEAD_MAX, N_HEADERS_MAX, Told, WireError};
use crate::gateway::{DOOR_HEADER, LOAD_HEADER, QUEUE_HEADER};

/// The headers that are read by those who ask; the others of a reply are passed over.
const READ: [&str; 6] = [
    "content-type",
    "retry-after",
    "server",
    DOOR_HEADER,
    LOAD_HEADER,
    QUEUE_HEADER,
];

/// The head of a reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// Whether the connection may have another request after this one.
    pub(crate) is_kept: bool,
}

impl Reply {
    /// Takes the head of a reply from the front of what was read; `None` while it is not all there.
    ///
    /// # Errors
    /// [`WireError`] when it never will be one.
    pub(crate) fn take(read: &mut BytesMut) -> Result<Option<Self>, WireError> {
        loop {
            let mut room = [const { MaybeUninit::uninit() }; N_HEADERS_MAX];
            let mut parsed = httparse::Response::new(&mut []);
            let parsing = httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut parsed,
                read,
                &mut room,
            );
            let n_bytes = match parsing {
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
            let mut told = Told::default();
            for header in parsed.headers.iter() {
                if told.take(header.name, header.value)? {
                    continue;
                }
                let mut read = READ.iter();
                if !read.any(|name| name.eq_ignore_ascii_case(header.name)) {
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
            let framing = match status {
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Framing::Length(0),
                _ => told.framing(Framing::Close)?,
            };
            let is_kept = is_newest && !told.closes && framing != Framing::Close;
            return Ok(Some(Self {
                status,
                headers,
                framing,
                is_kept,
            }));
        }
    }
}
