//! The HTTP proxy: CONNECT to any port, and requests for `http://` URLs, one a connection.

use std::io;
use std::net::IpAddr;

use ::http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::in_time;
use super::reach::{Reach, Refusal, Target};

/// The longest head of a request.
const HEAD_MAX: usize = 32 << 10;
const N_HEADERS_MAX: usize = 100;
/// What is left unread is thrown away up to here, so that a refusal is not lost to a reset.
const REST_MAX: usize = 1 << 20;

/// Fields that speak of the connection to this proxy and end here (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authorization",
    "te",
    "upgrade",
];

/// A request that this proxy can carry.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    target: Target,
    port: u16,
    /// The head to send instead of the client's; empty for CONNECT, which is answered here.
    head: Vec<u8>,
    /// How long the client's head was.
    used: usize,
}

/// Why a request is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error("this is no HTTP request")]
    NoHttp,
    #[error("the head of the request is too long")]
    TooLong,
    #[error(
        "this is the HTTP proxy of a mesh and no web server: have a client use it by HTTP_PROXY, and see `meshctl status`"
    )]
    NoProxyRequest,
    #[error("this proxy takes http:// URLs, and CONNECT for anything else")]
    OtherScheme,
}

/// Serves one client up to the point where its bytes flow.
pub(super) async fn serve(mut stream: TcpStream, reach: &Reach) -> io::Result<()> {
    let mut bytes = Vec::new();
    let asked = match in_time(read_head(&mut stream, &mut bytes)).await? {
        Ok(asked) => asked,
        Err(wrong) => {
            let status = match wrong {
                Wrong::NoHttp | Wrong::NoProxyRequest => "400 Bad Request",
                Wrong::TooLong => "431 Request Header Fields Too Large",
                Wrong::OtherScheme => "501 Not Implemented",
            };
            return refuse(stream, status, &wrong.to_string()).await;
        }
    };
    let reached = match reach.open(&asked.target, asked.port).await {
        Ok(reached) => reached,
        Err(refusal) => {
            tracing::debug!(%refusal, "an HTTP proxy's client is refused");
            return refuse(stream, status(refusal), &refusal.to_string()).await;
        }
    };
    let mut early = asked.head;
    if early.is_empty() {
        let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
        stream.write_all(established).await?;
    }
    early.extend_from_slice(bytes.get(asked.used..).unwrap_or_default());
    reached.join(stream, early).await
}

const fn status(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Foreign => "403 Forbidden",
        Refusal::NoName | Refusal::NoNode | Refusal::NoService | Refusal::Refused => {
            "502 Bad Gateway"
        }
        Refusal::Silent => "504 Gateway Timeout",
        Refusal::Busy => "503 Service Unavailable",
    }
}

async fn read_head(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> io::Result<Result<Asked, Wrong>> {
    loop {
        let n = stream.read_buf(bytes).await?;
        match parse(bytes) {
            Ok(Some(asked)) => return Ok(Ok(asked)),
            Ok(None) if bytes.len() >= HEAD_MAX => return Ok(Err(Wrong::TooLong)),
            Ok(None) if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(None) => {}
            Err(wrong) => return Ok(Err(wrong)),
        }
    }
}

/// Reads a head; `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<Asked>, Wrong> {
    let mut fields = [httparse::EMPTY_HEADER; N_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Wrong::TooLong),
        Err(_) => return Err(Wrong::NoHttp),
    };
    let (Some(method), Some(path), Some(version)) = (request.method, request.path, request.version)
    else {
        return Err(Wrong::NoHttp);
    };
    let uri: Uri = path.parse().map_err(|_| Wrong::NoHttp)?;
    let Some(authority) = uri.authority() else {
        return Err(Wrong::NoProxyRequest);
    };
    let target = target(authority.host()).ok_or(Wrong::NoHttp)?;
    if method == "CONNECT" {
        let port = authority.port_u16().ok_or(Wrong::NoHttp)?;
        return Ok(Some(Asked {
            target,
            port,
            head: Vec::new(),
            used,
        }));
    }
    match uri.scheme_str() {
        Some("http") => {}
        Some(_) => return Err(Wrong::OtherScheme),
        None => return Err(Wrong::NoProxyRequest),
    }
    // Userinfo is nobody's business but the client's.
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let head = head(method, path, version, host, request.headers);
    Ok(Some(Asked {
        target,
        port: authority.port_u16().unwrap_or(80),
        head,
        used,
    }))
}

fn target(host: &str) -> Option<Target> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let ip = bare.unwrap_or(host).parse::<IpAddr>().ok();
    match (ip, bare) {
        (Some(ip), _) => Some(Target::Ip(ip.to_canonical())),
        (None, None) if !host.is_empty() => Some(Target::Name(host.to_owned())),
        (None, _) => None,
    }
}

/// The head as the destination gets it: for one request on a connection of its own.
fn head(
    method: &str,
    path: &str,
    version: u8,
    host: &str,
    fields: &[httparse::Header<'_>],
) -> Vec<u8> {
    let connection = fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("connection"));
    let named: Vec<&str> = connection
        .filter_map(|field| str::from_utf8(field.value).ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let mut head = format!("{method} {path} HTTP/1.{version}\r\nHost: {host}\r\n").into_bytes();
    for field in fields {
        let is_named = |name: &&str| name.eq_ignore_ascii_case(field.name);
        // What frames the body stays, whatever the client says of it.
        let is_framing = ["content-length", "transfer-encoding"].iter().any(is_named);
        let is_ours = HOP_BY_HOP.iter().chain(&["host"]).any(is_named)
            || (!is_framing && named.iter().any(is_named));
        if is_ours {
            continue;
        }
        head.extend_from_slice(field.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(field.value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    head
}

async fn refuse(mut stream: TcpStream, status: &str, text: &str) -> io::Result<()> {
    let len = text.len() + 1;
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(u64::try_from(REST_MAX).unwrap_or(u64::MAX));
    in_time(tokio::io::copy(&mut rest, &mut tokio::io::sink())).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(text: &str) -> Result<Option<Asked>, Wrong> {
        parse(text.as_bytes())
    }

    #[test]
    fn connect_is_understood() {
        let name = asked("CONNECT gpu.node.proxima:22 HTTP/1.1\r\nHost: x\r\n\r\nrest").unwrap();
        let name = name.unwrap();
        assert_eq!(name.target, Target::Name("gpu.node.proxima".to_owned()));
        assert_eq!((name.port, name.head.len()), (22, 0));
        for (authority, ip) in [("10.77.1.0:80", "10.77.1.0"), ("[fd00::1]:80", "fd00::1")] {
            let request = format!("CONNECT {authority} HTTP/1.1\r\n\r\n");
            let found = asked(&request).unwrap().unwrap();
            assert_eq!(found.target, Target::Ip(ip.parse().unwrap()), "{authority}");
        }
        assert_eq!(
            asked("CONNECT gpu.node.proxima HTTP/1.1\r\n\r\n"),
            Err(Wrong::NoHttp)
        );
    }

    #[test]
    fn a_request_goes_on_without_what_was_meant_for_the_proxy() {
        let text = "POST http://u:p@Gpu.node.proxima:8080/a?b=c HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\n\
                    Connection: keep-alive, X-Hop, Content-Length\r\nX-Hop: 1\r\nContent-Length: 4\r\nAccept: */*\r\n\r\nbody";
        let found = asked(text).unwrap().unwrap();
        assert_eq!((found.port, &text[found.used..]), (8080, "body"));
        assert_eq!(
            String::from_utf8(found.head).unwrap(),
            "POST /a?b=c HTTP/1.1\r\nHost: Gpu.node.proxima:8080\r\nContent-Length: 4\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        let found = asked("GET http://ollama.proxima HTTP/1.0\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(found.port, 80);
        assert!(
            found
                .head
                .starts_with(b"GET / HTTP/1.0\r\nHost: ollama.proxima\r\n")
        );
    }

    #[test]
    fn what_no_client_of_a_proxy_sends_is_refused() {
        // The first is what a web page can make a browser send here.
        let cases = [
            (
                "GET / HTTP/1.1\r\nHost: 127.0.0.1:1056\r\n\r\n",
                Wrong::NoProxyRequest,
            ),
            (
                "GET https://gpu.node.proxima/ HTTP/1.1\r\n\r\n",
                Wrong::OtherScheme,
            ),
            (
                "GET ftp://gpu.node.proxima/ HTTP/1.1\r\n\r\n",
                Wrong::OtherScheme,
            ),
            ("OPTIONS * HTTP/1.1\r\n\r\n", Wrong::NoProxyRequest),
            (
                "GET gpu.node.proxima HTTP/1.1\r\n\r\n",
                Wrong::NoProxyRequest,
            ),
            ("\u{5}\u{1}\u{0}", Wrong::NoHttp),
        ];
        for (text, wrong) in cases {
            assert_eq!(asked(text), Err(wrong), "{text}");
        }
        let many = "A: b\r\n".repeat(N_HEADERS_MAX + 1);
        let text = format!("GET http://a.proxima/ HTTP/1.1\r\n{many}\r\n");
        assert_eq!(asked(&text), Err(Wrong::TooLong));
        assert_eq!(asked("GET http://a.proxima/ HTTP/1.1\r\nHost"), Ok(None));
    }

    proptest! {
        #[test]
        fn no_head_upsets_the_proxy(
            method in "(GET|CONNECT|[A-Z]{0,8})",
            url in "(http://|https://|)[a-z@:.\\[\\]0-9/?#%-]{0,40}",
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = format!("{method} {url} HTTP/1.1\r\n").into_bytes();
            bytes.extend(rest);
            bytes.extend_from_slice(b"\r\n\r\n");
            if let Ok(Some(asked)) = parse(&bytes) {
                prop_assert!(asked.used <= bytes.len());
                prop_assert!(asked.head.is_empty() || asked.head.ends_with(b"Connection: close\r\n\r\n"));
            }
        }
    }
}
