//! Two stacks, joined by a thread that cuts long segments as the data plane does, and loses some where a test wants it.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicU64;

use mesh_io::offload::{Gso, Segments, VirtioHeader, complete_checksum};
use mesh_io::tun::MAX_PACKET;
use mesh_io::wait::{Interest, Poller, Waker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const DOOR: u16 = 21_434;
const A: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 0);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes' stacks and the wire between them.
struct Pair {
    a: Netstack,
    _b: Netstack,
    accepted: mpsc::Receiver<Accepted>,
    n_packets: Arc<AtomicU64>,
    waker: Arc<Waker>,
    wire: Option<JoinHandle<()>>,
}

impl Pair {
    /// Loses one of so many packets; none with 0.
    fn new(lose_one_in: u64) -> Self {
        let (door, accepted) = mpsc::channel(64);
        let config = |ipv4, ipv6, doors| StackConfig {
            ipv4,
            ipv6,
            mtu: 1280,
            doors,
        };
        let (a, ours) = Netstack::start(config(A, A6, Vec::new()), 2).unwrap();
        let (b, theirs) = Netstack::start(config(B, B6, vec![(DOOR, door)]), 2).unwrap();
        let (waker, n_packets) = (Arc::new(Waker::new().unwrap()), Arc::default());
        let (woken, counted) = (Arc::clone(&waker), Arc::clone(&n_packets));
        let wire = std::thread::spawn(move || carry(&ours, &theirs, lose_one_in, &woken, &counted));
        Self {
            a,
            _b: b,
            accepted,
            n_packets,
            waker,
            wire: Some(wire),
        }
    }

    async fn accept(&mut self) -> tokio::net::UnixStream {
        let accepted = soon(self.accepted.recv()).await.unwrap();
        assert!([IpAddr::V4(A), IpAddr::V6(A6)].contains(&accepted.from));
        tokio::net::UnixStream::from_std(accepted.stream).unwrap()
    }

    async fn connect(&mut self, to: IpAddr) -> (tokio::net::UnixStream, tokio::net::UnixStream) {
        let dialer = self.a.dialer();
        let to = SocketAddr::new(to, DOOR);
        let client = soon(dialer.connect(to, Care::PATIENT)).await.unwrap();
        (client, self.accept().await)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.waker.wake().unwrap();
        let wire = self.wire.take().unwrap();
        if !std::thread::panicking() {
            wire.join().unwrap();
        }
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

fn carry(a: &[TunQueue], b: &[TunQueue], lose_one_in: u64, waker: &Waker, counted: &AtomicU64) {
    let poller = Poller::new().unwrap();
    for (queue, token) in a.iter().chain(b).zip(0..) {
        poller
            .add(queue.as_fd(), token, Interest::Readable)
            .unwrap();
    }
    poller.add(waker.as_fd(), 63, Interest::Readable).unwrap();
    let (mut packet, mut segment) = (vec![0; MAX_PACKET], vec![0; MAX_PACKET]);
    let mut n = 0_u64;
    let mut pass = |to: &[TunQueue], bytes: &[u8]| {
        n += 1;
        counted.store(n, Ordering::Relaxed);
        assert!(bytes.len() <= 1280, "longer than the link takes");
        if !n.is_multiple_of(lose_one_in) {
            // Without room it is lost, as on any link.
            let _ = to[0].send(&VirtioHeader::default(), &[IoSlice::new(bytes)]);
        }
    };
    while !waker.is_woken() {
        poller.wait(None).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            for queue in from {
                while let Ok((header, len)) = queue.recv(&mut packet) {
                    if header.gso == Gso::None {
                        complete_checksum(&header, &mut packet[..len]).unwrap();
                        pass(to, &packet[..len]);
                        continue;
                    }
                    let mut segments = Segments::new(&header, &packet[..len]).unwrap();
                    while let Some(len) = segments.write_next(&mut segment).unwrap() {
                        pass(to, &segment[..len]);
                    }
                }
            }
        }
    }
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n)
        .map(|at| (at * 7 + at / 251).to_le_bytes()[0])
        .collect()
}

#[tokio::test]
async fn bytes_arrive_whole_both_ways_over_both_protocols() {
    let mut pair = Pair::new(0);
    for to in [IpAddr::V4(B), IpAddr::V6(B6)] {
        let (client, server) = pair.connect(to).await;
        let sent = bytes(3 << 20);
        let (mut client_reads, mut client_writes) = client.into_split();
        let (mut server_reads, mut server_writes) = server.into_split();
        let send = async |half: &mut tokio::net::unix::OwnedWriteHalf| {
            half.write_all(&sent).await.unwrap();
            half.shutdown().await.unwrap();
        };
        let (mut there, mut back) = (Vec::new(), Vec::new());
        soon(async {
            tokio::join!(
                send(&mut client_writes),
                send(&mut server_writes),
                async { server_reads.read_to_end(&mut there).await.unwrap() },
                async { client_reads.read_to_end(&mut back).await.unwrap() },
            )
        })
        .await;
        assert!(there == sent && back == sent, "{to}");
    }
}

#[tokio::test]
async fn a_link_that_loses_packets_only_slows_down() {
    let mut pair = Pair::new(97);
    let (mut client, mut server) = pair.connect(B.into()).await;
    let sent = bytes(300_000);
    let (received, ()) = soon(async {
        tokio::join!(
            async {
                let mut received = Vec::new();
                server.read_to_end(&mut received).await.unwrap();
                received
            },
            async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
            }
        )
    })
    .await;
    assert!(received == sent);
}

#[tokio::test]
async fn each_half_ends_by_itself() {
    let mut pair = Pair::new(0);
    // The one who asked first says no more, and hears the answer all the same.
    let (mut client, mut server) = pair.connect(B.into()).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    soon(server.read_to_string(&mut question)).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "answer");
    // The other way round.
    let (mut client, mut server) = pair.connect(B.into()).await;
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    let mut greeting = String::new();
    soon(client.read_to_string(&mut greeting)).await.unwrap();
    assert_eq!(greeting, "greeting");
    client.write_all(b"thanks").await.unwrap();
    drop(client);
    let mut thanks = String::new();
    soon(server.read_to_string(&mut thanks)).await.unwrap();
    assert_eq!(thanks, "thanks");
}

/// A program whose own socket leads through the stack, and the server that it reached; `early` was read from it before.
async fn spliced(pair: &mut Pair, early: &[u8]) -> (StdTcpStream, tokio::net::UnixStream) {
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let program = StdTcpStream::connect(listener.local_addr().unwrap()).unwrap();
    program.set_read_timeout(Some(PATIENCE)).unwrap();
    let (proxied, _) = listener.accept().unwrap();
    let to = SocketAddr::new(B.into(), DOOR);
    let dialed = soon(pair.a.dialer().dial(to, Care::PATIENT)).await.unwrap();
    dialed.splice(proxied, early.to_vec()).unwrap();
    (program, pair.accept().await)
}

#[tokio::test]
async fn a_programs_own_socket_is_served_as_it_is() {
    let mut pair = Pair::new(0);
    let (mut program, mut server) = spliced(&mut pair, b"early, ").await;
    program.write_all(b"late").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    soon(server.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "early, late");
    server.write_all(b"and back").await.unwrap();
    drop(server);
    let mut back = String::new();
    program.read_to_string(&mut back).unwrap();
    assert_eq!(back, "and back");
}

#[tokio::test]
async fn who_vanishes_is_told_by_a_reset() {
    let mut pair = Pair::new(0);
    let (mut program, server) = spliced(&mut pair, b"").await;
    // Its end is closed while the other still sends: what comes has nobody to go to.
    drop(server);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    let chunk = vec![0; 64 << 10];
    let broken = (0..10_000).find_map(|_| program.write_all(&chunk).err());
    let kind = broken.expect("the reset comes").kind();
    assert!(
        [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&kind),
        "{kind:?}"
    );
}

#[tokio::test]
async fn a_port_without_a_door_refuses_and_nobody_is_no_answer() {
    let pair = Pair::new(0);
    let dialer = pair.a.dialer();
    let refused = soon(dialer.dial(SocketAddr::new(B.into(), 81), Care::PATIENT)).await;
    assert_eq!(refused.unwrap_err(), DialError::Refused);
    let nobody = SocketAddr::from((Ipv4Addr::new(10, 77, 9, 9), DOOR));
    let silent = soon(dialer.dial(nobody, Care::PATIENT)).await;
    assert_eq!(silent.unwrap_err(), DialError::TimedOut);
}

#[tokio::test]
async fn connections_that_one_peer_opens_are_bounded_and_come_back() {
    let mut pair = Pair::new(0);
    let dialer = pair.a.dialer();
    let to = SocketAddr::new(B.into(), DOOR);
    let mut held = Vec::new();
    let n_max = 128;
    for _ in 0..n_max {
        let client = soon(dialer.connect(to, Care::PATIENT)).await.unwrap();
        held.push((client, pair.accept().await));
    }
    let more = soon(dialer.dial(to, Care::PATIENT)).await;
    assert_eq!(more.unwrap_err(), DialError::Refused);
    held.clear();
    let mut n_tries = 0;
    while soon(dialer.dial(to, Care::PATIENT)).await.is_err() {
        n_tries += 1;
        assert!(n_tries < 10_000, "places do not come back");
    }
}

#[tokio::test]
async fn a_flood_of_openings_takes_no_more_than_its_share() {
    let (door, mut accepted) = mpsc::channel(64);
    let config = StackConfig {
        ipv4: B,
        ipv6: B6,
        mtu: 1280,
        doors: vec![(DOOR, door)],
    };
    let (_stack, queues) = Netstack::start(config, 1).unwrap();
    let poller = Poller::new().unwrap();
    poller
        .add(queues[0].as_fd(), 0, Interest::Readable)
        .unwrap();
    let mut packet = vec![0; MAX_PACKET];
    let (mut n_opened, mut n_refused) = (0, 0);
    for peer in 0..8_u8 {
        for port in 1..=100_u16 {
            let syn = syn(Ipv4Addr::new(10, 77, 2, peer), port);
            queues[0]
                .send(&VirtioHeader::default(), &[IoSlice::new(&syn)])
                .unwrap();
            // Between the answers come those to earlier ones, said again.
            loop {
                let Ok((_, len)) = queues[0].recv(&mut packet) else {
                    poller.wait(Some(PATIENCE)).unwrap();
                    continue;
                };
                if len < 40 || packet[22..24] != port.to_be_bytes() || packet[19] != peer {
                    continue;
                }
                match packet[33] & 0x16 {
                    0x12 => n_opened += 1,
                    0x14 => n_refused += 1,
                    flags => panic!("{flags:#x}"),
                }
                break;
            }
        }
    }
    assert_eq!((n_opened, n_refused), (128, 800 - 128));
    assert!(accepted.try_recv().is_err(), "none of them was completed");
}

/// The first packet of a connection.
fn syn(from: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&B.octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&DOOR.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    let header = mesh_io::offload::leave_to_offload(&mut packet, 1240).unwrap();
    complete_checksum(&header, &mut packet).unwrap();
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[tokio::test]
async fn an_echo_request_is_answered() {
    let config = StackConfig {
        ipv4: B,
        ipv6: B6,
        mtu: 1280,
        doors: Vec::new(),
    };
    let (_stack, queues) = Netstack::start(config, 1).unwrap();
    let mut ping = syn(A, 1);
    ping[9] = 1;
    ping[20..].fill(0);
    ping[20] = 8;
    ping[22..24].copy_from_slice(&0xf7ff_u16.to_be_bytes());
    // One more for TCP's 6 than for ICMP's 1.
    let sum = u16::from_be_bytes([ping[10], ping[11]]) + 5;
    ping[10..12].copy_from_slice(&sum.to_be_bytes());
    queues[0]
        .send(&VirtioHeader::default(), &[IoSlice::new(&ping)])
        .unwrap();
    let poller = Poller::new().unwrap();
    poller
        .add(queues[0].as_fd(), 0, Interest::Readable)
        .unwrap();
    poller.wait(Some(PATIENCE)).unwrap();
    let mut packet = vec![0; MAX_PACKET];
    let (_, len) = queues[0].recv(&mut packet).unwrap();
    assert_eq!((len, packet[9], packet[20]), (40, 1, 0));
    assert_eq!(
        (&packet[12..16], &packet[16..20]),
        (&B.octets()[..], &A.octets()[..])
    );
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing_behind() {
    let mut pair = Pair::new(0);
    let dialer = pair.a.dialer();
    let to = SocketAddr::new(B.into(), DOOR);
    let dialed = soon(dialer.dial(to, Care::PATIENT)).await.unwrap();
    // Given up before the peer has handed it on, it would be forgotten there without a word, as it may.
    let mut server = pair.accept().await;
    drop(dialed);
    // The peer's side sees the end at once.
    let mut rest = Vec::new();
    soon(server.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    let n_packets = pair.n_packets.load(Ordering::Relaxed);
    assert!(n_packets > 0);
}
