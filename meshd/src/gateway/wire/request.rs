//! Heads of requests, as the serving side reads them.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::{Method, Uri};
use memchr::memmem;

use super::{Framing, HEAD_MAX, N_HEADERS_MAX, Told, WireError};

/// Up to this length a head is read anew whenever more of it came; a longer one when it is all there, so that one that comes
/// byte by byte costs little.
const READ_EAGERLY: usize = 4 << 10;

/// The head of a request: what is read of it here or by those who answer. No other header is looked at.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// As it was sent, without its query; empty where the target has none.
    pub(crate) path: String,
    pub(crate) fields: Fields,
    pub(crate) framing: Framing,
    /// Whether the caller speaks HTTP/1.1, and not 1.0.
    pub(crate) is_newest: bool,
    /// Whether the caller may send another request after this one.
    pub(crate) is_kept: bool,
    /// Whether the caller waits to be told that its body is wanted (RFC 9110, section 10.1.1).
    pub(crate) awaits_continue: bool,
}

/// Headers of a request, each of which may be given once and holds plain text.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) host: Option<String>,
    pub(crate) origin: Option<String>,
    pub(crate) content_encoding: Option<String>,
    /// What the client says of the host that it would like.
    pub(crate) prefer: Option<String>,
    /// The length of the body, where it is told.
    pub(crate) content_length: Option<u64>,
}

impl Fields {
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), WireError> {
        let field = if name.eq_ignore_ascii_case("host") {
            &mut self.host
        } else if name.eq_ignore_ascii_case("origin") {
            &mut self.origin
        } else if name.eq_ignore_ascii_case("content-encoding") {
            &mut self.content_encoding
        } else if name.eq_ignore_ascii_case("x-proxima-prefer") {
            &mut self.prefer
        } else {
            return Ok(());
        };
        let is_plain = |b: &u8| matches!(b, b' '..=b'~' | b'\t');
        let text = std::str::from_utf8(value)
            .ok()
            .filter(|text| text.as_bytes().iter().all(is_plain));
        let text = text.ok_or(WireError::Head)?;
        match field.replace(text.to_owned()) {
            None => Ok(()),
            Some(_) => Err(WireError::Twice),
        }
    }
}

/// Takes the head of a request from the front of what was read; `None` while it is not all there.
///
/// # Errors
/// [`WireError`] when it never will be one, or when it can be read in more than one way.
pub(crate) fn take_request(read: &mut BytesMut) -> Result<Option<Head>, WireError> {
    if read.is_empty() {
        return Ok(None);
    }
    let is_long = read.len() > HEAD_MAX;
    let has_end = || {
        [&b"\n\r\n"[..], b"\n\n"]
            .iter()
            .any(|end| memmem::find(read, end).is_some())
    };
    if read.len() > READ_EAGERLY && !is_long && !has_end() {
        return Ok(None);
    }
    let mut room = [const { MaybeUninit::uninit() }; N_HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let n_bytes = match parsed.parse_with_uninit_headers(read, &mut room) {
        Ok(httparse::Status::Complete(n)) if n <= HEAD_MAX => n,
        Ok(httparse::Status::Partial) if !is_long => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(WireError::HeadTooLong),
        Err(_) => return Err(WireError::Head),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(WireError::Head);
    };
    let is_newest = version == 1;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| WireError::Head)?;
    let path = path_of(&method, target)?;
    let mut fields = Fields::default();
    let mut told = Told::default();
    let mut awaits_continue = false;
    for header in parsed.headers.iter() {
        if told.take(header.name, header.value)? {
            continue;
        }
        if header.name.eq_ignore_ascii_case("expect") {
            awaits_continue |= header.value.eq_ignore_ascii_case(b"100-continue");
        } else {
            fields.take(header.name, header.value)?;
        }
    }
    fields.content_length = told.length;
    // HTTP/1.0 has no chunks: who sends some has something between that reads another end.
    if told.is_chunked && !is_newest {
        return Err(WireError::Framing);
    }
    let framing = told.framing(Framing::Length(0))?;
    let keeps = if is_newest {
        !told.closes
    } else {
        told.keeps && !told.closes
    };
    read.advance(n_bytes);
    Ok(Some(Head {
        is_kept: keeps && method != Method::CONNECT,
        method,
        path,
        fields,
        framing,
        is_newest,
        awaits_continue: awaits_continue && is_newest,
    }))
}

/// The path of a request's target (RFC 9112, section 3.2), never decoded.
fn path_of(method: &Method, target: &str) -> Result<String, WireError> {
    if target.starts_with('/') {
        let end = target.find(['?', '#']).unwrap_or(target.len());
        return Ok(target.get(..end).unwrap_or_default().to_owned());
    }
    if *method == Method::CONNECT || target == "*" {
        return Ok(String::new());
    }
    let target: Uri = target.parse().map_err(|_| WireError::Head)?;
    Ok(target.path().to_owned())
}

#[cfg(test)]
mod tests;
