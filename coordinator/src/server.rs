//! Connections: TLS over TCP for nodes and operators afar, a Unix socket for the operator here. All bounded.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::api::Origin;
use crate::metrics;
use crate::read_ahead::ReadAhead;

const N_CONNECTIONS_MAX: usize = 16_384;
const N_LOCAL_CONNECTIONS_MAX: usize = 64;
const N_STREAMS_MAX: u32 = 64;
const BACKLOG: i32 = 1024;
const TLS_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_DEADLINE: Duration = Duration::from_secs(15);
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may stay unacknowledged before the kernel gives it up.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// What may wait in the kernel beyond what is under way: the rest waits where the relay can put it in order.
const UNSENT_MAX: u32 = 256 << 10;

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// Listens on one TCP address. An IPv6 one leaves IPv4 alone, so that both can be listened on at one port.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Listens on TCP addresses. Where they are the default, the IPv6 one may be missing.
pub(crate) fn listen(
    wanted: &[SocketAddr],
    is_default: bool,
) -> anyhow::Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in wanted {
        match bind_tcp(*address) {
            Ok(listener) => {
                addresses.push(listener.local_addr()?);
                listeners.push(listener);
            }
            Err(err) if is_default && address.is_ipv6() && !addresses.is_empty() => {
                tracing::debug!(%err, "no IPv6 here; listening on IPv4 alone");
            }
            Err(err) => {
                return Err(err).with_context(|| {
                    format!("cannot listen on {address} (TCP); choose another address or port with --listen")
                });
            }
        }
    }
    Ok((listeners, addresses))
}

/// Opens a UDP address.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(bind(address, Type::DGRAM, Protocol::UDP)?.into())
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Listens on the admin socket, in place of what an earlier run left there, and tells whose it is.
///
/// The state directory's lock keeps other coordinators off.
pub(crate) fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, u32)> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("cannot replace {}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let own_uid = std::fs::metadata(path)?.uid();
    Ok((listener, own_uid))
}

/// Serves nodes and operators over TLS until told to stop.
pub(crate) async fn serve_tls(shared: Shared, listener: TcpListener, tls: TlsAcceptor) {
    let places = Arc::new(Semaphore::new(N_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                pause(&err).await;
                continue;
            }
        };
        let (shared_here, tls) = (shared.clone(), tls.clone());
        shared.tasks.spawn(async move {
            let _place = place;
            notice_death(&stream);
            let handshake = tokio::select! {
                () = shared_here.stop.cancelled() => return,
                handshake = tokio::time::timeout(TLS_DEADLINE, tls.accept(ReadAhead::new(stream))) => handshake,
            };
            if let Ok(Ok(stream)) = handshake {
                serve_connection(shared_here, TokioIo::new(stream), Origin::Remote(from)).await;
            }
        });
    }
}

/// Serves the operator on this machine until told to stop.
pub(crate) async fn serve_unix(shared: Shared, listener: UnixListener, own_uid: u32) {
    let places = Arc::new(Semaphore::new(N_LOCAL_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                pause(&err).await;
                continue;
            }
        };
        let origin = Origin::Local {
            is_operator: is_operator(&stream, own_uid),
        };
        let shared_here = shared.clone();
        shared.tasks.spawn(async move {
            let _place = place;
            serve_connection(shared_here, TokioIo::new(stream), origin).await;
        });
    }
}

/// Whether the other end is root or the user that the coordinator itself runs as.
fn is_operator(stream: &UnixStream, own_uid: u32) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| [0, own_uid].contains(&peer.uid()))
}

/// Out of file descriptors, or the connection was gone before it was taken: neither ends the listener.
async fn pause(err: &io::Error) {
    tracing::debug!(%err, "cannot take a connection");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Lets the kernel notice an end that vanished, so that a dead node's map stream does not stay open.
fn notice_death(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(PING_EVERY)
        .with_interval(Duration::from_secs(5))
        .with_retries(2);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)))
        .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT_MAX));
    if let Err(err) = set {
        tracing::debug!(%err, "cannot set keepalive on a connection");
    }
}

async fn serve_connection<S>(shared: Shared, io: S, origin: Origin)
where
    S: Read + Write + Unpin + Send + 'static,
{
    metrics::connection_opened();
    let router = shared.router.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(origin);
        router.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_DEADLINE)
        .max_concurrent_streams(N_STREAMS_MAX);
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = result {
        tracing::trace!(%err, "a connection ended badly");
    }
    metrics::connection_closed();
}
