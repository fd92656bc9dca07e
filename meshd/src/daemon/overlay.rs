//! The overlay while it is up: engine, packets, names and doors, started in order and taken down in reverse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use mesh_engine::{Engine, EngineConfig, ServicePort, ServicePorts, Transport, Update};
use mesh_proto::key::{DiscoKey, DiscoPrivateKey, NodePrivateKey};
use mesh_proto::local::{DnsStatus, Problem, Settings};
use mesh_proto::netmap::{Netmap, NetworkInfo};
use mesh_proto::{MODEL_PORT, WEB_PORT};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::dataplane::{Dataplane, DataplaneConfig};
use crate::dns::reverse;
use crate::dns::server::DnsServer;
use crate::dns::upstream::Upstreams;
use crate::gateway::{Gateway, GatewayConfig};
use crate::inventory::Inventory;
use crate::os::linux::firewall::Firewall;
use crate::os::linux::links::{self, DefaultRoute, Links};
use crate::os::linux::names::{Plan, System};
use crate::relay::{self, RelayEvent, RelaySender, Relays};
use crate::state_dir::StateDir;
use crate::view::{Liveness, View};

use super::wiring::Wiring;

const DNS_PORT: u16 = 53;

/// What the overlay is made with.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) state: &'a StateDir,
    pub(super) settings: &'a Settings,
    pub(super) view: &'a watch::Sender<Option<Arc<View>>>,
    pub(super) liveness: &'a Arc<Liveness>,
    pub(super) inventory: &'a Inventory,
}

/// Everything that exists while the overlay is up.
pub(super) struct Overlay {
    pub(super) engine: Engine,
    pub(super) dataplane: Dataplane,
    pub(super) relays: Relays,
    pub(super) disco_key: DiscoKey,
    /// Where this machine may be reached on the underlay, by its own interfaces.
    pub(super) endpoints: Vec<SocketAddr>,
    links: Links,
    /// The machine's ways out on the underlay.
    routes: Vec<DefaultRoute>,
    index: u32,
    own: (Ipv4Addr, Ipv6Addr),
    network: NetworkInfo,
    servers: Vec<IpAddr>,
    gateway: Arc<Gateway>,
    upstreams: Arc<Upstreams>,
    liveness: Arc<Liveness>,
    interface: String,
    wants_port_mapping: bool,
    wiring: Wiring,
    door: Serving,
    names: Serving,
}

/// A task that serves until it is told to end.
struct Serving {
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Serving {
    fn start<F>(serve: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        Self {
            task: tokio::spawn(serve(cancel.clone())),
            cancel,
        }
    }

    async fn stop(self) {
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
        let seed = secret()?;
        let node_key = parts.state.node_key()?;
        let disco_key = DiscoPrivateKey::from_bytes(secret()?);
        let told_disco_key = disco_key.public();
        let mut engine = Engine::new(
            now,
            EngineConfig {
                node_key: node_key.clone(),
                node_id: netmap.node.id,
                disco_key,
                seed,
            },
        );
        let sender = Arc::new(RelaySender::default());
        let (intake, delivery) = relay::intake().context("opening an event descriptor")?;
        let dataplane = Dataplane::start(DataplaneConfig {
            interface: config.interface.clone(),
            mtu: config.mtu,
            listen_port: config.listen_port,
            n_workers: n_workers(config.workers),
            plane: engine.plane(),
            relays: Arc::clone(&sender),
            delivery,
        })?;
        let relays = Relays::new(sender, intake, node_key, config.dialer());
        let links = Links::open()?;
        let own = (netmap.node.ipv4, netmap.node.ipv6);
        let configured = links
            .configure(
                &config.interface,
                &links::Overlay {
                    ipv4: own.0,
                    ipv6: own.1,
                    pool: netmap.network.ipv4_pool,
                    prefix: netmap.network.ipv6_prefix,
                    mtu: u32::from(config.mtu),
                },
            )
            .await?;
        let index = configured.index;
        let mut addrs = vec![IpAddr::V4(own.0)];
        let mut servers = vec![IpAddr::V4(netmap.network.service_ipv4)];
        if configured.has_ipv6 {
            addrs.push(IpAddr::V6(own.1));
            servers.push(IpAddr::V6(netmap.network.service_ipv6));
        }
        let upstreams = Arc::new(Upstreams::default());
        let dns = DnsServer::bind(
            &addrs,
            parts.view.subscribe(),
            Arc::clone(parts.liveness),
            Arc::clone(&upstreams),
        )
        .await
        .context("cannot listen for names")?;
        let gateway = Gateway::bind(GatewayConfig {
            ipv4: own.0,
            ipv6: configured.has_ipv6.then_some(own.1),
            device: Some(config.interface.clone()),
            view: parts.view.subscribe(),
            liveness: Arc::clone(parts.liveness),
            share: parts.inventory.status.clone(),
            meter: None,
            door_port: None,
        })
        .context("cannot listen for model requests")?;
        let gateway = Arc::new(gateway);
        engine.handle_control(now, Update::Services(service_ports(&dns, &gateway)));
        let names = Serving::start(|cancel| dns.run(cancel));
        let door = {
            let gateway = Arc::clone(&gateway);
            Serving::start(|cancel| async move { gateway.run(cancel).await })
        };
        let mut overlay = Self {
            engine,
            dataplane,
            relays,
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
            liveness: Arc::clone(parts.liveness),
            interface: config.interface.clone(),
            wants_port_mapping: config.port_mapping,
            door,
            names,
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
        tracing::info!(interface = config.interface, ipv4 = %own.0, ipv6 = %own.1, "the overlay is up");
        Ok(overlay)
    }

    /// Takes everything down and undoes what was asked of the system. Slow where the system's resolver is: nothing that
    /// is needed meanwhile may wait for it.
    pub(super) async fn stop(mut self) {
        self.door.stop().await;
        // Resolvers first: while they still send names here, somebody must answer.
        self.wiring.clear().await;
        self.names.stop().await;
        // A gateway should not forward to what is gone.
        let now = Instant::now();
        self.engine.handle_control(now, Update::Gateway(None));
        while let Some(transmit) = self.engine.poll_transmit() {
            self.dataplane.send(&transmit);
        }
        self.relays.stop().await;
        self.dataplane.shutdown();
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

    /// Looks at the machine's ways out again; true when they changed.
    pub(super) async fn refresh_routes(&mut self) -> bool {
        match self.links.default_routes(Some(self.index)).await {
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

    /// Looks at the machine's addresses again; true when they changed.
    pub(super) async fn refresh_endpoints(&mut self) -> bool {
        let addrs = match self.links.local_addrs(Some(self.index)).await {
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
        let firewall = Firewall::new(
            &self.interface,
            self.network.ipv4_pool,
            self.network.ipv6_prefix,
        );
        let names = wants_names.then(|| (System::host(state.root()), self.plan()));
        self.wiring.set(firewall, names).await;
    }

    fn plan(&self) -> Plan {
        Plan {
            interface: self.interface.clone(),
            index: self.index,
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
        self.wiring.problems(wants_names)
    }

    pub(super) fn dns_status(&self, view: &watch::Sender<Option<Arc<View>>>) -> DnsStatus {
        let status = self.wiring.names();
        let now = Instant::now();
        let n_models = view.borrow().as_ref().map_or(0, |view| {
            Catalog::build(view, |node| self.liveness.is_down(node, now))
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
            hint: status.and_then(|status| status.hint),
            upstreams: self.upstreams.servers(),
            n_models,
        }
    }
}

/// Bytes that nobody can foretell.
fn secret() -> anyhow::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).context("the system's random source")?;
    Ok(secret)
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
    ServicePorts {
        local: vec![
            ServicePort {
                transport: Transport::Udp,
                port: DNS_PORT,
                hidden: dns.port(),
            },
            tcp(DNS_PORT, dns.port()),
            tcp(MODEL_PORT, gateway.guest_ports().model),
            tcp(WEB_PORT, gateway.guest_ports().web),
        ],
        door: vec![
            tcp(MODEL_PORT, gateway.door_ports().model),
            tcp(WEB_PORT, gateway.door_ports().web),
        ],
    }
}
