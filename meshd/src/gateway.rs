//! The way to shared models: the door, by which guests reach this host, and the gateway, by which this node reaches hosts.
//!
//! Both speak Ollama's, OpenAI's and Anthropic's API. The caller is whoever the tunnel says; no header is believed.

mod admit;
mod alarm;
mod alias;
mod bodies;
mod caller;
mod clean;
mod count;
mod dialect;
mod door;
mod guest;
mod handles;
mod json;
mod listing;
mod live;
mod pace;
mod pool;
mod probe;
mod pull;
mod queue;
mod relay;
mod server;
mod stream;
mod tracked;
mod translate;
mod upstream;
mod wire;
mod workers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use mesh_proto::door::QueueStatus;
use mesh_proto::id::NodeId;
use mesh_proto::local::{PullStatus, Top};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use admit::is_cloud_name;
pub use count::UsageSink;
#[cfg(test)]
pub(crate) use door::Bound;
pub use door::{Account, Spending};
pub(crate) use listing::rfc3339;
pub use pace::Pace;
pub(crate) use pull::LEDGER_FILE;
pub use pull::{Ledger, PullError};

use crate::catalog::{Catalog, Keeper};
use crate::choice::{Hosts, Load};
use crate::inventory::{InventoryStatus, Occupancy};
use crate::netstack::{Accepted, StackDialer};
use crate::view::{View, ViewReceiver};
use bodies::Bodies;
use pool::Pool;
use pull::Puller;
use queue::Queue;
use server::Side;
use stream::{Listener, Outward};
use workers::Workers;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Header of every answer of a door or gateway, so that none is taken for a model server.
pub(crate) const DOOR_HEADER: &str = "x-proxima-door";
/// How full the door is, for guests that choose between hosts.
pub(crate) const LOAD_HEADER: &str = "x-proxima-load";
/// How long a request waited for its turn, milliseconds.
pub(crate) const QUEUE_HEADER: &str = "x-proxima-queue-ms";
/// The port at which every host's door is reached in the mesh.
const DOOR_PORT: u16 = 11_434;
/// How often it is looked whether the last request is over.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// What is told as Ollama's version: the API that is spoken.
const API_VERSION: &str = "0.33.0";

/// Where the gateway is reached, and how it reaches others.
#[derive(Debug)]
pub enum Reach {
    /// The kernel's overlay interface.
    Interface {
        /// This node's IPv4 overlay address.
        ipv4: Ipv4Addr,
        /// This node's IPv6 overlay address; `None` serves IPv4 alone.
        ipv6: Option<Ipv6Addr>,
        /// The overlay interface, to which the listeners are bound; packets of others with forged sources stay out. `None`
        /// in tests alone.
        device: Option<String>,
    },
    /// The stack in this process.
    Stack {
        /// This node's IPv4 overlay address, which stands for this machine's own programs.
        own: Ipv4Addr,
        /// Peers' connections to the door.
        door: mpsc::Receiver<Accepted>,
        /// Own programs' connections by a proxy.
        proxied: mpsc::Receiver<Accepted>,
        /// Own programs' connections by a loopback port.
        loopback: TcpListener,
        /// The way to other hosts.
        dialer: StackDialer,
    },
}

/// What the gateway needs to know.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Where it is reached.
    pub reach: Reach,
    /// The mesh.
    pub view: ViewReceiver,
    /// What this node found out about hosts.
    pub hosts: Arc<Hosts>,
    /// What this machine shares.
    pub share: watch::Receiver<Arc<InventoryStatus>>,
    /// How fast answers come, for what is told of the models.
    pub pace: Arc<Pace>,
    /// The models that guests had this host pull.
    pub pulled: Arc<Ledger>,
    /// Where usage is written down.
    pub meter: Option<Arc<dyn UsageSink>>,
    /// What guests used of late.
    pub spending: Arc<Spending>,
    /// Who is told how much the door works.
    pub occupancy: Arc<Occupancy>,
    /// The port of other hosts' doors; 11434 when absent.
    pub door_port: Option<u16>,
}

/// The door and the guest gateway.
#[derive(Debug)]
pub struct Gateway {
    core: Arc<Core>,
    /// Until they are served.
    listeners: Mutex<Vec<(Side, Listener)>>,
    workers: Workers,
    door_ports: HiddenPorts,
    guest_ports: Option<HiddenPorts>,
}

/// Where one side listens. Each well-known port has a listener of its own: from its port alone, the data plane must know which
/// of them an answer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HiddenPorts {
    /// Behind port 11434.
    pub model: u16,
    /// Behind port 80.
    pub web: u16,
}

/// The hidden ports of the door in the stack: any do, as nothing else listens there and nothing is opened from there.
pub const STACK_PORTS: HiddenPorts = HiddenPorts {
    model: 21_434,
    web: 20_080,
};

impl Gateway {
    /// Opens the listeners, each at one port number for both protocols.
    ///
    /// # Errors
    /// When the addresses cannot be bound, or no threads can be had.
    pub fn bind(config: GatewayConfig) -> io::Result<Self> {
        let (listeners, door_ports, guest_ports, outward) = match config.reach {
            Reach::Interface { ipv4, ipv6, device } => {
                let mut addrs = vec![IpAddr::V4(ipv4)];
                addrs.extend(ipv6.map(IpAddr::V6));
                let (door, door_ports) = listen_twice(&addrs, device.as_deref(), Side::Door)?;
                let (guest, guest_ports) = listen_twice(&addrs, device.as_deref(), Side::Guest)?;
                let listeners = door.into_iter().chain(guest).collect();
                (listeners, door_ports, Some(guest_ports), Outward::Kernel)
            }
            Reach::Stack {
                own,
                door,
                proxied,
                loopback,
                dialer,
            } => {
                let listeners = vec![
                    (Side::Door, Listener::Stack(door)),
                    (Side::Guest, Listener::Stack(proxied)),
                    (Side::Guest, Listener::Loopback(loopback, own.into())),
                ];
                (listeners, STACK_PORTS, None, Outward::Stack(dialer))
            }
        };
        let n_slots = config.share.borrow().config.n_slots;
        let core = Core {
            view: config.view,
            share: config.share,
            hosts: config.hosts,
            queue: Queue::new(n_slots),
            meter: config.meter,
            spending: config.spending,
            occupancy: config.occupancy,
            pace: config.pace,
            puller: Puller::new(config.pulled),
            peer_port: config.door_port.unwrap_or(DOOR_PORT),
            catalog: Mutex::default(),
            bodies: Bodies::of_peers(),
            own_bodies: Bodies::own(),
            pool: Arc::default(),
            outward,
            is_leaving: AtomicBool::new(false),
        };
        Ok(Self {
            core: Arc::new(core),
            listeners: Mutex::new(listeners),
            workers: Workers::start()?,
            door_ports,
            guest_ports,
        })
    }

    /// The hidden ports of the door, to which peers' packets are led.
    #[must_use]
    pub fn door_ports(&self) -> HiddenPorts {
        self.door_ports
    }

    /// The hidden ports of the guest gateway, to which this machine's packets to the service addresses are led; none without
    /// an interface that could have such packets.
    #[must_use]
    pub fn guest_ports(&self) -> Option<HiddenPorts> {
        self.guest_ports
    }

    /// Requests in work and requests waiting at the door.
    #[must_use]
    pub fn load(&self) -> (u32, u32) {
        self.core.queue.load()
    }

    /// Who has requests in work or waiting at the door; who is next comes first.
    #[must_use]
    pub fn guests(&self) -> Vec<QueueStatus> {
        let view = self.core.view();
        let guests = self.core.queue.guests().into_iter();
        let named = guests.map(|(account, n_active, n_waiting, position)| QueueStatus {
            guest: door::name_of(view.as_deref(), account),
            n_active,
            n_waiting,
            position,
        });
        named.collect()
    }

    /// How all hosts that this node may use stand at the moment; nothing before a first map.
    pub async fn top(&self) -> Option<Top> {
        let view = self.core.view()?;
        Some(live::top(&self.core, &view).await)
    }

    /// Has a host pull a model, or asks how that stands.
    ///
    /// # Errors
    /// What the host says, or why it cannot be asked.
    pub async fn pull(&self, host: &str, model: &str) -> Result<PullStatus, PullError> {
        let view = self.core.view().ok_or(PullError::NotUp)?;
        pull::send(&self.core, &view, host, model).await
    }

    /// Takes no more requests for this host's models, and waits until those in work are over, or the time is.
    pub async fn drain(&self, limit: Duration) {
        self.core.is_leaving.store(true, Ordering::Relaxed);
        let is_over = async {
            let mut look = tokio::time::interval(DRAIN_LOOK);
            while self.core.queue.load() != (0, 0) {
                look.tick().await;
            }
        };
        if tokio::time::timeout(limit, is_over).await.is_err() {
            tracing::warn!("requests are cut off: they were not over in time");
        }
    }

    /// Serves until cancelled, once; connections still open then are cut.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut share = self.core.share.clone();
        let resize = async {
            loop {
                self.core
                    .queue
                    .resize(share.borrow_and_update().config.n_slots);
                if share.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let listeners = {
            let mut listeners = self
                .listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *listeners)
        };
        let loops = listeners.into_iter().map(|(side, listener)| {
            server::serve(listener, side, Arc::clone(&self.core), &self.workers)
        });
        // What serves ends with this, also when this is dropped.
        let _guard = self.workers.guard();
        tokio::select! {
            () = cancel.cancelled() => {}
            () = resize => {}
            () = self.core.pool.tidy() => {}
            () = probe::keep(&self.core) => {}
            _ = futures_util::future::join_all(loops) => {}
        }
        self.workers.stop().await;
    }
}

fn listen_twice(
    addrs: &[IpAddr],
    device: Option<&str>,
    side: Side,
) -> io::Result<(Vec<(Side, Listener)>, HiddenPorts)> {
    let (mut listeners, model) = server::listen(addrs, device)?;
    let (more, web) = server::listen(addrs, device)?;
    listeners.extend(more);
    let listeners = listeners
        .into_iter()
        .map(|listener| (side, Listener::Overlay(listener)));
    Ok((listeners.collect(), HiddenPorts { model, web }))
}

/// The catalogue, and the view and inventory that it is made of.
#[derive(Debug, Default)]
struct CatalogCache {
    keeper: Keeper,
    latest: Option<(Arc<View>, Arc<InventoryStatus>, Arc<Catalog>)>,
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Core {
    view: ViewReceiver,
    share: watch::Receiver<Arc<InventoryStatus>>,
    hosts: Arc<Hosts>,
    queue: Arc<Queue>,
    meter: Option<Arc<dyn UsageSink>>,
    spending: Arc<Spending>,
    occupancy: Arc<Occupancy>,
    pace: Arc<Pace>,
    puller: Puller,
    peer_port: u16,
    catalog: Mutex<CatalogCache>,
    bodies: Arc<Bodies>,
    /// Apart from the peers', which cannot take this machine's own room.
    own_bodies: Arc<Bodies>,
    pool: Arc<Pool>,
    outward: Outward,
    is_leaving: AtomicBool,
}

impl Core {
    fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    fn share(&self) -> Arc<InventoryStatus> {
        Arc::clone(&self.share.borrow())
    }

    /// The catalogue of a view, with this host's own offers as they are at the moment.
    fn catalog(&self, view: &Arc<View>) -> Arc<Catalog> {
        let share = self.share();
        let mut cache = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of_view, of_share, catalog)) = &cache.latest
            && Arc::ptr_eq(of_view, view)
            && Arc::ptr_eq(of_share, &share)
        {
            return Arc::clone(catalog);
        }
        // What is let go of now need not be copied to be changed.
        cache.latest = None;
        let own = view.with_own_offers(Arc::new(share.offers()));
        let catalog = cache.keeper.keep(&own, |_| false);
        cache.latest = Some((Arc::clone(view), share, Arc::clone(&catalog)));
        catalog
    }

    /// This host's own queue, as others are told of it.
    fn load(&self) -> Load {
        let (n_active, n_waiting) = self.queue.load();
        Load {
            n_active,
            n_waiting,
            n_slots: self.share.borrow().config.n_slots.max(1),
            is_leaving: self.is_leaving(),
        }
    }

    /// Whether this node is on its way out of the mesh: what has begun is finished, nothing else is begun.
    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    fn is_down(&self, node: &NodeId) -> bool {
        self.hosts.is_down(node, Instant::now())
    }
}

#[cfg(test)]
mod tests;
