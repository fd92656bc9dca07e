//! Userspace mode's proxies: SOCKS5 and HTTP on loopback, by which this machine's programs reach the mesh and nothing else.
//!
//! A proxy agrees with its client on a destination, opens the connection, and leaves both to the stack, which moves the
//! bytes. Destinations outside of the mesh are refused: whoever reaches these ports, a web page in a browser included, gains
//! no way out that it did not have.

mod http;
mod reach;
mod socks5;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use reach::{Door, Reach};

/// Clients that a proxy talks with at a time; connections that came about do not count.
const N_CLIENTS_MAX: usize = 256;
/// How long a client may take to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 1928, without authentication, CONNECT alone.
    Socks5,
    /// CONNECT, and requests for `http://` URLs.
    Http,
}

/// Serves clients until cancelled.
pub async fn serve(
    listener: TcpListener,
    protocol: Protocol,
    reach: Arc<Reach>,
    cancel: CancellationToken,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < N_CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    let reach = Arc::clone(&reach);
                    clients.spawn(async move {
                        if let Err(err) = client(stream, protocol, &reach).await {
                            tracing::debug!(%err, "a proxy's client went away");
                        }
                    });
                }
                Err(err) => {
                    tracing::warn!(%err, "a proxy cannot accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
        }
    }
}

async fn client(stream: TcpStream, protocol: Protocol, reach: &Reach) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match protocol {
        Protocol::Socks5 => socks5::serve(stream, reach).await,
        Protocol::Http => http::serve(stream, reach).await,
    }
}

/// Waits for a client no longer than it may take.
async fn in_time<T>(what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HEAD_TIMEOUT, what)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
