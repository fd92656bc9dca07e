//! Moves packets: for each worker a thread, a UDP socket and some TUN queues, and the way to the daemon's loop.
//!
//! Relays' links hand what they deliver to the first worker. Packets never pass through the daemon's loop. What does is little and bounded: handshakes, STUN answers and what
//! the engine's plane noticed. When the loop falls behind, those are dropped and counted; peers repeat them.

mod counter;
mod inbound;
mod outbound;
mod steer;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use mesh_engine::{Destination, Plane, PlaneEvent, Transmit};
use mesh_io::Capabilities;
use mesh_io::tun::{Tun, TunConfig};
use mesh_io::udp::{UdpConfig, UdpSocket};
use mesh_io::wait::Waker;
use mesh_proto::id::RelayId;
use mesh_proto::key::NodeKey;
use tokio::sync::mpsc;

use counter::Counters;
pub use counter::DataplaneStats;
use worker::{Link, N_QUEUES};

use crate::relay::{Delivery, RelaySender};

/// The port that is tried first when none is asked for, so that firewalls can be told of it.
pub const DEFAULT_PORT: u16 = 41_820;

/// The overlay's MTU: the least that IPv6 allows.
pub const DEFAULT_MTU: u16 = 1280;

/// How much may wait for the daemon's loop.
const N_INPUTS: usize = 1024;

/// Control datagrams are short: handshakes 148 bytes, STUN a few hundred.
const MAX_CONTROL: usize = 2048;

/// How to start a data plane.
#[derive(Debug)]
pub struct DataplaneConfig {
    /// The TUN's name; with `%d` in it the kernel puts a free number there.
    pub interface: String,
    /// The overlay's MTU.
    pub mtu: u16,
    /// The UDP port; zero means [`DEFAULT_PORT`] or, when that is taken, any.
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
    /// Opens the TUN and the sockets and starts the threads.
    ///
    /// # Errors
    /// When the TUN or the port cannot be had; the text says what to do.
    pub fn start(config: DataplaneConfig) -> anyhow::Result<Self> {
        let n_workers = match config.n_workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let sockets = open_sockets(config.listen_port, n_workers)?;
        let tun = Tun::open(&TunConfig {
            name: config.interface.clone(),
            mtu: config.mtu,
            n_queues: n_workers * N_QUEUES,
            wants_offload: true,
        })
        .with_context(|| tun_advice(&config.interface))?;
        let port = sockets.first().map_or(0, |socket| socket.local_port());
        let capabilities = Capabilities {
            tun: tun.capabilities(),
            udp: sockets
                .first()
                .map(|socket| socket.capabilities())
                .unwrap_or_default(),
        };
        let interface = tun.name().to_owned();
        let queues: Vec<_> = tun.into_queues().into_iter().map(Arc::new).collect();
        let (inputs_tx, inputs) = mpsc::channel(N_INPUTS);
        let (ended_tx, ended) = mpsc::channel(n_workers);
        let own = Arc::new(Counters::default());
        let mut dataplane = Self {
            interface,
            port,
            capabilities,
            sockets: sockets.clone(),
            relays: Arc::clone(&config.relays),
            inputs,
            ended,
            waker: Arc::new(Waker::new().context("opening an event descriptor")?),
            threads: Vec::with_capacity(n_workers),
            counters: vec![Arc::clone(&own)],
            own,
        };
        let shares = queues.chunks(N_QUEUES);
        let next_shares = shares.clone().cycle().skip(1);
        let mut delivery = Some(config.delivery);
        for (worker_idx, ((queues, next), socket)) in
            shares.zip(next_shares).zip(sockets).enumerate()
        {
            let counters = Arc::new(Counters::default());
            let link = Link {
                queues: queues.to_vec(),
                next_queues: next.to_vec(),
                socket,
                plane: Arc::clone(&config.plane),
                relays: Arc::clone(&config.relays),
                waker: Arc::clone(&dataplane.waker),
                inputs: Inputs {
                    tx: inputs_tx.clone(),
                    counters: Arc::clone(&counters),
                },
                tun: capabilities.tun,
            };
            let delivery = delivery.take();
            dataplane.spawn(
                format!("mesh-{worker_idx}"),
                &ended_tx,
                counters,
                move || worker::run(&link, delivery),
            )?;
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
            Destination::Udp(dst) => self.send_udp(dst, &transmit.bytes),
            Destination::Relay { relay, peer } => {
                let bytes = &transmit.bytes;
                let n = self.relays.send(&relay, &peer, bytes, bytes.len());
                self.own.relayed(n, 1);
            }
        }
    }

    fn send_udp(&self, dst: SocketAddr, bytes: &[u8]) {
        let Some(socket) = self.sockets.first() else {
            return;
        };
        let len = bytes.len();
        match socket.send(dst, bytes, len.max(1)) {
            Ok(_) => self.own.sent(1, len),
            Err(err) => {
                tracing::trace!(endpoint = %dst, %err, "datagram not sent");
                self.own.send_errors.add(1);
            }
        }
    }

    /// The underlay changed. The sockets are bound to no address, so they stay; only what an interface refused is
    /// tried again.
    pub fn rebind(&self) {
        for socket in &self.sockets {
            socket.retry_gso();
        }
    }

    /// The UDP port.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// What the TUN is called.
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
        0 => open_first(DEFAULT_PORT, n_workers).or_else(|_| open_first(0, n_workers)),
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
