//! The way to shared models: the door, by which guests reach this host, and the gateway, by which this node reaches hosts.
//!
//! Both speak Ollama's, OpenAI's and Anthropic's API. The caller is whoever the tunnel says; no header is believed.

mod admit;
mod alias;
mod bodies;
mod clean;
mod count;
mod dialect;
mod door;
mod guest;
mod json;
mod listing;
mod pool;
mod queue;
mod relay;
mod server;
mod translate;
mod upstream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use mesh_proto::id::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use admit::is_cloud_name;
pub use count::Usage;

use crate::catalog::Catalog;
use crate::inventory::InventoryStatus;
use crate::view::{Liveness, View, ViewReceiver};
use bodies::Bodies;
use pool::Pool;
use queue::Queue;
use server::Side;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Header of every answer of a door or gateway, so that none is taken for a model server.
pub(crate) const DOOR_HEADER: &str = "x-proxima-door";
/// The port at which every host's door is reached in the mesh.
const DOOR_PORT: u16 = 11_434;
/// What is told as Ollama's version: the API that is spoken.
const API_VERSION: &str = "0.33.0";

/// What the gateway needs to know.
#[derive(Debug)]
pub struct GatewayConfig {
    /// This node's IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// This node's IPv6 overlay address; `None` serves IPv4 alone.
    pub ipv6: Option<Ipv6Addr>,
    /// The overlay interface, to which the listeners are bound; packets of others with forged sources stay out. `None`
    /// in tests alone.
    pub device: Option<String>,
    /// The mesh.
    pub view: ViewReceiver,
    /// Which hosts were found unreachable.
    pub liveness: Arc<Liveness>,
    /// What this machine shares.
    pub share: watch::Receiver<Arc<InventoryStatus>>,
    /// Where usage is written down; a full channel loses records, never requests.
    pub meter: Option<mpsc::Sender<Usage>>,
    /// The port of other hosts' doors; 11434 when absent.
    pub door_port: Option<u16>,
}

/// The door and the guest gateway.
#[derive(Debug)]
pub struct Gateway {
    core: Arc<Core>,
    door: Vec<TcpListener>,
    guest: Vec<TcpListener>,
    door_ports: HiddenPorts,
    guest_ports: HiddenPorts,
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

impl Gateway {
    /// Opens the listeners, each at one port number for both protocols.
    ///
    /// # Errors
    /// When the addresses cannot be bound.
    pub fn bind(config: GatewayConfig) -> io::Result<Self> {
        let mut addrs = vec![IpAddr::V4(config.ipv4)];
        addrs.extend(config.ipv6.map(IpAddr::V6));
        let device = config.device.as_deref();
        let (door, door_ports) = listen_twice(&addrs, device)?;
        let (guest, guest_ports) = listen_twice(&addrs, device)?;
        let n_slots = config.share.borrow().config.n_slots;
        let core = Core {
            view: config.view,
            share: config.share,
            liveness: config.liveness,
            queue: Queue::new(n_slots),
            meter: config.meter,
            peer_port: config.door_port.unwrap_or(DOOR_PORT),
            catalog: Mutex::new(None),
            bodies: Bodies::of_peers(),
            own_bodies: Bodies::own(),
            pool: Arc::default(),
        };
        Ok(Self {
            core: Arc::new(core),
            door,
            guest,
            door_ports,
            guest_ports,
        })
    }

    /// The hidden ports of the door, to which peers' packets are led.
    #[must_use]
    pub fn door_ports(&self) -> HiddenPorts {
        self.door_ports
    }

    /// The hidden ports of the guest gateway, to which this machine's packets to the service addresses are led.
    #[must_use]
    pub fn guest_ports(&self) -> HiddenPorts {
        self.guest_ports
    }

    /// Requests in work and requests waiting at the door.
    #[must_use]
    pub fn load(&self) -> (u32, u32) {
        self.core.queue.load()
    }

    /// Serves until cancelled; connections still open then are cut.
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
        let door = self.serve(&self.door, Side::Door);
        let guest = self.serve(&self.guest, Side::Guest);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = resize => {}
            () = self.core.pool.tidy() => {}
            () = door => {}
            () = guest => {}
        }
    }

    async fn serve(&self, listeners: &[TcpListener], side: Side) {
        let loops = listeners
            .iter()
            .map(|listener| server::serve(listener, side, Arc::clone(&self.core)));
        futures_util::future::join_all(loops).await;
    }
}

fn listen_twice(
    addrs: &[IpAddr],
    device: Option<&str>,
) -> io::Result<(Vec<TcpListener>, HiddenPorts)> {
    let (mut listeners, model) = server::listen(addrs, device)?;
    let (more, web) = server::listen(addrs, device)?;
    listeners.extend(more);
    Ok((listeners, HiddenPorts { model, web }))
}

/// A view and an inventory, and the catalogue made of the two.
type CatalogCache = Option<(Arc<View>, Arc<InventoryStatus>, Arc<Catalog>)>;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Core {
    view: ViewReceiver,
    share: watch::Receiver<Arc<InventoryStatus>>,
    liveness: Arc<Liveness>,
    queue: Arc<Queue>,
    meter: Option<mpsc::Sender<Usage>>,
    peer_port: u16,
    catalog: Mutex<CatalogCache>,
    bodies: Arc<Bodies>,
    /// Apart from the peers', which cannot take this machine's own room.
    own_bodies: Arc<Bodies>,
    pool: Arc<Pool>,
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
        {
            let cache = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((of_view, of_share, catalog)) = &*cache
                && Arc::ptr_eq(of_view, view)
                && Arc::ptr_eq(of_share, &share)
            {
                return Arc::clone(catalog);
            }
        }
        let own = view.with_own_offers(Arc::new(share.offers()));
        let catalog = Arc::new(Catalog::build(&own, |_| false));
        *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Arc::clone(view), share, Arc::clone(&catalog)));
        catalog
    }

    fn is_down(&self, node: &NodeId) -> bool {
        self.liveness.is_down(node, Instant::now())
    }
}

#[cfg(test)]
mod tests;
