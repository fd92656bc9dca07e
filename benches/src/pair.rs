//! Two engines with a session between them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_engine::{
    ChecksumState, Engine, EngineConfig, Inbound, Opened, Outbound, PeerHandle, Plane,
    SEAL_OVERHEAD, Sealed, Update,
};
use mesh_proto::filter::{Allow, Filter, FilterRule, Source};
use mesh_proto::id::{NetworkId, NodeId, UserId};
use mesh_proto::key::{
    CoordinatorPrivateKey, DiscoPrivateKey, MachinePrivateKey, NodePrivateKey, Purpose,
};
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::share::HostOffers;

use crate::scenario::tcp;

const USER: UserId = UserId(1);
const UNIX_MS: u64 = 1_800_000_000_000;
/// A handshake takes three datagrams and the first packet one.
const N_DATAGRAMS_MAX: usize = 16;

/// One end.
pub(crate) struct End {
    number: u8,
    id: NodeId,
    node_key: NodePrivateKey,
    machine_key: MachinePrivateKey,
    engine: Engine,
    /// Its data side.
    pub(crate) plane: Arc<Plane>,
    /// Its overlay address.
    pub(crate) ipv4: Ipv4Addr,
    /// Where it is on the underlay.
    pub(crate) endpoint: SocketAddr,
}

/// Two ends that have agreed on keys.
pub(crate) struct Pair {
    /// Who seals.
    pub(crate) a: End,
    /// Who opens.
    pub(crate) b: End,
    /// The time that the planes are told.
    pub(crate) now: Instant,
    /// `b` as `a` knows it.
    pub(crate) b_of_a: PeerHandle,
    /// `a` as `b` knows it.
    pub(crate) a_of_b: PeerHandle,
}

impl End {
    fn new(now: Instant, number: u8) -> Self {
        let machine_key = MachinePrivateKey::from_bytes(&[number; 32]);
        let node_key = NodePrivateKey::from_bytes([number; 32]);
        let id = NodeId::of(&machine_key.public());
        let engine = Engine::new(
            now,
            EngineConfig {
                node_key: node_key.clone(),
                node_id: id,
                disco_key: disco_key(number),
                seed: [number; 32],
                stamps_from_ns: 1_800_000_000_000_000_000,
            },
        );
        Self {
            id,
            number,
            node_key,
            machine_key,
            plane: engine.plane(),
            engine,
            ipv4: Ipv4Addr::new(10, 77, 1, number),
            endpoint: SocketAddr::from(([203, 0, 113, number], 41_820)),
        }
    }

    fn entry(&self, network: &NetworkInfo) -> Result<PeerEntry> {
        let node_key = self.node_key.public();
        Ok(PeerEntry {
            name: "peer".parse()?,
            user: USER,
            user_name: "user".parse()?,
            tags: vec![],
            machine_key: self.machine_key.public(),
            node_key,
            node_key_signature: self.machine_key.sign(Purpose::NodeKey, node_key.as_bytes()),
            ipv4: self.ipv4,
            ipv6: network.id.ipv6_of(&self.id),
            endpoints: vec![self.endpoint],
            disco_key: Some(disco_key(self.number).public()),
            home_relay: None,
            expires_at_ms: None,
            is_online: true,
            last_seen_ms: None,
            offers: HostOffers::default(),
        })
    }

    fn meet(&mut self, now: Instant, network: &NetworkInfo, peer: &Self) -> Result<()> {
        let netmap = Arc::new(Netmap {
            network: network.clone(),
            node: SelfNode {
                id: self.id,
                name: "own".parse()?,
                user: USER,
                user_name: "user".parse()?,
                tags: vec![],
                node_key: self.node_key.public(),
                ipv4: self.ipv4,
                ipv6: network.id.ipv6_of(&self.id),
                expires_at_ms: None,
            },
            filter: Filter {
                rules: vec![FilterRule {
                    src: Source::User(USER),
                    allow: vec![Allow::All],
                }],
            },
            peers: [(peer.id, peer.entry(network)?)].into(),
        });
        let unix_ms = UNIX_MS;
        self.engine
            .handle_control(now, Update::Netmap { netmap, unix_ms });
        Ok(())
    }

    /// Takes a datagram; whether it held a packet.
    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> bool {
        match self.plane.inbound(now, datagram) {
            Inbound::Control => {
                self.engine.handle_udp(now, from, datagram);
                false
            }
            Inbound::Data(peer) => {
                let mut out = vec![0; datagram.len()];
                let mut opener = peer.open();
                let opened = opener.open(from, datagram, &mut out);
                if let Some(event) = opener.finish() {
                    self.engine.handle_plane(now, event);
                }
                matches!(opened, Opened::Packet(_))
            }
            Inbound::Drop(_) => false,
        }
    }

    fn peer(&self, now: Instant, packet: &mut [u8]) -> Result<PeerHandle> {
        match self.plane.outbound(now, packet, ChecksumState::Complete) {
            Outbound::Peer(peer) => Ok(peer),
            other @ (Outbound::Reflect | Outbound::Drop(_)) => bail!("no peer: {other:?}"),
        }
    }
}

impl Pair {
    /// Lets the two agree, by their real handshake.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) fn new() -> Result<Self> {
        let now = Instant::now();
        let (mut a, mut b) = (End::new(now, 1), End::new(now, 2));
        let network = network()?;
        a.meet(now, &network, &b)?;
        b.meet(now, &network, &a)?;
        let mut packet = tcp((a.ipv4, b.ipv4), 0, 64);
        let b_of_a = a.peer(now, &mut packet)?;
        let a_of_b = b.peer(now, &mut tcp((b.ipv4, a.ipv4), 0, 64))?;
        let mut sealer = b_of_a.seal();
        let sealed = sealer.seal(&packet, &mut vec![0; packet.len() + SEAL_OVERHEAD + 148]);
        ensure!(matches!(sealed, Sealed::Queued), "no handshake: {sealed:?}");
        let event = sealer.finish().context("no session is asked for")?;
        a.engine.handle_plane(now, event);
        let mut has_arrived = false;
        for _ in 0..N_DATAGRAMS_MAX {
            while let Some(transmit) = a.engine.poll_transmit() {
                has_arrived |= b.receive(now, a.endpoint, &transmit.bytes);
            }
            while let Some(transmit) = b.engine.poll_transmit() {
                a.receive(now, b.endpoint, &transmit.bytes);
            }
        }
        ensure!(has_arrived, "no session came about");
        Ok(Self {
            a,
            b,
            now,
            b_of_a,
            a_of_b,
        })
    }
}

fn disco_key(number: u8) -> DiscoPrivateKey {
    DiscoPrivateKey::from_bytes([number + 10; 32])
}

fn network() -> Result<NetworkInfo> {
    let id = NetworkId::of(&CoordinatorPrivateKey::from_bytes(&[9; 32]).public());
    Ok(NetworkInfo {
        id,
        suffix: "proxima".to_owned(),
        ipv4_pool: "10.77.0.0/16".parse()?,
        ipv6_prefix: id.ipv6_prefix(),
        service_ipv4: Ipv4Addr::new(10, 77, 0, 53),
        service_ipv6: id.service_ipv6(),
        stun: vec![],
        coordinator_urls: vec![],
        relays: vec![],
    })
}
