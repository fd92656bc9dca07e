//! `coordinator serve`: puts the parts together, starts them, and stops them in order.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mesh_proto::admin::{CreatedAuthKey, NewAuthKey};
use mesh_proto::auth_key::pin_of;
use mesh_proto::id::{NetworkId, RelayId, service_ipv4};
use mesh_proto::netmap::NetworkInfo;
use mesh_proto::relay::{Pin, RelayEntry};
use mesh_relay::{Relay, RelayConfig};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::nonce::Nonces;
use crate::clock::unix_ms;
use crate::config::{Settings, host_of};
use crate::coordinator::{Coordinator, Rules};
use crate::relay::{self, Counted};
use crate::server::{self, Shared};
use crate::state::State;
use crate::state_dir::StateDir;
use crate::store::{MeshRecord, Store};
use crate::tls::Tls;
use crate::{api, local_addr, metrics, stun};

/// How long requests in progress may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const TLS_REFRESH_EVERY: Duration = Duration::from_secs(3600);
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// A coordinator that runs.
pub struct Server {
    coordinator: Arc<Coordinator>,
    addresses: Vec<SocketAddr>,
    stun: Vec<SocketAddr>,
    socket: PathBuf,
    first_key: Option<CreatedAuthKey>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _state_dir: StateDir,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a coordinator.
    ///
    /// # Errors
    /// When its state, its certificate or an address cannot be used; the text says what to do.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        metrics::init();
        let state_dir = StateDir::open(&settings.state_dir)?;
        let key = state_dir.coordinator_key()?;
        let store = Store::open_sqlite(&state_dir.database()?)
            .await
            .context("cannot open the database")?;

        let network_id = NetworkId::of(&key.public());
        let wanted_pool = settings
            .ipv4_pool
            .unwrap_or_else(|| network_id.default_ipv4_pool());
        let mesh = store
            .open_mesh(network_id, wanted_pool, unix_ms())
            .await
            .context("cannot open the mesh")?;
        check(&mesh, network_id, &settings)?;
        let (listeners, addresses) = server::listen(&settings.listen, settings.is_listen_default)?;
        let (stun_sockets, stun) = bind_all(settings.stun.as_deref(), &addresses)?;
        let urls = if settings.urls.is_empty() {
            // A machine that is also a node has overlay addresses: who is to join cannot reach those yet.
            let is_overlay = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => mesh.ipv4_pool.contains(ip),
                IpAddr::V6(ip) => mesh.network_id.ipv6_prefix().contains(ip),
            };
            find_urls(&addresses, &local_addr::list(), is_overlay)
        } else {
            settings.urls.clone()
        };
        let hosts: Vec<String> = urls.iter().filter_map(|url| host_of(url)).collect();
        let tls = match settings.tls_files.clone() {
            Some((cert, key)) => Tls::files(cert, key)?,
            None => Tls::own(key.clone(), hosts.clone())?,
        };

        let public_stun = public_stun(&hosts, &stun).await;
        let pin = Pin::from_bytes(pin_of(&key.public()));
        let own_relay = settings
            .is_relay
            .then(|| own_relay(pin, &urls, &public_stun));
        let network = NetworkInfo {
            id: mesh.network_id,
            suffix: settings.suffix.clone(),
            ipv4_pool: mesh.ipv4_pool,
            ipv6_prefix: mesh.network_id.ipv6_prefix(),
            service_ipv4: service_ipv4(mesh.ipv4_pool),
            service_ipv6: mesh.network_id.service_ipv6(),
            stun: public_stun,
            coordinator_urls: urls.clone(),
            relays: own_relay.into_iter().flatten().collect(),
        };
        let now = Instant::now();
        let state = State::new(network, mesh.epoch, now + settings.start_grace);
        let rules = Rules {
            node_key_ttl: settings.node_key_ttl,
            ephemeral_ttl: settings.ephemeral_ttl,
            urls,
        };
        let coordinator = Coordinator::new(key, rules, store, state, Nonces::new(now)?);
        coordinator.reload().await.context("cannot read the mesh")?;
        let first_key = found(&coordinator, &settings).await?;

        let server = Self {
            coordinator,
            addresses,
            stun,
            socket: settings.socket,
            first_key,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            _state_dir: state_dir,
        };
        let relay = settings
            .is_relay
            .then(|| server.relay(pin, settings.relay_bytes_per_second));
        let stun_sockets = match &relay {
            Some(relay) => give_udp(relay, stun_sockets)?,
            None => stun_sockets,
        };
        server.run(listeners, stun_sockets, &tls, relay)?;
        Ok(server)
    }

    /// The relay of this coordinator, with the task that it needs.
    fn relay(&self, pin: Pin, bytes_per_second: u64) -> Arc<Relay> {
        let relay = Relay::new(RelayConfig {
            pin,
            bytes_per_second,
            members: self.coordinator.members(),
            meter: Arc::new(Counted),
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
        });
        self.tasks.spawn(Arc::clone(&relay).keep());
        relay
    }

    fn run(
        &self,
        listeners: Vec<TcpListener>,
        stun_sockets: Vec<UdpSocket>,
        tls: &Arc<Tls>,
        relay: Option<Arc<Relay>>,
    ) -> anyhow::Result<()> {
        let mut router = api::router(Arc::clone(&self.coordinator));
        if let Some(relay) = relay {
            router = router.merge(relay::router(relay));
        }
        let shared = Shared {
            router,
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
        };
        let acceptor = TlsAcceptor::from(tls.server_config()?);
        let (unix, own_uid) = server::bind_unix(&self.socket)?;
        self.tasks
            .spawn(server::serve_unix(shared.clone(), unix, own_uid));
        for listener in listeners {
            self.tasks.spawn(server::serve_tls(
                shared.clone(),
                listener,
                acceptor.clone(),
            ));
        }
        for socket in stun_sockets {
            self.tasks.spawn(stun::serve(socket, self.stop.clone()));
        }
        self.tasks
            .spawn(Arc::clone(&self.coordinator).keep_time(self.stop.clone()));
        self.tasks
            .spawn(Arc::clone(&self.coordinator).keep_members(self.stop.clone()));
        self.tasks
            .spawn(keep_tls_fresh(Arc::clone(tls), self.stop.clone()));
        Ok(())
    }

    /// Where nodes and operators reach it.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it answers STUN.
    #[must_use]
    pub fn stun(&self) -> &[SocketAddr] {
        &self.stun
    }

    /// The admin socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The public URLs that auth keys carry.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.coordinator.rules().urls
    }

    /// The key that signs maps.
    #[must_use]
    pub fn coordinator_key(&self) -> mesh_proto::key::CoordinatorKey {
        self.coordinator.key().public()
    }

    /// The auth key that a first run makes.
    #[must_use]
    pub const fn first_key(&self) -> Option<&CreatedAuthKey> {
        self.first_key.as_ref()
    }

    /// Stops in order: who is online is kept, streams end, requests in progress finish.
    pub async fn stop(self) {
        self.coordinator.stop(STOP_PATIENCE).await;
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("stopping with connections open");
        }
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Gives a relay the sockets of the first port, which serves STUN too; the others are given back.
pub(crate) fn give_udp(
    relay: &Arc<Relay>,
    sockets: Vec<UdpSocket>,
) -> anyhow::Result<Vec<UdpSocket>> {
    let port_of = |socket: &UdpSocket| socket.local_addr().map(|addr| addr.port()).ok();
    let first = sockets.first().and_then(port_of);
    let (given, kept) = sockets
        .into_iter()
        .partition(|socket| port_of(socket) == first);
    relay.serve_udp(given)?;
    Ok(kept)
}

/// Opens the sockets for STUN: those that are named, or two ports beside each TCP address.
pub(crate) fn bind_all(
    named: Option<&[SocketAddr]>,
    tcp: &[SocketAddr],
) -> anyhow::Result<(Vec<UdpSocket>, Vec<SocketAddr>)> {
    let mut sockets = Vec::new();
    for address in named.unwrap_or(tcp) {
        let socket = server::bind_udp(*address).with_context(|| {
            format!("cannot open {address} (UDP) for STUN; choose another one with --stun")
        })?;
        sockets.push(socket);
    }
    if named.is_none() {
        // A node that asks two ports of one address learns whether its NAT gives each destination another port.
        let second = |address: &SocketAddr| {
            let port = address.port().checked_add(1)?;
            server::bind_udp(SocketAddr::new(address.ip(), port)).ok()
        };
        sockets.extend(tcp.iter().filter_map(second));
    }
    let addresses = sockets.iter().map(UdpSocket::local_addr);
    let addresses = addresses.collect::<Result<_, _>>()?;
    Ok((sockets, addresses))
}

/// The coordinator's own relay as the netmap names it; `None` without a URL to reach it by.
fn own_relay(pin: Pin, urls: &[String], stun: &[SocketAddr]) -> Option<RelayEntry> {
    let first = urls.first()?;
    Some(RelayEntry {
        id: RelayId::of(pin.as_bytes(), first),
        name: host_of(first).unwrap_or_default(),
        urls: urls.to_vec(),
        pin,
        udp: vec![],
        stun: stun.to_vec(),
    })
}

/// The URLs of a machine whose operator named none: its addresses that are not loopback, where it listens on them all.
pub(crate) fn find_urls(
    listening: &[SocketAddr],
    own: &[IpAddr],
    is_overlay: impl Fn(&IpAddr) -> bool,
) -> Vec<String> {
    let mut urls = Vec::new();
    for address in listening {
        if !address.ip().is_unspecified() {
            urls.push(format!("https://{address}"));
            continue;
        }
        let found = own
            .iter()
            .filter(|ip| ip.is_ipv4() == address.is_ipv4() && !is_overlay(ip));
        urls.extend(found.map(|ip| format!("https://{}", SocketAddr::new(*ip, address.port()))));
    }
    if urls.is_empty()
        && let Some(address) = listening.first()
    {
        urls.push(format!("https://127.0.0.1:{}", address.port()));
    }
    urls
}

/// Where nodes find our STUN: the public hosts at the ports that are open for it.
pub(crate) async fn public_stun(hosts: &[String], open: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for host in hosts {
        match host.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => {
                let found = tokio::time::timeout(
                    RESOLVE_DEADLINE,
                    tokio::net::lookup_host((host.as_str(), 0)),
                )
                .await;
                match found {
                    Ok(Ok(found)) => ips.extend(found.map(|address| address.ip())),
                    Ok(Err(_)) | Err(_) => {
                        tracing::warn!(%host, "cannot resolve this host of the URLs; no STUN there")
                    }
                }
            }
        }
    }
    let mut public = Vec::new();
    for ip in ips {
        let ports = open.iter().filter(|open| {
            open.is_ipv4() == ip.is_ipv4()
                && (open.ip().is_unspecified() || open.ip() == ip || !ip.is_loopback())
        });
        for open in ports {
            let address = SocketAddr::new(ip, open.port());
            if !public.contains(&address) {
                public.push(address);
            }
        }
    }
    public
}

fn check(mesh: &MeshRecord, network_id: NetworkId, settings: &Settings) -> anyhow::Result<()> {
    if mesh.network_id != network_id {
        bail!(
            "the coordinator key and the database are of different meshes; restore both from one backup"
        );
    }
    if let Some(pool) = settings.ipv4_pool
        && pool != mesh.ipv4_pool
    {
        bail!(
            "this mesh was founded with the IPv4 pool {}, which cannot be changed to {pool}: nodes have addresses of it",
            mesh.ipv4_pool
        );
    }
    Ok(())
}

/// A mesh without users is new: makes its first user, and an auth key for the first node.
async fn found(
    coordinator: &Arc<Coordinator>,
    settings: &Settings,
) -> anyhow::Result<Option<CreatedAuthKey>> {
    if coordinator.read(|state| state.users().next().is_some()) {
        return Ok(None);
    }
    coordinator
        .insert_user(settings.user.clone())
        .await
        .context("cannot make the first user")?;
    let asked = NewAuthKey {
        user: Some(settings.user.clone()),
        ..NewAuthKey::default()
    };
    match api::auth_keys::make(coordinator, asked).await {
        Ok(key) => Ok(Some(key)),
        Err(err) => bail!("cannot make the first auth key: {err:?}"),
    }
}

pub(crate) async fn keep_tls_fresh(tls: Arc<Tls>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TLS_REFRESH_EVERY) => tls.refresh(),
        }
    }
}

/// Milliseconds since the Unix epoch, for whoever prints times.
#[must_use]
pub fn now_ms() -> u64 {
    unix_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_hold_no_address_of_the_overlay() {
        let network_id = NetworkId::from_bytes([0xab; 16]);
        let pool = network_id.default_ipv4_pool();
        let is_overlay = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => pool.contains(ip),
            IpAddr::V6(ip) => network_id.ipv6_prefix().contains(ip),
        };
        let own = [
            "10.171.1.1",
            "192.0.2.7",
            "fdab:abab:abab::1",
            "2001:db8::7",
        ]
        .map(|ip| ip.parse().unwrap());
        let listening = ["0.0.0.0:7443", "[::]:7443"].map(|address| address.parse().unwrap());
        let urls = find_urls(&listening, &own, is_overlay);
        assert_eq!(
            urls,
            ["https://192.0.2.7:7443", "https://[2001:db8::7]:7443"]
        );
        let one = ["10.171.1.1:7443".parse().unwrap()];
        assert_eq!(
            find_urls(&one, &own, is_overlay),
            ["https://10.171.1.1:7443"]
        );
    }
}
