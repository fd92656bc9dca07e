//! TCP to coordinators and relays: straight, or through an HTTP proxy by CONNECT (RFC 9110, section 9.3.6).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// No answer of a proxy to CONNECT is longer.
const ANSWER_LEN_MAX: usize = 8 << 10;
const PROXY_PORT: u16 = 3128;

/// How to reach what is outside.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    proxy: Option<Arc<Proxy>>,
}

/// An HTTP proxy and whom to reach without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of `proxy-authorization`.
    authorization: Option<String>,
    /// Hosts, domains and addresses that are reached straight; `*` for all.
    except: Vec<String>,
}

/// Why a proxy's URL cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is written http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
pub struct ProxyError;

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

impl Proxy {
    /// Reads a proxy's URL and the list of exceptions, separated by commas, as in `NO_PROXY`.
    ///
    /// # Errors
    /// [`ProxyError`] when the URL is of another form.
    pub fn parse(url: &str, except: &str) -> Result<Self, ProxyError> {
        let rest = url.trim().strip_prefix("http://").ok_or(ProxyError)?;
        let rest = rest.trim_end_matches('/');
        let (login, authority) = match rest.rsplit_once('@') {
            Some((login, authority)) => (Some(login), authority),
            None => (None, rest),
        };
        let authority: http::uri::Authority = authority.parse().map_err(|_| ProxyError)?;
        let host = unbracketed(authority.host());
        if host.is_empty() {
            return Err(ProxyError);
        }
        let authorization = login
            .map(|login| Ok(format!("Basic {}", BASE64.encode(&unescape(login)?))))
            .transpose()?;
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(PROXY_PORT),
            authorization,
            except: except
                .split(',')
                .map(|name| name.trim().to_ascii_lowercase())
                .filter(|name| !name.is_empty())
                .collect(),
        })
    }

    /// The proxy of the environment (`HTTPS_PROXY`, `NO_PROXY`, also in small letters).
    ///
    /// # Errors
    /// [`ProxyError`] when its URL is of another form.
    pub fn of_environment(
        var: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        let either = |name: &str| {
            var(name)
                .or_else(|| var(&name.to_ascii_lowercase()))
                .filter(|value| !value.is_empty())
        };
        either("HTTPS_PROXY")
            .map(|url| Self::parse(&url, &either("NO_PROXY").unwrap_or_default()))
            .transpose()
    }

    fn serves(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let ip = host.parse::<IpAddr>().ok();
        if ip.is_some_and(|ip| ip.is_loopback()) || host == "localhost" {
            return false;
        }
        !self.except.iter().any(|name| {
            let in_net = ip.is_some_and(|ip| {
                name.parse::<ipnet::IpNet>()
                    .is_ok_and(|net| net.contains(&ip))
            });
            let domain = name.trim_start_matches("*.").trim_start_matches('.');
            let is_below = host
                .strip_suffix(domain)
                .is_some_and(|front| front.is_empty() || front.ends_with('.'));
            name == "*" || in_net || is_below
        })
    }
}

/// Undoes percent escapes (RFC 3986, section 2.1).
fn unescape(text: &str) -> Result<Vec<u8>, ProxyError> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(ProxyError);
        };
        plain.push(u8::try_from(high * 16 + low).map_err(|_| ProxyError)?);
    }
    Ok(plain)
}

impl Dialer {
    /// Dials through a proxy, or straight.
    #[must_use]
    pub fn new(proxy: Option<Proxy>) -> Self {
        Self {
            proxy: proxy.map(Arc::new),
        }
    }

    /// Connects, within some seconds.
    ///
    /// # Errors
    /// When nothing answers there, or the proxy refuses.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let proxy = self.proxy.as_ref().filter(|proxy| proxy.serves(host));
        let connect = async {
            match proxy {
                None => TcpStream::connect((host, port)).await,
                Some(proxy) => {
                    let stream = TcpStream::connect((proxy.host.as_str(), proxy.port)).await;
                    let named = |err: io::Error| {
                        let text = format!("the proxy {}:{}: {err}", proxy.host, proxy.port);
                        io::Error::new(err.kind(), text)
                    };
                    tunnel(stream.map_err(named)?, proxy, host, port)
                        .await
                        .map_err(named)
                }
            }
        };
        let stream = timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        Ok(stream)
    }
}

/// Asks the proxy for a way through.
async fn tunnel(
    mut stream: TcpStream,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> io::Result<TcpStream> {
    let target = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let login = proxy
        .authorization
        .as_ref()
        .map(|value| format!("Proxy-Authorization: {value}\r\n"))
        .unwrap_or_default();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A byte at a time: what follows the head belongs to the tunnel. The other end does not speak first.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_LEN_MAX {
            return Err(io::Error::other("its answer does not end"));
        }
        answer.push(stream.read_u8().await?);
    }
    let line = answer.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let status = line.split(' ').nth(1).unwrap_or_default();
    match status {
        status if line.starts_with("HTTP/1.") && status.starts_with('2') => Ok(stream),
        "407" => Err(io::Error::other(
            "it wants a name and password: give them as http://USER:PASSWORD@HOST:PORT",
        )),
        _ => Err(io::Error::other(format!("it refuses: {line}"))),
    }
}

/// Notices a peer that is gone without a word, also while nothing is sent.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}

/// Host and port of an `https://` URL without anything behind them.
#[must_use]
pub fn host_and_port(url: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix("https://")?;
    let authority: http::uri::Authority = rest.split('/').next()?.parse().ok()?;
    let host = unbracketed(authority.host());
    (!host.is_empty()).then(|| (host.to_owned(), authority.port_u16().unwrap_or(443)))
}

/// An IPv6 address without the brackets that URLs need.
fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests;
