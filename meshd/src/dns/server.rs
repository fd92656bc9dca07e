//! The resolver's sockets: answers this machine's own programs, by UDP and TCP.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use mesh_proto::id::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ALIAS;
use super::message::{self, Question, Received, Transport};
use super::upstream::Upstreams;
use super::zone::{Reply, Zone};
use crate::catalog::Keeper;
use crate::choice::Hosts;
use crate::view::{View, ViewReceiver};

/// Tries for a port that is free for UDP and TCP on every address.
const N_BIND_TRIES: usize = 64;
const N_READERS: usize = 2;
const N_CONNECTIONS_MAX: usize = 128;
const N_QUESTIONS_PER_CONNECTION: usize = 1000;
/// RFC 7766: a few seconds.
const TCP_IDLE: Duration = Duration::from_secs(10);
const DATAGRAM_LEN_MAX: usize = 4096;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The resolver, listening and not yet answering.
#[derive(Debug)]
pub struct DnsServer {
    port: u16,
    sockets: Vec<(UdpSocket, TcpListener)>,
    view: ViewReceiver,
    hosts: Arc<Hosts>,
    resolver: Arc<Resolver>,
}

/// The zone, for the parts of this process that look names up themselves.
#[derive(Debug, Clone)]
pub struct Names(Arc<Resolver>);

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// These addresses, best first; IPv4 before IPv6. Never empty.
    Addrs(Vec<IpAddr>),
    /// A name of the mesh that nothing answers to.
    Missing,
    /// A name that is none of the mesh's.
    Foreign,
}

impl Names {
    /// The answer to a question of class IN; `None` for a name that is none of the mesh's.
    #[must_use]
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Reply> {
        let zone = self.0.zone.load();
        zone.as_ref().and_then(|zone| zone.answer(name, kind))
    }

    /// The addresses of a name as a program writes it.
    #[must_use]
    pub fn addrs(&self, text: &str) -> Found {
        let Ok(mut name) = Name::from_ascii(text) else {
            return Found::Foreign;
        };
        name.set_fqdn(true);
        let mut addrs = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let Some(reply) = self.answer(&name, kind) else {
                return if is_mesh_name(&name) {
                    Found::Missing
                } else {
                    Found::Foreign
                };
            };
            addrs.extend(
                reply
                    .answers
                    .iter()
                    .filter_map(|record| record.data.ip_addr()),
            );
        }
        if addrs.is_empty() {
            Found::Missing
        } else {
            Found::Addrs(addrs)
        }
    }

    /// Whether an address lies in the mesh's ranges.
    #[must_use]
    pub fn is_mesh_addr(&self, ip: IpAddr) -> bool {
        let zone = self.0.zone.load();
        zone.as_ref().is_some_and(|zone| zone.is_mesh_addr(ip))
    }
}

/// What all sockets share.
#[derive(Debug)]
struct Resolver {
    zone: ArcSwapOption<Zone>,
    keeper: Mutex<Keeper>,
    hosts: Arc<Hosts>,
    upstreams: Arc<Upstreams>,
    listening: Vec<IpAddr>,
    connections: Semaphore,
}

impl DnsServer {
    /// Listens on one free port, the same for UDP and TCP on all addresses.
    ///
    /// # Errors
    /// When an address is not this machine's, or no port is free.
    pub async fn bind(
        addrs: &[IpAddr],
        view: ViewReceiver,
        hosts: Arc<Hosts>,
        upstreams: Arc<Upstreams>,
    ) -> io::Result<Self> {
        let (port, sockets) = bind_all(addrs).await?;
        let known = Arc::clone(&hosts);
        let resolver = Resolver::new(view.borrow().as_deref(), known, upstreams, addrs.to_vec());
        Ok(Self {
            port,
            sockets,
            view,
            hosts,
            resolver: Arc::new(resolver),
        })
    }

    /// Answers this process alone, by [`Self::names`].
    #[must_use]
    pub fn without_sockets(
        view: ViewReceiver,
        hosts: Arc<Hosts>,
        upstreams: Arc<Upstreams>,
    ) -> Self {
        let known = Arc::clone(&hosts);
        let resolver = Resolver::new(view.borrow().as_deref(), known, upstreams, Vec::new());
        Self {
            port: 0,
            sockets: Vec::new(),
            view,
            hosts,
            resolver: Arc::new(resolver),
        }
    }

    /// The zone as it is at the moment, for as long as the server runs.
    #[must_use]
    pub fn names(&self) -> Names {
        Names(Arc::clone(&self.resolver))
    }

    /// The port of all its sockets; 0 without any.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Answers until cancelled; no task of it is left when this returns.
    pub async fn run(self, cancel: CancellationToken) {
        let tasks = TaskTracker::new();
        for (udp, tcp) in self.sockets {
            let udp = Arc::new(udp);
            for _ in 0..N_READERS {
                let reader = read_datagrams(
                    Arc::clone(&self.resolver),
                    Arc::clone(&udp),
                    tasks.clone(),
                    cancel.clone(),
                );
                tasks.spawn(cancelled_by(cancel.clone(), reader));
            }
            let acceptor = accept_connections(
                Arc::clone(&self.resolver),
                tcp,
                tasks.clone(),
                cancel.clone(),
            );
            tasks.spawn(cancelled_by(cancel.clone(), acceptor));
        }
        let follower = follow(self.resolver, self.view, self.hosts);
        tasks.spawn(cancelled_by(cancel.clone(), follower));
        cancel.cancelled().await;
        tasks.close();
        tasks.wait().await;
    }
}

async fn cancelled_by(cancel: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

async fn bind_all(addrs: &[IpAddr]) -> io::Result<(u16, Vec<(UdpSocket, TcpListener)>)> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
    for _ in 0..N_BIND_TRIES {
        match bind_once(addrs).await {
            Ok(bound) => return Ok(bound),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => last = err,
            Err(err) => return Err(err),
        }
    }
    Err(last)
}

async fn bind_once(addrs: &[IpAddr]) -> io::Result<(u16, Vec<(UdpSocket, TcpListener)>)> {
    let mut port = 0;
    let mut sockets = Vec::new();
    for ip in addrs {
        let udp = UdpSocket::bind((*ip, port)).await?;
        port = udp.local_addr()?.port();
        sockets.push((udp, TcpListener::bind((*ip, port)).await?));
    }
    match port {
        0 => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no address to listen on",
        )),
        port => Ok((port, sockets)),
    }
}

/// Makes the zone anew on each change of the view and of what this node knows of its hosts.
async fn follow(resolver: Arc<Resolver>, mut view: ViewReceiver, hosts: Arc<Hosts>) {
    let mut found = hosts.subscribe();
    let mut seen: Option<Arc<View>> = None;
    let mut down = BTreeSet::new();
    loop {
        let next_up = hosts.next_up(Instant::now());
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // Its sender lives as long as `hosts` does.
            Ok(()) = found.changed() => {}
            () = sleep_until(next_up) => {}
        }
        // Compared, not taken from what woke this: one change must not swallow another that came with it.
        let current = view.borrow_and_update().clone();
        let is_same = match (&seen, &current) {
            (Some(seen), Some(current)) => Arc::ptr_eq(seen, current),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let now_down = current
            .as_deref()
            .map(|view| down_hosts(view, &hosts))
            .unwrap_or_default();
        if !is_same || now_down != down {
            resolver.rebuild(current.as_deref(), &now_down);
            down = now_down;
        }
        seen = current;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn down_hosts(view: &View, hosts: &Hosts) -> BTreeSet<NodeId> {
    let now = Instant::now();
    let sharing = view
        .netmap
        .peers
        .iter()
        .filter(|(_, peer)| !peer.offers.models.is_empty());
    sharing
        .map(|(id, _)| *id)
        .filter(|id| hosts.is_down(id, now))
        .collect()
}

async fn read_datagrams(
    resolver: Arc<Resolver>,
    socket: Arc<UdpSocket>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let (n, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(err) => {
                tracing::debug!(%err, "a DNS socket cannot be read");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        match resolver.handle(from, &buffer[..n], Transport::Udp) {
            Outcome::Nothing => {}
            Outcome::Answer(bytes) => send(&socket, from, &bytes).await,
            Outcome::Forward(question) => {
                // Bounded: past its limit of questions in flight an upstream refuses without waiting.
                let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
                let work =
                    async move { send(&socket, from, &resolver.forward(&question).await).await };
                tasks.spawn(cancelled_by(cancel.clone(), work));
            }
        }
    }
}

async fn send(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) {
    if let Err(err) = socket.send_to(bytes, to).await {
        tracing::debug!(%err, "a DNS answer cannot be sent");
    }
}

async fn accept_connections(
    resolver: Arc<Resolver>,
    listener: TcpListener,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) if resolver.is_served(from.ip()) => {
                let resolver = Arc::clone(&resolver);
                let work = async move {
                    // Past the limit the connection is closed; resolvers then ask again.
                    let Ok(_permit) = resolver.connections.try_acquire() else {
                        return;
                    };
                    if let Err(err) = serve_connection(&resolver, stream, from).await {
                        tracing::trace!(%err, "a DNS connection ended");
                    }
                };
                tasks.spawn(cancelled_by(cancel.clone(), work));
            }
            Ok(_) => {}
            Err(err) => {
                tracing::debug!(%err, "a DNS connection cannot be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve_connection(
    resolver: &Resolver,
    mut stream: TcpStream,
    from: SocketAddr,
) -> io::Result<()> {
    for _ in 0..N_QUESTIONS_PER_CONNECTION {
        let request = tokio::time::timeout(TCP_IDLE, read_frame(&mut stream)).await??;
        let answer = match resolver.handle(from, &request, Transport::Tcp) {
            Outcome::Nothing => return Ok(()),
            Outcome::Answer(bytes) => bytes,
            Outcome::Forward(question) => resolver.forward(&question).await,
        };
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let frame = [&len.to_be_bytes(), answer.as_slice()].concat();
        tokio::time::timeout(TCP_IDLE, stream.write_all(&frame)).await??;
    }
    Ok(())
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = usize::from(stream.read_u16().await?);
    if len > DATAGRAM_LEN_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a question of that length is none",
        ));
    }
    let mut request = vec![0; len];
    stream.read_exact(&mut request).await?;
    Ok(request)
}

enum Outcome {
    Nothing,
    Answer(Vec<u8>),
    Forward(Box<Question>),
}

impl Resolver {
    fn new(
        view: Option<&View>,
        hosts: Arc<Hosts>,
        upstreams: Arc<Upstreams>,
        listening: Vec<IpAddr>,
    ) -> Self {
        let resolver = Self {
            zone: ArcSwapOption::empty(),
            keeper: Mutex::default(),
            hosts,
            upstreams,
            listening,
            connections: Semaphore::new(N_CONNECTIONS_MAX),
        };
        resolver.rebuild(view, &BTreeSet::new());
        resolver
    }

    fn rebuild(&self, view: Option<&View>, down: &BTreeSet<NodeId>) {
        let zone = view.map(|view| {
            let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            let catalog = keeper.keep(view, |node| down.contains(node));
            Arc::new(Zone::build(view, catalog).ordered_by(Arc::clone(&self.hosts)))
        });
        self.zone.store(zone);
    }

    /// Only this machine is answered: peers have resolvers of their own, and the LAN has no business here.
    fn is_served(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        from.is_loopback()
            || self.listening.contains(&from)
            || self
                .zone
                .load()
                .as_ref()
                .is_some_and(|zone| zone.is_own_addr(from))
    }

    fn handle(&self, from: SocketAddr, bytes: &[u8], transport: Transport) -> Outcome {
        if !self.is_served(from.ip()) {
            return Outcome::Nothing;
        }
        // A message that trips a fault in a parser costs its asker an answer, not everybody the resolver.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.judge(bytes, transport)));
        outcome.unwrap_or_else(|_| {
            tracing::error!(
                "a DNS question broke the resolver; report this with `meshctl bugreport`"
            );
            Outcome::Nothing
        })
    }

    fn judge(&self, bytes: &[u8], transport: Transport) -> Outcome {
        let question = match message::receive(bytes, transport) {
            Received::Question(question) => question,
            Received::Refused(bytes) => return Outcome::Answer(bytes),
            Received::Ignored => return Outcome::Nothing,
        };
        let (name, kind) = (question.query().name(), question.query().query_type());
        let zone = self.zone.load();
        match zone.as_ref().and_then(|zone| zone.answer(name, kind)) {
            Some(reply) => Outcome::Answer(question.answer(reply)),
            None if is_mesh_name(name) && zone.is_none() => {
                Outcome::Answer(question.error(ResponseCode::ServFail))
            }
            None if is_mesh_name(name) => Outcome::Answer(question.error(ResponseCode::NXDomain)),
            None => Outcome::Forward(question),
        }
    }

    async fn forward(&self, question: &Question) -> Vec<u8> {
        let zone = self.zone.load_full();
        let is_own = |ip| {
            self.listening.contains(&ip) || zone.as_ref().is_some_and(|zone| zone.is_mesh_addr(ip))
        };
        self.upstreams.ask(question, is_own).await
    }
}

/// Whether a name is one that only meshes have, of whatever suffix this one is: such names leak nowhere.
fn is_mesh_name(name: &Name) -> bool {
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    ["proxima", ALIAS].iter().any(|zone| {
        text.strip_suffix(zone)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests;
