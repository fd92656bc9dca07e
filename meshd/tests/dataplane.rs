//! Two nodes with real engines, TUNs and sockets in two network namespaces; needs root.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may panic and tells what it saw"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_engine::{Engine, EngineConfig, ServicePort, ServicePorts, Transport, Update};
use mesh_proto::filter::{Allow, Filter, FilterRule, PortRange, Source};
use mesh_proto::id::{NetworkId, NodeId, UserId, service_ipv4};
use mesh_proto::key::{DiscoPrivateKey, MachinePrivateKey, NodePrivateKey, Purpose};
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::share::HostOffers;
use meshd::dataplane::{
    DEFAULT_PORT, Dataplane, DataplaneConfig, DataplaneInput, DataplaneStats, Device, open_tun,
};
use meshd::relay::intake;
use tokio::sync::oneshot;

const ROLE: &str = "PROXIMA_TEST_ROLE";
/// Which IP version the nodes find each other by: 4 or 6.
const UNDERLAY: &str = "PROXIMA_TEST_UNDERLAY";
const NETWORK: NetworkId = NetworkId::from_bytes([0xab; 16]);
const TCP_ECHO: u16 = 5000;
const UDP_ECHO: u16 = 5001;
const CLOSED: u16 = 5002;
/// Where the door is for peers, and where the local service is.
const DOOR: u16 = 11_434;

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

fn machine(n: u8) -> MachinePrivateKey {
    MachinePrivateKey::from_bytes(&[n; 32])
}

fn node_key(n: u8) -> NodePrivateKey {
    NodePrivateKey::from_bytes([n + 100; 32])
}

fn id(n: u8) -> NodeId {
    NodeId::of(&machine(n).public())
}

fn overlay(n: u8) -> [IpAddr; 2] {
    let [a, b, ..] = NETWORK.default_ipv4_pool().network().octets();
    [
        IpAddr::V4(Ipv4Addr::new(a, b, 1, n)),
        IpAddr::V6(NETWORK.ipv6_of(&id(n))),
    ]
}

fn v4_v6(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    match overlay(n) {
        [IpAddr::V4(v4), IpAddr::V6(v6)] => (v4, v6),
        _ => unreachable!(),
    }
}

fn services() -> [IpAddr; 2] {
    [
        IpAddr::V4(service_ipv4(NETWORK.default_ipv4_pool())),
        IpAddr::V6(NETWORK.service_ipv6()),
    ]
}

fn underlays(n: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into())),
    ]
}

/// The one that the test is about.
fn underlay(n: u8, port: u16) -> SocketAddr {
    let is_v6 = std::env::var(UNDERLAY).is_ok_and(|version| version == "6");
    SocketAddr::new(underlays(n)[usize::from(is_v6)], port)
}

fn peer(n: u8) -> PeerEntry {
    let node_key = node_key(n).public();
    let (ipv4, ipv6) = v4_v6(n);
    PeerEntry {
        name: format!("node-{n}").parse().unwrap(),
        user: UserId(i64::from(n)),
        user_name: "anna".parse().unwrap(),
        tags: vec![],
        machine_key: machine(n).public(),
        node_key,
        node_key_signature: machine(n).sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4,
        ipv6,
        endpoints: vec![underlay(n, PORT)],
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers::default(),
    }
}

const PORT: u16 = 41_821;

fn netmap(own: u8, other: u8) -> Netmap {
    let pool = NETWORK.default_ipv4_pool();
    let entry = peer(own);
    let tcp = |port| Allow::Tcp(PortRange::one(port));
    let udp = |port| Allow::Udp(PortRange::one(port));
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
        filter: Filter {
            rules: vec![FilterRule {
                src: Source::Any,
                allow: vec![Allow::Ping, tcp(TCP_ECHO), tcp(DOOR), udp(UDP_ECHO)],
            }],
        },
        peers: BTreeMap::from([(id(other), peer(other))]),
    }
}

/// The daemon's loop, as small as can be: only engine and data plane.
struct Node {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<DataplaneStats>,
}

impl Node {
    fn start(own: u8, other: u8, services: ServicePorts) -> Self {
        let now = Instant::now();
        let mut engine = Engine::new(
            now,
            EngineConfig {
                node_key: node_key(own),
                node_id: id(own),
                disco_key: DiscoPrivateKey::from_bytes([own; 32]),
                seed: [own; 32],
                stamps_from_ns: 1_800_000_000_000_000_000,
            },
        );
        let dataplane = Dataplane::start(DataplaneConfig {
            device: Device::Tun(open_tun("proxima%d", 1280, 2).unwrap()),
            listen_port: PORT,
            n_workers: 2,
            plane: engine.plane(),
            relays: Arc::default(),
            delivery: intake().unwrap().1,
        })
        .unwrap();
        assert_eq!(dataplane.local_port(), PORT);
        let interface = dataplane.interface();
        for addr in overlay(own) {
            let (prefix, flags) = if addr.is_ipv4() {
                (32, "")
            } else {
                (128, " nodad")
            };
            ip(&format!("addr add {addr}/{prefix} dev {interface}{flags}"));
        }
        ip(&format!(
            "route add {} dev {interface}",
            NETWORK.default_ipv4_pool()
        ));
        ip(&format!(
            "-6 route add {} dev {interface}",
            NETWORK.ipv6_prefix()
        ));
        engine.handle_control(
            now,
            Update::Netmap {
                netmap: Arc::new(netmap(own, other)),
                unix_ms: SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64,
            },
        );
        engine.handle_control(now, Update::LocalEndpoints(vec![underlay(own, PORT)]));
        engine.handle_control(now, Update::Services(services));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(drive(engine, dataplane, stopped))
        });
        Self { stop, thread }
    }

    fn stop(self) -> DataplaneStats {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

async fn drive(
    mut engine: Engine,
    mut dataplane: Dataplane,
    mut stopped: oneshot::Receiver<()>,
) -> DataplaneStats {
    loop {
        while let Some(transmit) = engine.poll_transmit() {
            dataplane.send(&transmit);
        }
        while let Some(event) = engine.poll_event() {
            eprintln!("{event:?}");
        }
        let deadline = engine.poll_timeout().map(|(at, _)| at);
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            input = dataplane.poll() => match input.unwrap() {
                DataplaneInput::Datagram { from, bytes } => {
                    engine.handle_udp(Instant::now(), from, &bytes);
                }
                DataplaneInput::Spare { .. } => panic!("nobody asked for spare sockets"),
                DataplaneInput::Relayed { relay, from, bytes } => {
                    engine.handle_relay(Instant::now(), relay, from, &bytes);
                }
                DataplaneInput::Plane(event) => engine.handle_plane(Instant::now(), event),
            },
            () = timer => engine.handle_timeout(Instant::now()),
            _ = &mut stopped => {
                let stats = dataplane.stats();
                dataplane.shutdown();
                return stats;
            }
        }
    }
}

fn listen(addrs: [IpAddr; 2], port: u16) -> Vec<TcpListener> {
    addrs
        .map(|addr| TcpListener::bind((addr, port)).unwrap())
        .into()
}

/// Serves one connection after the other: whatever comes goes back.
fn echo_tcp(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut reader = stream.unwrap();
        let mut writer = reader.try_clone().unwrap();
        std::thread::spawn(move || {
            std::io::copy(&mut reader, &mut writer).ok();
            writer.shutdown(std::net::Shutdown::Write).ok();
        });
    }
}

fn echo_udp(socket: &UdpSocket) {
    let mut buffer = [0; 65_536];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..n], from).unwrap();
    }
}

/// Sends `len` bytes and reads them back, both at once.
fn round_trip(addr: SocketAddr, len: usize) -> IpAddr {
    let mut reader = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).unwrap();
    reader
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let from = reader.peer_addr().unwrap().ip();
    let mut writer = reader.try_clone().unwrap();
    let sent: Vec<u8> = (0..len).map(|i| ((i * 7) >> 4) as u8).collect();
    let mut received = Vec::with_capacity(len);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        reader.read_to_end(&mut received).unwrap();
    });
    assert!(
        received == sent,
        "{} of {len} bytes, or changed ones",
        received.len()
    );
    from
}

fn wait_for_parent() {
    println!("ready");
    // The parent's end of the pipe closes when it is done with this node.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Node 2: echoes, and a door on a hidden port.
fn be_host() {
    let door = |port, hidden| ServicePort {
        transport: Transport::Tcp,
        port,
        hidden,
    };
    let hidden = 40_001;
    let node = Node::start(
        2,
        1,
        ServicePorts {
            local: vec![],
            door: vec![door(DOOR, hidden)],
        },
    );
    for port in [TCP_ECHO, CLOSED, hidden] {
        for listener in listen(overlay(2), port) {
            std::thread::spawn(move || echo_tcp(&listener));
        }
    }
    for addr in overlay(2) {
        let socket = UdpSocket::bind((addr, UDP_ECHO)).unwrap();
        std::thread::spawn(move || echo_udp(&socket));
    }
    wait_for_parent();
    let stats = node.stop();
    eprintln!("host: {stats:?}");
    assert!(stats.rx_packets > 1000, "{stats:?}");
}

/// Node 1: reaches node 2 in every way, and its own service address.
fn be_guest() {
    let hidden = 40_002;
    let node = Node::start(
        1,
        2,
        ServicePorts {
            local: vec![ServicePort {
                transport: Transport::Tcp,
                port: DOOR,
                hidden,
            }],
            door: vec![],
        },
    );
    for listener in listen(overlay(1), hidden) {
        std::thread::spawn(move || echo_tcp(&listener));
    }
    for addr in overlay(2) {
        let started = Instant::now();
        round_trip((addr, TCP_ECHO).into(), 1);
        eprintln!("first byte by {addr} after {:?}", started.elapsed());
        let started = Instant::now();
        let len = 16 << 20;
        round_trip((addr, TCP_ECHO).into(), len);
        let mbit = (len * 16) as f64 / started.elapsed().as_secs_f64() / 1e6;
        eprintln!("{addr}: {mbit:.0} Mbit/s, both ways together");
        assert_eq!(round_trip((addr, DOOR).into(), 3 << 20), addr, "the door");
    }
    for service in services() {
        assert_eq!(round_trip((service, DOOR).into(), 3 << 20), service);
    }
    for (own, other) in overlay(1).into_iter().zip(overlay(2)) {
        let socket = UdpSocket::bind((own, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut buffer = [0; 5000];
        for len in [0, 1, 1000, 1232, 4000] {
            let bytes = vec![len as u8; len];
            socket.send_to(&bytes, (other, UDP_ECHO)).unwrap();
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((from.ip(), &buffer[..n]), (other, &bytes[..]));
        }
        let closed = TcpStream::connect_timeout(&(other, CLOSED).into(), Duration::from_secs(1));
        assert_eq!(
            closed.unwrap_err().kind(),
            std::io::ErrorKind::TimedOut,
            "the filter lets {CLOSED} through"
        );
    }
    let stats = node.stop();
    eprintln!("guest: {stats:?}");
    assert!(stats.tx_packets > stats.tx_datagrams / 2, "{stats:?}");
    assert!(stats.reflected > 0);
    assert_eq!((stats.tun_errors, stats.inputs_lost), (0, 0));
}

/// A node whose interface somebody deletes: the daemon's loop must hear of it.
fn be_orphan() {
    let now = Instant::now();
    let config = EngineConfig {
        node_key: node_key(3),
        node_id: id(3),
        disco_key: DiscoPrivateKey::from_bytes([3; 32]),
        seed: [3; 32],
        stamps_from_ns: 1_800_000_000_000_000_000,
    };
    let engine = Engine::new(now, config);
    let mut dataplane = Dataplane::start(DataplaneConfig {
        device: Device::Tun(open_tun("orphan0", 1280, 2).unwrap()),
        listen_port: 0,
        n_workers: 2,
        plane: engine.plane(),
        relays: Arc::default(),
        delivery: intake().unwrap().1,
    })
    .unwrap();
    assert_eq!(dataplane.local_port(), DEFAULT_PORT);
    let second = Dataplane::start(DataplaneConfig {
        device: Device::Tun(open_tun("orphan1", 1280, 1).unwrap()),
        listen_port: 0,
        n_workers: 1,
        plane: engine.plane(),
        relays: Arc::default(),
        delivery: intake().unwrap().1,
    })
    .unwrap();
    assert_ne!(
        second.local_port(),
        DEFAULT_PORT,
        "a shared port was stolen"
    );
    second.shutdown();
    ip("link del orphan0");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let polled = runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(5), dataplane.poll()).await });
    let err = polled.expect("nobody noticed").unwrap_err();
    assert!(err.to_string().contains("packet thread mesh-"), "{err}");
}

#[test]
#[ignore = "a process that the other test starts in a namespace"]
fn node_process() {
    match std::env::var(ROLE).as_deref() {
        Ok("host") => be_host(),
        Ok("guest") => be_guest(),
        Ok("orphan") => be_orphan(),
        _ => panic!("run the other test"),
    }
}

/// Two namespaces joined by a cable; gone when dropped.
struct Lab {
    names: [String; 2],
}

impl Lab {
    fn new(name: &str, mtu: u16) -> Option<Self> {
        let pid = std::process::id();
        let names = ["a", "b"].map(|end| format!("px-{name}-{end}-{pid}"));
        let made = Command::new("ip")
            .args(["netns", "add", &names[0]])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let is_required = std::env::var_os("CI").is_some();
        assert!(made || !is_required, "must run as root in CI");
        if !made {
            return None;
        }
        let lab = Self { names };
        let [a, b] = &lab.names;
        ip(&format!("netns add {b}"));
        ip(&format!(
            "link add name cable netns {a} type veth peer name cable netns {b}"
        ));
        for (n, name) in [(1, a), (2, b)] {
            let [v4, v6] = underlays(n);
            ip(&format!("-n {name} link set cable mtu {mtu} up"));
            ip(&format!("-n {name} addr add {v4}/24 dev cable"));
            ip(&format!("-n {name} addr add {v6}/64 dev cable nodad"));
            ip(&format!("-n {name} link set lo up"));
        }
        Some(lab)
    }

    fn spawn(&self, idx: usize, role: &str, underlay: &str) -> Child {
        Command::new("ip")
            .args(["netns", "exec", &self.names[idx]])
            .arg(std::env::current_exe().unwrap())
            .args(["node_process", "--exact", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(UNDERLAY, underlay)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            Command::new("ip")
                .args(["netns", "del", name])
                .status()
                .ok();
        }
    }
}

#[test]
fn two_nodes_exchange_tcp_udp_and_reach_doors_and_services() {
    exchange("two", "4", 1500);
}

#[test]
fn two_nodes_get_by_on_an_ipv6_underlay_of_the_least_mtu() {
    // Datagrams are longer than that: segmentation is refused, each is fragmented.
    exchange("least", "6", 1280);
}

fn exchange(name: &str, underlay: &str, mtu: u16) {
    let Some(lab) = Lab::new(name, mtu) else {
        return;
    };
    let mut host = lab.spawn(1, "host", underlay);
    let mut text = String::new();
    let mut stdout = host.stdout.take().unwrap();
    let mut byte = [0];
    while !text.contains("ready") && stdout.read(&mut byte).unwrap() == 1 {
        text.push(char::from(byte[0]));
    }
    let guest = lab.spawn(0, "guest", underlay).wait_with_output().unwrap();
    drop(host.stdin.take());
    let rest = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    let host = host.wait().unwrap();
    rest.join().unwrap().unwrap();
    assert!(
        guest.status.success(),
        "{}",
        String::from_utf8_lossy(&guest.stdout)
    );
    assert!(host.success(), "the host failed");
}

#[test]
fn a_lost_interface_ends_the_data_plane_with_an_error() {
    let Some(lab) = Lab::new("lost", 1500) else {
        return;
    };
    let orphan = lab.spawn(0, "orphan", "4").wait_with_output().unwrap();
    assert!(
        orphan.status.success(),
        "{}",
        String::from_utf8_lossy(&orphan.stdout)
    );
}
