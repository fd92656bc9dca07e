//! The overlay while it is up: engine, packets, names and doors, started in order and taken down in reverse.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mesh_engine::{Engine, EngineConfig, Event, ServicePort, ServicePorts, Transport, Update};
use mesh_proto::door::QueueStatus;
use mesh_proto::key::{DiscoKey, DiscoPrivateKey, NodePrivateKey};
use mesh_proto::local::{DnsStatus, Problem, Settings, UserspaceStatus};
use mesh_proto::netmap::{Netmap, NetworkInfo};
use mesh_proto::{MODEL_PORT, WEB_PORT};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::choice::Hosts;
use crate::config::Config;
use crate::dataplane::{Dataplane, DataplaneConfig, Device};
use crate::dns::reverse;
use crate::dns::server::{DnsServer, Names};
use crate::dns::upstream::Upstreams;
use crate::gateway::{Gateway, GatewayConfig, LEDGER_FILE, Ledger, Reach};
use crate::inventory::Inventory;
use crate::meter::Meter;
use crate::os::linux::firewall::Firewall;
use crate::os::linux::links::{self, DefaultRoute, Links};
use crate::os::linux::names::{Plan, System};
use crate::relay::{self, RelayEvent, RelaySender, Relays};
use crate::state_dir::StateDir;
use crate::upnp::Upnp;
use crate::view::View;

use super::userspace::{self, Face, Ports, Started, Userspace};
use super::wiring::Wiring;

const DNS_PORT: u16 = 53;
/// How long requests that are being answered may go on when the node leaves; the unit's stop timeout is longer.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Below this an interface has no IPv6.
const MTU_LEAST: u32 = 1280;
/// What fills a jumbo frame of 9,000 bytes.
const MTU_MOST: u32 = 8928;

/// What the overlay is made with.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) state: &'a StateDir,
    pub(super) settings: &'a Settings,
    pub(super) view: &'a watch::Sender<Option<Arc<View>>>,
    pub(super) hosts: &'a Arc<Hosts>,
    pub(super) inventory: &'a Inventory,
    pub(super) meter: &'a Meter,
}

/// Everything that exists while the overlay is up.
pub(super) struct Overlay {
    pub(super) engine: Engine,
    pub(super) dataplane: Dataplane,
    pub(super) relays: Relays,
    pub(super) upnp: Upnp,
    pub(super) disco_key: DiscoKey,
    /// Where this machine may be reached on the underlay, by its own interfaces.
    pub(super) endpoints: Vec<SocketAddr>,
    links: Links,
    /// The machine's ways out on the underlay.
    routes: Vec<DefaultRoute>,
    /// The overlay interface; none in userspace mode.
    index: Option<u32>,
    own: (Ipv4Addr, Ipv6Addr),
    network: NetworkInfo,
    servers: Vec<IpAddr>,
    gateway: Arc<Gateway>,
    upstreams: Arc<Upstreams>,
    hosts: Arc<Hosts>,
    interface: String,
    wants_port_mapping: bool,
    /// The overlay's MTU, and whether it follows the links'.
    mtu: (u16, bool),
    wiring: Wiring,
    door: Serving,
    names: Serving,
    zone: Names,
    userspace: Option<Userspace>,
}

/// A task that serves until it is told to end.
pub(super) struct Serving {
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Serving {
    pub(super) fn start<F>(serve: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        Self {
            task: tokio::spawn(serve(cancel.clone())),
            cancel,
        }
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        // A task that broke has said so in the log; here only its end counts.
        let _ = self.task.await;
    }
}

impl Overlay {
    /// Brings everything up for the addresses of a map.
    pub(super) async fn start(netmap: &Netmap, parts: &Parts<'_>) -> anyhow::Result<Self> {
        let now = Instant::now();
        let config = parts.config;
        let mut n_workers = n_workers(config.workers);
        let links = Links::open()?;
        let own_mtu = match config.mtu {
            0 => overlay_mtu(links.underlay_mtu(None).await?),
            mtu => mtu,
        };
        let face = userspace::face(parts.settings.userspace, config, own_mtu, n_workers)?;
        let (mtu, is_mtu_followed) = match face {
            Face::Interface(_) => (own_mtu, config.mtu == 0),
            Face::Userspace(_) => (userspace::mtu(config), false),
        };
        let seed = secret()?;
        let node_key = parts.state.node_key()?;
        let disco_key = match parts.state.disco_key() {
            Ok(key) => key,
            Err(err) => {
                tracing::warn!(%err, "a disco key for this run alone");
                DiscoPrivateKey::from_bytes(secret()?)
            }
        };
        let told_disco_key = disco_key.public();
        let (stamps_from_ns, kept) = parts.state.take_stamps(wall_ns());
        if let Err(err) = kept {
            tracing::warn!(%err, "the timestamps of handshakes are not marked as taken: set back, this machine's clock may keep peers away");
        }
        let mut engine = Engine::new(
            now,
            EngineConfig {
                node_key: node_key.clone(),
                node_id: netmap.node.id,
                disco_key,
                seed,
                stamps_from_ns,
            },
        );
        let sender = Arc::new(RelaySender::default());
        engine.handle_control(now, Update::OverlayMtu(mtu));
        let (intake, delivery) = relay::intake().context("opening an event descriptor")?;
        let (device, reach, started) = match face {
            Face::Interface(tun) => (Device::Tun(tun), None, None),
            Face::Userspace(why) => {
                let ports = Ports::bind(parts.settings).await?;
                // The stack has a thread of its own.
                n_workers = n_workers.saturating_sub(1).max(1);
                let started = Userspace::start(netmap, mtu, n_workers, why, ports)?;
                let Started {
                    userspace,
                    queues,
                    reach,
                    parts,
                } = started;
                (Device::Stack(queues), Some(reach), Some((userspace, parts)))
            }
        };
        let dataplane = Dataplane::start(DataplaneConfig {
            device,
            listen_port: config.listen_port,
            n_workers,
            plane: engine.plane(),
            relays: Arc::clone(&sender),
            delivery,
        })?;
        engine.handle_control(now, Update::SpareSockets(dataplane.n_spares()));
        let relays =
            Relays::new(sender, intake, node_key, config.dialer()).with_udp(dataplane.socket());
        let own = (netmap.node.ipv4, netmap.node.ipv6);
        let upstreams = Arc::new(Upstreams::default());
        let (view, hosts) = (parts.view.subscribe(), Arc::clone(parts.hosts));
        let (index, servers, dns, reach) = match reach {
            Some(reach) => {
                let dns = DnsServer::without_sockets(view, hosts, Arc::clone(&upstreams));
                (None, Vec::new(), dns, reach)
            }
            None => {
                let configured = configure(&links, config, mtu, netmap).await?;
                let mut addrs = vec![IpAddr::V4(own.0)];
                let mut servers = vec![IpAddr::V4(netmap.network.service_ipv4)];
                if configured.has_ipv6 {
                    addrs.push(IpAddr::V6(own.1));
                    servers.push(IpAddr::V6(netmap.network.service_ipv6));
                }
                let dns = DnsServer::bind(&addrs, view, hosts, Arc::clone(&upstreams))
                    .await
                    .context("cannot listen for names")?;
                let reach = Reach::Interface {
                    ipv4: own.0,
                    ipv6: configured.has_ipv6.then_some(own.1),
                    device: Some(config.interface.clone()),
                };
                (Some(configured.index), servers, dns, reach)
            }
        };
        let pulled = Ledger::open(parts.state.root().join(LEDGER_FILE))
            .context("cannot read which models were pulled for guests")?;
        let gateway = Gateway::bind(GatewayConfig {
            reach,
            view: parts.view.subscribe(),
            hosts: Arc::clone(parts.hosts),
            share: parts.inventory.status.clone(),
            meter: Some(Arc::new(parts.meter.inbox())),
            spending: parts.meter.spending(),
            occupancy: Arc::clone(&parts.inventory.occupancy),
            pace: Arc::clone(&parts.inventory.pace),
            pulled: Arc::new(pulled),
            door_port: None,
        })
        .context("cannot listen for model requests")?;
        let gateway = Arc::new(gateway);
        engine.handle_control(now, Update::Services(service_ports(&dns, &gateway)));
        let zone = dns.names();
        let names = Serving::start(|cancel| dns.run(cancel));
        let userspace = started.map(|(mut userspace, proxies)| {
            userspace.serve(proxies, parts.view.subscribe(), zone.clone());
            userspace
        });
        let door = {
            let gateway = Arc::clone(&gateway);
            Serving::start(|cancel| async move { gateway.run(cancel).await })
        };
        let mut overlay = Self {
            engine,
            dataplane,
            relays,
            upnp: Upnp::start(),
            disco_key: told_disco_key,
            endpoints: Vec::new(),
            links,
            routes: Vec::new(),
            index,
            own,
            network: netmap.network.clone(),
            servers,
            gateway,
            wiring: Wiring::new(Arc::clone(&upstreams)),
            upstreams,
            hosts: Arc::clone(parts.hosts),
            interface: config.interface.clone(),
            wants_port_mapping: config.port_mapping,
            mtu: (mtu, is_mtu_followed),
            door,
            names,
            zone,
            userspace,
        };
        overlay.refresh_routes().await;
        overlay.refresh_endpoints().await;
        let endpoints = overlay.endpoints.clone();
        overlay
            .engine
            .handle_control(now, Update::LocalEndpoints(endpoints));
        overlay.refresh_gateway().await;
        overlay
            .wire(parts.settings.dns && config.dns, parts.state)
            .await;
        let is_userspace = overlay.userspace.is_some();
        tracing::info!(is_userspace, interface = config.interface, ipv4 = %own.0, ipv6 = %own.1, "the overlay is up");
        Ok(overlay)
    }

    pub(super) fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.gateway)
    }

    /// Leaves the mesh politely: what guests are being answered is finished first, within a bound. The coordinator tells them
    /// meanwhile that this host is gone, so nobody new comes.
    pub(super) async fn leave(self) {
        self.gateway.drain(DRAIN_MAX).await;
        self.stop().await;
    }

    /// Takes everything down and undoes what was asked of the system. Slow where the system's resolver is: nothing that
    /// is needed meanwhile may wait for it.
    pub(super) async fn stop(mut self) {
        if let Some(userspace) = &mut self.userspace {
            userspace.stop_proxies().await;
        }
        self.door.stop().await;
        // Resolvers first: while they still send names here, somebody must answer.
        if self.userspace.is_none() {
            self.wiring.clear().await;
        }
        self.names.stop().await;
        // A gateway should not forward to what is gone.
        let now = Instant::now();
        self.engine.handle_control(now, Update::Gateway(None));
        while let Some(transmit) = self.engine.poll_transmit() {
            self.dataplane.send(&transmit);
        }
        while let Some(event) = self.engine.poll_event() {
            if let Event::Upnp(order) = event {
                self.upnp.order(order);
            }
        }
        self.upnp.stop().await;
        self.relays.stop().await;
        self.dataplane.shutdown();
        if let Some(userspace) = self.userspace {
            userspace.stop();
        }
        tracing::info!("the overlay is down");
    }

    /// The node's key was replaced.
    pub(super) fn set_node_key(&mut self, node_key: NodePrivateKey) {
        self.relays.set_node_key(node_key.clone());
        let update = Update::NodeKey(node_key);
        self.engine.handle_control(Instant::now(), update);
    }

    /// Something happened at a relay's link.
    pub(super) fn on_relay(&mut self, event: RelayEvent) {
        let update = match event {
            RelayEvent::Up(relay) => Update::RelayUp(relay),
            RelayEvent::Down(relay) => Update::RelayDown(relay),
        };
        self.engine.handle_control(Instant::now(), update);
    }

    /// Whether the overlay has the addresses that the map wants.
    pub(super) fn fits(&self, netmap: &Netmap) -> bool {
        let (ours, wanted) = (&self.network, &netmap.network);
        self.own == (netmap.node.ipv4, netmap.node.ipv6)
            && (ours.id, ours.ipv4_pool, ours.ipv6_prefix)
                == (wanted.id, wanted.ipv4_pool, wanted.ipv6_prefix)
            && ours.suffix == wanted.suffix
    }

    /// Requests in work and waiting at the door.
    pub(super) fn load(&self) -> (u32, u32) {
        self.gateway.load()
    }

    pub(super) fn guests(&self) -> Vec<QueueStatus> {
        self.gateway.guests()
    }

    /// Looks at the machine's ways out again; true when they changed.
    pub(super) async fn refresh_routes(&mut self) -> bool {
        match self.links.default_routes(self.index).await {
            Ok(routes) => {
                let is_changed = routes != self.routes;
                self.routes = routes;
                is_changed
            }
            Err(err) => {
                tracing::warn!(%err, "cannot list this machine's default routes");
                false
            }
        }
    }

    /// Whether one of these links is a way out of this machine.
    pub(super) fn leads_by(&self, links: &BTreeSet<u32>) -> bool {
        let mut ways = self.routes.iter().filter_map(DefaultRoute::link_index);
        ways.any(|index| links.contains(&index))
    }

    /// Looks at the machine's addresses again; true when they changed.
    pub(super) async fn refresh_endpoints(&mut self) -> bool {
        let addrs = match self.links.local_addrs(self.index).await {
            Ok(addrs) => addrs,
            Err(err) => {
                tracing::warn!(%err, "cannot list this machine's addresses");
                return false;
            }
        };
        let port = self.dataplane.local_port();
        let endpoints: Vec<SocketAddr> = addrs
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect();
        self.wiring.look_again();
        let is_changed = endpoints != self.endpoints;
        self.endpoints = endpoints;
        is_changed
    }

    /// Looks at the links' MTUs again, and lets the overlay follow.
    pub(super) async fn refresh_mtu(&mut self) {
        let (before, is_followed) = self.mtu;
        let Some(index) = self.index.filter(|_| is_followed) else {
            return;
        };
        let mtu = match self.links.underlay_mtu(Some(index)).await {
            Ok(underlay) => overlay_mtu(underlay),
            Err(err) => {
                tracing::warn!(%err, "cannot list this machine's links");
                return;
            }
        };
        if mtu == before {
            return;
        }
        if let Err(err) = self.links.set_mtu(index, mtu.into()).await {
            tracing::warn!(%err, mtu, "the overlay keeps its MTU");
            return;
        }
        tracing::info!(mtu, "the overlay's MTU follows the links");
        self.mtu.0 = mtu;
        let update = Update::OverlayMtu(mtu);
        self.engine.handle_control(Instant::now(), update);
    }

    /// Looks where the gateway is that may map a port.
    pub(super) async fn refresh_gateway(&mut self) {
        if !self.wants_port_mapping {
            return;
        }
        match self.links.gateway().await {
            Ok(gateway) => {
                let update = Update::Gateway(gateway);
                self.engine.handle_control(Instant::now(), update);
            }
            Err(err) => tracing::warn!(%err, "cannot find the gateway"),
        }
    }

    /// Tells firewall and resolver of the overlay; takes the names out where `meshctl set dns=off` says so.
    pub(super) async fn wire(&mut self, wants_names: bool, state: &StateDir) {
        // Without an interface there is nothing to keep out, and no resolver that others could be pointed at.
        let Some(index) = self.index else {
            return;
        };
        let firewall = Firewall::new(
            &self.interface,
            self.network.ipv4_pool,
            self.network.ipv6_prefix,
        );
        let names = wants_names.then(|| (System::host(state.root()), self.plan(index)));
        self.wiring.set(firewall, names).await;
    }

    fn plan(&self, index: u32) -> Plan {
        Plan {
            interface: self.interface.clone(),
            index,
            servers: self.servers.clone(),
            domains: [self.network.suffix.clone(), crate::dns::ALIAS.to_owned()]
                .into_iter()
                .chain(reverse::zones_v4(self.network.ipv4_pool))
                .chain(reverse::zones_v6(self.network.ipv6_prefix))
                .collect(),
        }
    }

    /// What the owner should look at.
    pub(super) fn problems(&self, wants_names: bool) -> Vec<Problem> {
        match &self.userspace {
            Some(userspace) => userspace.problem().into_iter().collect(),
            None => self.wiring.problems(wants_names),
        }
    }

    /// Where programs find the mesh in userspace mode.
    pub(super) fn userspace(&self) -> Option<&UserspaceStatus> {
        self.userspace.as_ref().map(Userspace::status)
    }

    /// The zone.
    pub(super) fn zone(&self) -> &Names {
        &self.zone
    }

    pub(super) fn dns_status(&self, view: &watch::Sender<Option<Arc<View>>>) -> DnsStatus {
        let status = self.wiring.names();
        let now = Instant::now();
        let n_models = view.borrow().as_ref().map_or(0, |view| {
            Catalog::build(view, |node| self.hosts.is_down(node, now))
                .entries()
                .len()
        });
        DnsStatus {
            suffix: self.network.suffix.clone(),
            alias: crate::dns::ALIAS.to_owned(),
            servers: self.servers.clone(),
            manager: status
                .as_ref()
                .map_or("none", |status| status.manager)
                .to_owned(),
            is_wired: status.as_ref().is_some_and(|status| status.is_wired),
            hint: self
                .userspace
                .as_ref()
                .map(|_| USERSPACE_NAMES.to_owned())
                .or_else(|| status.and_then(|status| status.hint)),
            upstreams: self.upstreams.servers(),
            n_models,
        }
    }
}

/// The overlay packet that fills a link: what IPv4, UDP and WireGuard leave of it, in steps of WireGuard's padding.
fn overlay_mtu(underlay: u32) -> u16 {
    let room = underlay.saturating_sub(60) & !15;
    u16::try_from(room.clamp(MTU_LEAST, MTU_MOST)).unwrap_or(u16::MAX)
}

/// What there is to know of names in userspace mode.
const USERSPACE_NAMES: &str = "the node is in userspace mode: its proxies resolve these names for the programs that use them \
     (meshctl status shows where they are), and so does: meshctl dns query NAME";

async fn configure(
    links: &Links,
    config: &Config,
    mtu: u16,
    netmap: &Netmap,
) -> anyhow::Result<links::Configured> {
    let overlay = links::Overlay {
        ipv4: netmap.node.ipv4,
        ipv6: netmap.node.ipv6,
        pool: netmap.network.ipv4_pool,
        prefix: netmap.network.ipv6_prefix,
        mtu: u32::from(mtu),
    };
    Ok(links.configure(&config.interface, &overlay).await?)
}

/// Bytes that nobody can foretell.
fn secret() -> anyhow::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("the system's random source")?;
    Ok(secret)
}

/// This machine's own clock, Unix nanoseconds.
fn wall_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// One worker a core, at most 8, unless the owner says otherwise.
fn n_workers(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8),
        n => n.min(64),
    }
}

/// Where packets to the service addresses and to this node's door are led.
fn service_ports(dns: &DnsServer, gateway: &Gateway) -> ServicePorts {
    let tcp = |port, hidden| ServicePort {
        transport: Transport::Tcp,
        port,
        hidden,
    };
    let local = gateway.guest_ports().map_or_else(Vec::new, |guest| {
        vec![
            ServicePort {
                transport: Transport::Udp,
                port: DNS_PORT,
                hidden: dns.port(),
            },
            tcp(DNS_PORT, dns.port()),
            tcp(MODEL_PORT, guest.model),
            tcp(WEB_PORT, guest.web),
        ]
    });
    ServicePorts {
        local,
        door: vec![
            tcp(MODEL_PORT, gateway.door_ports().model),
            tcp(WEB_PORT, gateway.door_ports().web),
        ],
    }
}
