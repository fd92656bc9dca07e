//! A relay at this node, for its mesh: the listeners, and the stream by which the coordinator names it and tells whom it serves.
//!
//! The coordinator comes to the relay itself before it is named, and names it for as long as the stream is open. While no
//! coordinator is reached, the known members are served on.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::auth_key::pin_of;
use mesh_proto::control::{HEARTBEAT_MS, code};
use mesh_proto::key::{CoordinatorKey, CoordinatorPrivateKey, MachineKey};
use mesh_proto::netmap::Revision;
use mesh_proto::relay::{self, MembersBody, MembersFrame, Pin, RelayOffer};
use mesh_relay::chain::own_chain;
use mesh_relay::{Members, Relay, RelayConfig};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::{ControlError, Link};
use crate::metrics::OfferedRelay;

/// Connections at once, those that are no node's yet among them.
const N_CONNECTIONS_MAX: usize = 2_048;
const BACKLOG: i32 = 256;
const TLS_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_DEADLINE: Duration = Duration::from_secs(15);
/// How long a connection may stay unacknowledged before the kernel gives it up.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// What may wait in the kernel beyond what is under way: the rest waits where the relay can put it in order.
const UNSENT_MAX: u32 = 256 << 10;
/// Two missed heartbeats and some slack: then the stream is dead.
const SILENCE_MAX: Duration = Duration::from_millis(2 * HEARTBEAT_MS + 3_000);
/// No list of members is longer.
const LINE_LEN_MAX: usize = 64 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What an offer is made with.
pub(crate) struct OfferConfig {
    /// To the coordinator, with this node's signature.
    pub(crate) link: Link,
    pub(crate) coordinator: CoordinatorKey,
    /// This node.
    pub(crate) node: MachineKey,
    /// Vouches for the relay's certificate.
    pub(crate) key: CoordinatorPrivateKey,
    /// TCP and UDP.
    pub(crate) port: u16,
}

/// A relay that is offered until it is stopped.
#[derive(Debug)]
pub(crate) struct Offer {
    trouble: Arc<Mutex<Option<String>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Offer {
    pub(crate) fn start(config: OfferConfig) -> Self {
        let (trouble, stop) = (Arc::default(), CancellationToken::new());
        let task = tokio::spawn(offer(config, Arc::clone(&trouble), stop.clone()));
        Self {
            trouble,
            stop,
            task,
        }
    }

    /// Why the relay is of no use, when it is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes the offer back; nodes are told that the relay goes.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        // A task that broke has said so in the log; here only its end counts.
        let _ = self.task.await;
    }
}

fn tell(trouble: &Mutex<Option<String>>, news: Option<String>) {
    let mut told = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    if *told != news {
        match &news {
            Some(message) => tracing::warn!(message, "the relay of this node is of no use"),
            None => tracing::info!("the mesh has the relay of this node"),
        }
        *told = news;
    }
}

async fn offer(
    mut config: OfferConfig,
    trouble: Arc<Mutex<Option<String>>>,
    stop: CancellationToken,
) {
    let mut pause = RETRY_FIRST;
    let (members_tx, members) = watch::channel(Arc::default());
    let tasks = TaskTracker::new();
    let pin = Pin::from_bytes(pin_of(&config.key.public()));
    let port = config.port;
    loop {
        match serve(&config, pin, members.clone(), &stop, &tasks) {
            Ok(()) => break,
            Err(err) => tell(
                &trouble,
                Some(format!(
                    "the relay cannot listen on port {port}: {err:#}; free it, or name another as relay_port in meshd.toml"
                )),
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_LONGEST) => {}
        }
    }
    loop {
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            outcome = follow(&mut config, pin, &members_tx, &trouble) => outcome,
        };
        config.link.disconnect();
        match outcome {
            // It served for a while.
            Ok(()) => pause = RETRY_FIRST,
            Err(ControlError::Refused { code, message }) => {
                let is_unreached = code == code::RELAY_UNREACHABLE;
                tell(
                    &trouble,
                    Some(if is_unreached {
                        format!(
                            "the relay of this node is not used: {message}; open TCP and UDP port {port} in the firewall, and \
                             forward it where the node is behind a router"
                        )
                    } else {
                        format!("the coordinator does not take the relay of this node: {message}")
                    }),
                );
            }
            // That no coordinator is reached is told elsewhere.
            Err(err) => tracing::debug!(%err, "no word of the relay's members"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY_LONGEST);
    }
    tasks.close();
    if timeout(STOP_PATIENCE, tasks.wait()).await.is_err() {
        tracing::warn!("the relay stops with connections open");
    }
}

/// Starts the relay: its sockets, and the tasks that serve them until told to stop.
fn serve(
    config: &OfferConfig,
    pin: Pin,
    members: watch::Receiver<Arc<Members>>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    let any = [
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.port)),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.port)),
    ];
    let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
    for address in any {
        let opened = bind(address, Type::STREAM, Protocol::TCP).and_then(|tcp| {
            tcp.listen(BACKLOG)?;
            let udp = bind(address, Type::DGRAM, Protocol::UDP)?;
            Ok((
                TcpListener::from_std(tcp.into())?,
                UdpSocket::from_std(udp.into())?,
            ))
        });
        match opened {
            Ok((tcp, udp)) => {
                listeners.push(tcp);
                sockets.push(udp);
            }
            // There are machines without IPv6.
            Err(err) if address.is_ipv6() => tracing::debug!(%err, "the relay has no IPv6"),
            Err(err) => return Err(err.into()),
        }
    }
    let relay = Relay::new(RelayConfig {
        pin,
        bytes_per_second: 0,
        members,
        meter: Arc::new(OfferedRelay),
        stop: stop.clone(),
        tasks: tasks.clone(),
    });
    relay.serve_udp(sockets)?;
    let acceptor = TlsAcceptor::from(tls_config(&config.key)?);
    let places = Arc::new(Semaphore::new(N_CONNECTIONS_MAX));
    for listener in listeners {
        tasks.spawn(accept(
            listener,
            acceptor.clone(),
            Arc::clone(&relay),
            Arc::clone(&places),
            (stop.clone(), tasks.clone()),
        ));
    }
    tasks.spawn(relay.keep());
    Ok(())
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

fn tls_config(key: &CoordinatorPrivateKey) -> anyhow::Result<Arc<ServerConfig>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    // Who comes verifies the key by its pin, whatever the leaf's dates and names.
    let (chain, leaf_key) = own_chain(key, &[], now_ms)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, leaf_key)
        .context("the relay's certificate cannot be used")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    relay: Arc<Relay>,
    places: Arc<Semaphore>,
    (stop, tasks): (CancellationToken, TaskTracker),
) {
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                // Out of descriptors, or the connection was gone before it was taken: neither ends the listener.
                tracing::debug!(%err, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, relay, stop) = (acceptor.clone(), Arc::clone(&relay), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, &acceptor, &relay) => {}
            }
        });
    }
}

/// One connection, until it becomes a node's or ends. A node's goes on in a task of the relay.
async fn connection(stream: TcpStream, acceptor: &TlsAcceptor, relay: &Arc<Relay>) {
    notice_death(&stream);
    let Ok(Ok(stream)) = timeout(TLS_DEADLINE, acceptor.accept(stream)).await else {
        return;
    };
    let service = service_fn(async |mut request: Request<Incoming>| {
        let response = if request.uri().path() == relay::PATH {
            relay.upgrade(&mut request)
        } else {
            let mut response = Response::new("there is nothing but a relay here\n");
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        };
        Ok::<_, std::convert::Infallible>(
            response.map(|text| Full::new(Bytes::from_static(text.as_bytes()))),
        )
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(err) = served {
        tracing::trace!(%err, "a connection ended badly");
    }
}

/// Lets the kernel notice an end that vanished, and keeps what waits where it can be put in order.
fn notice_death(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
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

/// One stream of members, to its end.
async fn follow(
    config: &mut OfferConfig,
    pin: Pin,
    members: &watch::Sender<Arc<Members>>,
    trouble: &Mutex<Option<String>>,
) -> Result<(), ControlError> {
    let port = config.port;
    let response = config.link.open(&RelayOffer { port, pin }.path()).await?;
    let url = config.link.url().to_owned();
    let mut body = response.into_body();
    let mut read = BytesMut::new();
    let mut stands = Revision::default();
    loop {
        let broken = |reason: String| ControlError::BadReply {
            url: url.clone(),
            reason,
        };
        let frame = timeout(SILENCE_MAX, body.frame())
            .await
            .map_err(|_| broken("no word for too long".to_owned()))?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|err| broken(err.to_string()))?;
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&read[..=end]).map_err(|err| broken(err.to_string()))?;
            let frame = MembersFrame::from_line(line, &config.coordinator, &config.node)
                .map_err(|err| broken(err.to_string()))?;
            read.advance(end + 1);
            if frame.revision < stands {
                return Err(broken("it went back to an older mesh".to_owned()));
            }
            stands = frame.revision;
            take(members, frame.body);
            tell(trouble, None);
        }
        if read.len() > LINE_LEN_MAX {
            return Err(broken("a line without an end".to_owned()));
        }
    }
}

fn take(members: &watch::Sender<Arc<Members>>, body: MembersBody) {
    match body {
        MembersBody::Full(all) => {
            let keys = all
                .iter()
                .map(|member| (member.node_key, member.expires_at_ms));
            members.send_replace(Arc::new(Members::new(keys)));
        }
        MembersBody::Delta { added, removed } => members.send_modify(|known| {
            Arc::make_mut(known).apply(&added, &removed);
        }),
        MembersBody::Heartbeat {} => {}
    }
}

#[cfg(test)]
mod tests;
