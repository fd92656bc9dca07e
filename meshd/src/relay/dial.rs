//! A connection to a relay: TCP, TLS with the relay's pin, the HTTP upgrade, and the proof of the node key.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mesh_proto::key::NodePrivateKey;
use mesh_proto::relay::{
    Denial, FRAME_MAX, Frame, FrameError, PATH, RelayEntry, UPGRADE, VERSION, frame_len, prove,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::dial::{Dialer, host_and_port};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a URL has before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);
/// No answer of a relay to the upgrade is longer.
const HEAD_LEN_MAX: usize = 8 << 10;
/// TLS asks the kernel for little at a time; this asks for much.
const READ_AHEAD: usize = 64 << 10;
/// What may wait in the kernel beyond what is under way: what waits longer waits where small packets pass it.
const UNSENT_MAX: u32 = 128 << 10;

/// The stream to a relay.
pub(super) type Stream = TlsStream<BufReader<TcpStream>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The relay cannot be reached, or something else answers there.
    #[error("{url}: {source}")]
    Io {
        /// The URL that was tried.
        url: String,
        /// What happened.
        source: io::Error,
    },
    /// It answers by something that is no relay's.
    #[error("{url} does not answer as a relay: {reason}")]
    NoRelay {
        /// The URL.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The relay turns this node away.
    #[error("the relay turns this node away: {reason:?}")]
    Denied {
        /// Why.
        reason: Denial,
        /// When to come back at the earliest.
        retry_after: Duration,
    },
    /// The relay has no URL that can be used.
    #[error("the relay has no https:// URL")]
    NoUrl,
}

/// What it takes to connect.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub(super) node_key: NodePrivateKey,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) dialer: Dialer,
}

/// Connects by whichever of the relay's URLs answers first; what was read beyond the welcome comes along.
pub(super) async fn dial(
    relay: &RelayEntry,
    with: &Credentials,
) -> Result<(Stream, BytesMut), DialError> {
    let mut tries: FuturesUnordered<_> = relay
        .urls
        .iter()
        .enumerate()
        .map(|(idx, url)| async move {
            let idx = u32::try_from(idx).unwrap_or(u32::MAX);
            sleep(HEAD_START.saturating_mul(idx)).await;
            dial_url(relay, url, with).await
        })
        .collect();
    let mut error = DialError::NoUrl;
    while let Some(outcome) = tries.next().await {
        match outcome {
            Ok(connected) => return Ok(connected),
            // What the relay itself says is worth more than that one of its URLs is not reached.
            Err(err) => {
                if !matches!(error, DialError::Denied { .. }) {
                    error = err;
                }
            }
        }
    }
    Err(error)
}

async fn dial_url(
    relay: &RelayEntry,
    url: &str,
    with: &Credentials,
) -> Result<(Stream, BytesMut), DialError> {
    let failed = |source: io::Error| DialError::Io {
        url: url.to_owned(),
        source,
    };
    let (host, port) = host_and_port(url).ok_or(DialError::NoUrl)?;
    let stream = with.dialer.connect(&host, port).await.map_err(failed)?;
    socket2::SockRef::from(&stream)
        .set_tcp_notsent_lowat(UNSENT_MAX)
        .map_err(failed)?;
    let greeting = async {
        let name = ServerName::try_from(host.clone())
            .map_err(|err| failed(io::Error::new(io::ErrorKind::InvalidInput, err)))?;
        let stream = BufReader::with_capacity(READ_AHEAD, stream);
        let mut stream = TlsConnector::from(Arc::clone(&with.tls))
            .connect(name, stream)
            .await
            .map_err(failed)?;
        let mut read = upgrade(&mut stream, url).await?;
        greet(&mut stream, &mut read, relay, url, &with.node_key).await?;
        Ok((stream, read))
    };
    timeout(HANDSHAKE_DEADLINE, greeting)
        .await
        .map_err(|_| failed(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))?
}

/// Asks for the upgrade; gives what came behind the answer.
async fn upgrade<S>(stream: &mut S, url: &str) -> Result<BytesMut, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |source: io::Error| DialError::Io {
        url: url.to_owned(),
        source,
    };
    let no_relay = |reason: String| DialError::NoRelay {
        url: url.to_owned(),
        reason,
    };
    let host = url.trim_start_matches("https://").trim_end_matches('/');
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: {UPGRADE}\r\nuser-agent: meshd/{}\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut read = BytesMut::with_capacity(1024);
    let head = loop {
        if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            break read.split_to(at + 4);
        }
        if read.len() >= HEAD_LEN_MAX {
            return Err(no_relay("its answer does not end".to_owned()));
        }
        if stream.read_buf(&mut read).await.map_err(failed)? == 0 {
            return Err(no_relay("it hung up".to_owned()));
        }
    };
    let line = head[..]
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    if line.starts_with("HTTP/1.1 101") {
        Ok(read)
    } else {
        Err(no_relay(line))
    }
}

/// Proves the node key and waits for the welcome.
async fn greet<S>(
    stream: &mut S,
    read: &mut BytesMut,
    relay: &RelayEntry,
    url: &str,
    node_key: &NodePrivateKey,
) -> Result<(), DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let no_relay = |reason: &str| DialError::NoRelay {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    loop {
        let frame = next_frame(stream, read)
            .await
            .map_err(|source| DialError::Io {
                url: url.to_owned(),
                source,
            })?;
        match Frame::parse(&frame).map_err(|err| no_relay(&err.to_string()))? {
            Frame::Challenge { version, challenge } => {
                if version != VERSION {
                    return Err(no_relay("it speaks another version; update Proxima"));
                }
                let proof = prove(node_key, &relay.pin, &challenge)
                    .ok_or_else(|| no_relay("its challenge is no key"))?;
                let hello = Frame::Hello {
                    version: VERSION,
                    node: node_key.public(),
                    proof,
                };
                let sent = async {
                    stream.write_all(&hello.to_vec()).await?;
                    stream.flush().await
                };
                sent.await.map_err(|source| DialError::Io {
                    url: url.to_owned(),
                    source,
                })?;
            }
            Frame::Welcome { bytes_per_second } => {
                tracing::debug!(url, bytes_per_second, "the relay lets this node in");
                return Ok(());
            }
            Frame::Denied {
                reason,
                retry_after_ms,
            } => {
                return Err(DialError::Denied {
                    reason,
                    retry_after: Duration::from_millis(u64::from(retry_after_ms)),
                });
            }
            Frame::Unknown(_)
            | Frame::Health(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::UdpOffer { .. } => {}
            Frame::Hello { .. }
            | Frame::Send { .. }
            | Frame::Received { .. }
            | Frame::PeerGone { .. }
            | Frame::Restarting { .. }
            | Frame::UdpOff
            | Frame::RateLimited { .. } => return Err(no_relay("unexpected frame")),
        }
    }
}

async fn next_frame(
    stream: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
) -> io::Result<BytesMut> {
    loop {
        let len = frame_len(read, FRAME_MAX).map_err(|err: FrameError| io::Error::other(err))?;
        if let Some(len) = len {
            return Ok(read.split_to(len));
        }
        if stream.read_buf(read).await? == 0 {
            return Err(io::Error::other("the relay hung up"));
        }
    }
}

#[cfg(test)]
mod tests;
