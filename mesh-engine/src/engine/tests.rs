//! The engine with a session layer whose clock the test moves: boringtun's counts the time that a machine sleeps.

use std::cell::Cell;
use std::net::IpAddr;

use mesh_proto::filter::Filter;
use mesh_proto::id::{NetworkId, UserId, service_ipv4};
use mesh_proto::key::{DiscoPrivateKey, MachinePrivateKey, NodeKey, Purpose};
use mesh_proto::netmap::{NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::share::HostOffers;

use super::*;
use crate::config::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
use crate::event::{DropReason, Sealed};
use crate::noise::{Read, Session, Tick};
use crate::peer::PeerHandle;
use crate::peer::state::State;

thread_local! {
    static N_SLEEPS: Cell<u32> = const { Cell::new(0) };
}

/// A session that finds itself expired after a sleep.
struct Sleeper {
    inner: Box<dyn Session>,
    n_sleeps: u32,
}

impl Sleeper {
    fn boxed(identity: &Identity, peer: &NodeKey, index: u32) -> Box<dyn Session> {
        Box::new(Self {
            inner: NoiseSession::boxed(identity, peer, index),
            n_sleeps: N_SLEEPS.get(),
        })
    }

    fn has_slept(&self) -> bool {
        N_SLEEPS.get() != self.n_sleeps
    }
}

impl Session for Sleeper {
    fn is_ready(&self) -> bool {
        !self.has_slept() && self.inner.is_ready()
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
        self.inner.seal(packet, out)
    }

    fn open(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> Read {
        if self.has_slept() {
            return Read::Refused(DropReason::NotAuthentic);
        }
        self.inner.open(from, datagram, out)
    }

    fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        self.inner.initiate(out)
    }

    fn tick(&mut self, out: &mut [u8]) -> Tick {
        if self.has_slept() {
            return Tick::Expired;
        }
        self.inner.tick(out)
    }
}

const NETWORK: NetworkId = NetworkId::from_bytes([0xab; 16]);

fn machine(n: u8) -> MachinePrivateKey {
    MachinePrivateKey::from_bytes(&[n; 32])
}

fn id(n: u8) -> NodeId {
    NodeId::of(&machine(n).public())
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::new([203, 0, 113, n].into(), 1000)
}

fn peer(n: u8) -> PeerEntry {
    let node_key = NodePrivateKey::from_bytes([n; 32]).public();
    PeerEntry {
        name: format!("node{n}").parse().unwrap(),
        user: UserId(1),
        user_name: "anna".parse().unwrap(),
        tags: vec![],
        machine_key: machine(n).public(),
        node_key,
        node_key_signature: machine(n).sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4: [10, 77, 1, n].into(),
        ipv6: NETWORK.ipv6_of(&id(n)),
        endpoints: vec![endpoint(n)],
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers::default(),
    }
}

fn netmap(own: u8, other: u8) -> Netmap {
    let entry = peer(own);
    let pool = "10.77.0.0/16".parse().unwrap();
    Netmap {
        network: NetworkInfo {
            id: NETWORK,
            suffix: "proxima".to_owned(),
            ipv4_pool: pool,
            ipv6_prefix: NETWORK.ipv6_prefix(),
            service_ipv4: service_ipv4(pool),
            service_ipv6: NETWORK.service_ipv6(),
            stun: vec![],
            coordinator_urls: vec![],
            relays: vec![],
        },
        node: SelfNode {
            id: id(own),
            name: entry.name,
            user: entry.user,
            user_name: entry.user_name,
            tags: vec![],
            node_key: entry.node_key,
            ipv4: entry.ipv4,
            ipv6: entry.ipv6,
            expires_at_ms: None,
        },
        filter: Filter::default(),
        peers: BTreeMap::from([(id(other), peer(other))]),
    }
}

fn engine(now: Instant, own: u8, other: u8) -> Engine {
    let config = EngineConfig {
        node_key: NodePrivateKey::from_bytes([own; 32]),
        node_id: id(own),
        disco_key: DiscoPrivateKey::from_bytes([7; 32]),
        seed: [own; 32],
        stamps_from_ns: 1_800_000_000_000_000_000,
    };
    let mut engine = Engine::new(now, config);
    let netmap = Arc::new(netmap(own, other));
    engine.handle_control(now, Update::Netmap { netmap, unix_ms: 1 });
    engine
}

/// Node 1, whose machine sleeps, and node 2, whose does not.
struct Two {
    now: Instant,
    engines: [Engine; 2],
    n_initiations: [usize; 2],
}

impl Two {
    fn new() -> Self {
        let now = Instant::now();
        let mut engines = [engine(now, 1, 2), engine(now, 2, 1)];
        engines[0].new_session = Sleeper::boxed;
        Self {
            now,
            engines,
            n_initiations: [0; 2],
        }
    }

    fn up() -> Self {
        let mut two = Self::new();
        let event = PlaneEvent::NeedSession(two.handle(0));
        two.engines[0].handle_plane(two.now, event);
        two.carry();
        assert!(two.is_up());
        two
    }

    fn handle(&self, idx: usize) -> PeerHandle {
        let other = id(if idx == 0 { 2 } else { 1 });
        self.engines[idx].peers.get(&other).unwrap().handle.clone()
    }

    /// Carries datagrams until there are none; a network without delay.
    fn carry(&mut self) {
        loop {
            let Some((idx, transmit)) =
                (0..2).find_map(|idx| Some((idx, self.engines[idx].poll_transmit()?)))
            else {
                return;
            };
            let (now, from, bytes) = (self.now, endpoint([1, 2][idx]), &transmit.bytes);
            self.n_initiations[idx] += usize::from(bytes[0] == 1);
            let to = &mut self.engines[1 - idx];
            match to.plane().inbound(now, bytes) {
                crate::Inbound::Control => to.handle_udp(now, from, bytes),
                crate::Inbound::Data(peer) => {
                    let mut opener = peer.open();
                    opener.open(from, bytes, &mut vec![0; bytes.len()]);
                    if let Some(event) = opener.finish() {
                        to.handle_plane(now, event);
                    }
                }
                crate::Inbound::Drop(_) => {}
            }
        }
    }

    fn run(&mut self, span: Duration, awake: std::ops::Range<usize>) {
        let end = self.now + span;
        while self.now < end {
            self.now += TICK;
            for idx in awake.clone() {
                self.engines[idx].handle_timeout(self.now);
            }
            self.carry();
        }
    }

    fn is_up(&self) -> bool {
        (0..2).all(|idx| {
            let now_ms = self.engines[idx].plane.shared.now_ms();
            self.handle(idx).slot().is_ready(now_ms)
        })
    }

    fn n_down(&mut self, idx: usize) -> usize {
        let events = std::iter::from_fn(|| self.engines[idx].poll_event());
        events
            .filter(|event| matches!(event, Event::PeerDown { .. }))
            .count()
    }
}

fn sleep() {
    N_SLEEPS.set(N_SLEEPS.get() + 1);
}

#[test]
fn a_machine_that_slept_is_back_within_a_tick() {
    let mut two = Two::up();
    two.run(Duration::from_secs(20), 0..2);
    // The engine's clock stood still, boringtun's did not.
    sleep();
    two.run(TICK, 0..2);
    assert!(two.is_up());
    assert_eq!((two.n_down(0), two.n_initiations), (0, [2, 0]));
}

#[test]
fn a_program_that_was_stopped_is_back_within_a_tick() {
    let mut two = Two::up();
    // Node 2 has forgotten node 1 meanwhile.
    two.run(Duration::from_secs(600), 1..2);
    assert!(!two.is_up());
    two.run(TICK, 0..2);
    assert!(two.is_up());
    assert_eq!((two.n_down(0), two.n_initiations), (0, [2, 0]));
}

#[test]
fn a_sleep_in_the_middle_of_a_handshake_costs_a_tick() {
    let mut two = Two::new();
    let event = PlaneEvent::NeedSession(two.handle(0));
    two.engines[0].handle_plane(two.now, event);
    while two.engines[0].poll_transmit().is_some() {}
    sleep();
    two.run(TICK, 0..2);
    assert!(two.is_up());
    assert_eq!(two.n_initiations, [1, 0]);
}

#[test]
fn an_idle_session_ends_without_a_handshake() {
    let mut two = Two::up();
    two.run(Duration::from_secs(1000), 0..2);
    assert!(!two.is_up());
    assert_eq!((two.n_down(0), two.n_down(1)), (1, 1));
    assert_eq!(two.n_initiations, [1, 0]);
    for idx in 0..2 {
        assert_eq!(two.engines[idx].poll_timeout(), None);
    }
}

#[test]
fn keys_wear_out_by_the_number_of_packets() {
    let mut two = Two::up();
    let (handle, mut out) = (two.handle(0), [0; 200]);
    let n_sealed = |n: u64| {
        if let Some(agreed) = &mut handle.slot().agreed {
            agreed.n_sealed = n;
        }
    };
    let mut seal = || {
        let mut sealer = handle.seal();
        (sealer.seal(&[0x45; 20], &mut out), sealer.finish())
    };
    n_sealed(REKEY_AFTER_MESSAGES - 2);
    assert!(matches!(seal(), (Sealed::Datagram(_), None)));
    let (Sealed::Datagram(_), Some(event)) = seal() else {
        panic!("the packet goes, and other keys are due");
    };
    two.engines[0].handle_plane(two.now, event);
    two.carry();
    assert_eq!(two.n_initiations, [2, 0]);
    assert!(two.is_up() && !handle.slot().is_worn());

    n_sealed(REJECT_AFTER_MESSAGES - 1);
    assert!(matches!(seal(), (Sealed::Datagram(_), Some(_))));
    let (Sealed::Queued, Some(event)) = seal() else {
        panic!("no packet goes with keys that are used up");
    };
    two.engines[0].handle_plane(two.now, event);
    two.carry();
    assert_eq!(two.n_initiations, [3, 0]);
    assert!(!handle.slot().has_queued(), "it went with the new keys");
    let control = two.engines[0].peers.get(&id(2)).unwrap();
    assert_eq!(*control.state(), State::Up);
}
