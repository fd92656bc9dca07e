//! Moves packets: for each worker a thread, a UDP socket and some TUN queues, and the way to the daemon's loop.
//!
//! Relays' links hand what they deliver to the first worker. Packets never pass through the daemon's loop. What does is little and bounded: handshakes, STUN answers and what
//! the engine's plane noticed. When the loop falls behind, those are dropped and counted; peers repeat them.

mod counter;
mod inbound;
mod outbound;
mod spare;
mod steer;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use mesh_engine::{Destination, Plane, PlaneEvent, Transmit};
use mesh_io::tun::{Tun, TunConfig, TunQueue};
use mesh_io::udp::{UdpConfig, UdpSocket};
use mesh_io::wait::Waker;
use mesh_io::{Capabilities, TunCapabilities};
use mesh_proto::id::RelayId;
use mesh_proto::key::NodeKey;
use tokio::sync::mpsc;

use counter::Counters;
pub use counter::DataplaneStats;
use spare::Spares;
pub(crate) use steer::flow_hash;
use worker::{Link, N_QUEUES};

use crate::relay::{Delivery, RelaySender};

/// The port that is tried first when none is asked for, so that firewalls can be told of it.
pub const DEFAULT_PORT: u16 = 41_820;

/// How much may wait for the daemon's loop.
const N_INPUTS: usize = 1024;

/// What a stack in this process takes: TCP segments merged, and any checksum left to it.
const STACK_CAPABILITIES: TunCapabilities = TunCapabilities {
    has_header: true,
    has_tcp: true,
    has_udp: false,
};

/// Control datagrams are short, handshakes 148 bytes, STUN a few hundred, but for probes of the path MTU.
const MAX_CONTROL: usize = mesh_proto::disco::MESSAGE_LEN_MAX;

/// How to start a data plane.
#[derive(Debug)]
pub struct DataplaneConfig {
    /// Where this machine's packets come from and go to.
    pub device: Device,
    /// The UDP port; zero and [`DEFAULT_PORT`] mean the latter or, when that is taken, any.
    pub listen_port: u16,
    /// How many workers; zero means one for each core.
    pub n_workers: usize,
    /// The engine's data side.
    pub plane: Arc<Plane>,
    /// The way to the relays.
    pub relays: Arc<RelaySender>,
    /// What they deliver.
    pub delivery: Delivery,
}

/// This machine's side of the overlay.
#[derive(Debug)]
pub enum Device {
    /// The kernel's, by a TUN that [`open_tun`] opened for as many workers.
    Tun(Tun),
    /// A TCP/IP stack in this process, at the other end of these queues; one for each worker.
    Stack(Vec<TunQueue>),
}

/// Opens a TUN for so many workers; with `%d` in its name the kernel puts a free number there.
///
/// # Errors
/// When it cannot be had; the text says what to do.
pub fn open_tun(interface: &str, mtu: u16, n_workers: usize) -> anyhow::Result<Tun> {
    Tun::open(&TunConfig {
        name: interface.to_owned(),
        mtu,
        n_queues: n_workers * N_QUEUES,
        wants_offload: true,
    })
    .with_context(|| tun_advice(interface))
}

/// What the packet threads have for the daemon's loop.
#[derive(Debug)]
pub enum DataplaneInput {
    /// For [`mesh_engine::Engine::handle_udp`].
    Datagram {
        /// The sender.
        from: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// For [`mesh_engine::Engine::handle_spare`].
    Spare {
        /// To which of the spare sockets it came.
        socket: u16,
        /// The sender.
        from: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// For [`mesh_engine::Engine::handle_relay`].
    Relayed {
        /// By which relay it came.
        relay: RelayId,
        /// The sender, as the relay says.
        from: NodeKey,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// For [`mesh_engine::Engine::handle_plane`].
    Plane(PlaneEvent),
}

/// A running data plane. Dropping it stops the threads, and the interface disappears.
#[derive(Debug)]
pub struct Dataplane {
    interface: String,
    port: u16,
    capabilities: Capabilities,
    sockets: Vec<Arc<UdpSocket>>,
    spares: Arc<Spares>,
    relays: Arc<RelaySender>,
    inputs: mpsc::Receiver<DataplaneInput>,
    ended: mpsc::Receiver<String>,
    waker: Arc<Waker>,
    threads: Vec<JoinHandle<()>>,
    /// One for each thread, and one for what is done here.
    counters: Vec<Arc<Counters>>,
    own: Arc<Counters>,
}

/// The way to the daemon's loop: never blocks.
#[derive(Debug, Clone)]
struct Inputs {
    tx: mpsc::Sender<DataplaneInput>,
    counters: Arc<Counters>,
}

impl Dataplane {
    /// Opens the sockets and starts the threads.
    ///
    /// # Errors
    /// When the port cannot be had; the text says what to do.
    pub fn start(config: DataplaneConfig) -> anyhow::Result<Self> {
        let n_workers = match config.n_workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let sockets = open_sockets(config.listen_port, n_workers)?;
        let (interface, granted, queues) = match config.device {
            Device::Tun(tun) => (tun.name().to_owned(), tun.capabilities(), tun.into_queues()),
            Device::Stack(queues) => (String::new(), STACK_CAPABILITIES, queues),
        };
        let port = sockets.first().map_or(0, |socket| socket.local_port());
        let capabilities = Capabilities {
            tun: granted,
            udp: sockets
                .first()
                .map(|socket| socket.capabilities())
                .unwrap_or_default(),
        };
        let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
        let (inputs_tx, inputs) = mpsc::channel(N_INPUTS);
        let (ended_tx, ended) = mpsc::channel(n_workers + 1);
        let own = Arc::new(Counters::default());
        let waker = Arc::new(Waker::new().context("opening an event descriptor")?);
        let first_socket = sockets.first().cloned();
        let mut dataplane = Self {
            interface,
            port,
            capabilities,
            sockets: sockets.clone(),
            spares: Arc::new(Spares::new().context("opening an event descriptor")?),
            relays: Arc::clone(&config.relays),
            inputs,
            ended,
            waker: Arc::clone(&waker),
            threads: Vec::with_capacity(n_workers + 1),
            counters: vec![Arc::clone(&own)],
            own,
        };
        let shares = queues.chunks((queues.len() / n_workers).max(1));
        let next_shares = shares.clone().cycle().skip(1);
        let link = |queues: &[Arc<TunQueue>], next: &[Arc<TunQueue>], socket, spares| {
            let counters = Arc::new(Counters::default());
            Link {
                queues: queues.to_vec(),
                next_queues: next.to_vec(),
                socket,
                spares,
                plane: Arc::clone(&config.plane),
                relays: Arc::clone(&config.relays),
                waker: Arc::clone(&waker),
                inputs: Inputs {
                    tx: inputs_tx.clone(),
                    counters,
                },
                tun: capabilities.tun,
            }
        };
        let mut delivery = Some(config.delivery);
        for (worker_idx, ((queues, next), socket)) in
            shares.clone().zip(next_shares).zip(sockets).enumerate()
        {
            let link = link(queues, next, socket, Arc::clone(&dataplane.spares));
            let counters = Arc::clone(&link.inputs.counters);
            let delivery = delivery.take();
            dataplane.spawn(
                format!("mesh-{worker_idx}"),
                &ended_tx,
                counters,
                move || worker::run(&link, delivery),
            )?;
        }
        if let (Some(queues), Some(socket)) = (shares.clone().next(), first_socket) {
            let spares = Arc::clone(&dataplane.spares);
            let link = link(queues, queues, socket, Arc::clone(&spares));
            let counters = Arc::clone(&link.inputs.counters);
            let name = "mesh-spare".to_owned();
            dataplane.spawn(name, &ended_tx, counters, move || spares.run(&link))?;
        }
        tracing::info!(
            interface = %dataplane.interface,
            port,
            n_workers,
            ?capabilities,
            "data plane started"
        );
        Ok(dataplane)
    }

    fn spawn(
        &mut self,
        name: String,
        ended_tx: &mpsc::Sender<String>,
        counters: Arc<Counters>,
        body: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let thread = start_thread(name, ended_tx, body).context("starting a packet thread")?;
        self.threads.push(thread);
        self.counters.push(counters);
        Ok(())
    }

    /// The next thing for the engine. May be cancelled and called again without losing any.
    ///
    /// # Errors
    /// When a packet thread ended by itself: the data plane is not whole any more, and the daemon must end too.
    pub async fn poll(&mut self) -> anyhow::Result<DataplaneInput> {
        tokio::select! {
            biased;
            text = self.ended.recv() => {
                Err(anyhow::anyhow!(text.unwrap_or_else(|| "all packet threads ended".to_owned())))
            }
            input = self.inputs.recv() => input.context("all packet threads ended"),
        }
    }

    /// Sends one of the engine's datagrams at once; one that cannot be sent is dropped and counted.
    pub fn send(&self, transmit: &Transmit) {
        match transmit.dst {
            Destination::Udp(dst) => {
                if let Some(socket) = self.sockets.first() {
                    self.send_udp(socket, dst, &transmit.bytes);
                }
            }
            Destination::Spare { socket, endpoint } => match self.spares.open(socket) {
                Ok(socket) => self.send_udp(&socket, endpoint, &transmit.bytes),
                Err(err) => {
                    tracing::debug!(%err, "spare socket not opened");
                    self.own.send_errors.add(1);
                }
            },
            Destination::Relay { relay, peer } => {
                let bytes = &transmit.bytes;
                let n = self.relays.send(&relay, &peer, bytes, bytes.len());
                self.own.relayed(n, 1);
            }
        }
    }

    fn send_udp(&self, socket: &UdpSocket, dst: SocketAddr, bytes: &[u8]) {
        let len = bytes.len();
        match socket.send(dst, bytes, len.max(1)) {
            Ok(_) => self.own.sent(1, len),
            Err(err) => {
                tracing::trace!(endpoint = %dst, %err, "datagram not sent");
                self.own.send_errors.add(1);
            }
        }
    }

    /// How many spare sockets there can be; see [`mesh_engine::Update::SpareSockets`].
    #[must_use]
    pub const fn n_spares(&self) -> u16 {
        spare::N_SPARES
    }

    /// Closes all spare sockets but these.
    pub fn keep_spares(&self, numbers: &[u16]) {
        self.spares.keep(numbers);
    }

    /// The underlay changed. The sockets are bound to no address, so they stay; only what an interface refused is
    /// tried again.
    pub fn rebind(&self) {
        for socket in &self.sockets {
            socket.retry_gso();
        }
    }

    /// The first worker's socket, for what else is said from the same port.
    #[must_use]
    pub fn socket(&self) -> Option<Arc<UdpSocket>> {
        self.sockets.first().cloned()
    }

    /// The UDP port.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// What the TUN is called; empty without one.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What the kernel does for it.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// All counters up to now.
    #[must_use]
    pub fn stats(&self) -> DataplaneStats {
        let mut stats = DataplaneStats::default();
        for counters in &self.counters {
            counters.add_to(&mut stats);
        }
        stats
    }

    /// Stops the threads and waits for them, some milliseconds.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if let Err(err) = self.waker.wake() {
            tracing::error!(%err, "packet threads cannot be woken; leaving them behind");
            return;
        }
        for thread in self.threads.drain(..) {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Inputs {
    fn datagram(&self, from: SocketAddr, datagram: &[u8]) {
        self.control(datagram, |bytes| DataplaneInput::Datagram { from, bytes });
    }

    fn spare(&self, socket: u16, from: SocketAddr, datagram: &[u8]) {
        self.control(datagram, |bytes| DataplaneInput::Spare {
            socket,
            from,
            bytes,
        });
    }

    fn relayed(&self, relay: RelayId, from: NodeKey, datagram: &[u8]) {
        self.control(datagram, |bytes| DataplaneInput::Relayed {
            relay,
            from,
            bytes,
        });
    }

    fn control(&self, datagram: &[u8], input: impl FnOnce(Vec<u8>) -> DataplaneInput) {
        // The place first: no copy is made of what a flood would drown anyway.
        match self.tx.try_reserve() {
            Ok(place) if datagram.len() <= MAX_CONTROL => {
                self.counters.control.add(1);
                place.send(input(datagram.to_vec()));
            }
            Ok(_) | Err(_) => self.counters.inputs_lost.add(1),
        }
    }

    fn plane(&self, event: PlaneEvent) {
        if self.tx.try_send(DataplaneInput::Plane(event)).is_err() {
            self.counters.inputs_lost.add(1);
        }
    }
}

fn start_thread(
    name: String,
    ended_tx: &mpsc::Sender<String>,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let mut sentinel = Sentinel {
        text: format!("packet thread {name} panicked"),
        name: name.clone(),
        ended_tx: ended_tx.clone(),
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(move || sentinel.ended(body()))
}

/// Tells of a thread's end, however it ends.
struct Sentinel {
    name: String,
    /// Why, or empty when it was asked to.
    text: String,
    ended_tx: mpsc::Sender<String>,
}

impl Sentinel {
    fn ended(&mut self, result: io::Result<()>) {
        self.text = match result {
            Ok(()) => String::new(),
            Err(err) => format!("packet thread {} ended: {err}", self.name),
        };
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            // There is a place for each thread; without a receiver nobody wants to know.
            let _ = self.ended_tx.try_send(std::mem::take(&mut self.text));
        }
    }
}

fn open_sockets(listen_port: u16, n_workers: usize) -> anyhow::Result<Vec<Arc<UdpSocket>>> {
    let first = match listen_port {
        0 | DEFAULT_PORT => {
            open_first(DEFAULT_PORT, n_workers).or_else(|_| open_first(0, n_workers))
        }
        port => open_first(port, n_workers),
    }
    .with_context(|| format!("UDP port {listen_port} cannot be opened; choose another one"))?;
    let config = UdpConfig {
        port: first.local_port(),
        is_shared: true,
    };
    let mut sockets = vec![Arc::new(first)];
    for _ in 1..n_workers {
        let socket = UdpSocket::bind(config).context("opening a worker's UDP socket")?;
        sockets.push(Arc::new(socket));
    }
    Ok(sockets)
}

fn open_first(port: u16, n_workers: usize) -> io::Result<UdpSocket> {
    let alone = UdpSocket::bind(UdpConfig {
        port,
        is_shared: false,
    })?;
    if n_workers == 1 {
        return Ok(alone);
    }
    // A shared port is shared with any program of the same user, another data plane for one: only a port that could
    // be had alone is free.
    let port = alone.local_port();
    drop(alone);
    UdpSocket::bind(UdpConfig {
        port,
        is_shared: true,
    })
}

fn tun_advice(interface: &str) -> String {
    format!(
        "TUN interface {interface} cannot be opened; it needs CAP_NET_ADMIN (run as root or by the system service), \
         the device /dev/net/tun (modprobe tun), and a name that no other program uses"
    )
}

#[cfg(test)]
mod tests;
