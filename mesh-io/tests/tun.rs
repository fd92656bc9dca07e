//! A TUN in a network namespace of its own; needs root.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_io::buf::Arena;
use mesh_io::offload::{Gso, Merger, Segments, complete_checksum};
use mesh_io::tun::{MAX_PACKET, Tun, TunConfig, TunQueue};
use mesh_io::wait::{Interest, Poller, Waker};

const MTU: u16 = 1280;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// Moves this thread, and those that it starts, into a new namespace; false where the user may not do that.
fn enter_namespace() -> bool {
    // SAFETY: takes no pointers; moves only the calling thread.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let is_required = std::env::var_os("CI").is_some();
    assert!(rc == 0 || !is_required, "must run as root in CI");
    rc == 0
}

fn open(wants_offload: bool, n_queues: usize) -> Tun {
    let tun = Tun::open(&TunConfig {
        name: "proxima%d".to_owned(),
        mtu: MTU,
        n_queues,
        wants_offload,
    })
    .unwrap();
    let name = tun.name().to_owned();
    ip(&format!("addr add {OWN}/32 dev {name}"));
    ip(&format!("route add 10.99.0.0/24 dev {name}"));
    tun
}

#[derive(Default)]
struct Seen {
    super_in: AtomicUsize,
    super_out: AtomicUsize,
    packets: AtomicUsize,
}

/// Sends each packet back where it came from, so that this machine talks to itself as OTHER: splits what comes,
/// swaps the addresses (no checksum changes by that), merges what goes.
fn mirror(queue: &TunQueue, tun: mesh_io::TunCapabilities, waker: &Waker, seen: &Seen) {
    let mut read = vec![0; MAX_PACKET];
    let mut arena = Arena::new(1 << 20);
    let mut merger = Merger::new(tun, 1024);
    let poller = Poller::new().unwrap();
    poller.add(queue.as_fd(), 0, Interest::Readable).unwrap();
    poller.add(waker.as_fd(), 1, Interest::Readable).unwrap();
    loop {
        let (header, len) = match queue.recv(&mut read) {
            Ok(received) => received,
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {
                merger.flush(arena.filled_mut(), |header, parts| {
                    seen.super_out
                        .fetch_add(usize::from(header.gso != Gso::None), Ordering::Relaxed);
                    queue.send(header, parts).unwrap();
                });
                arena.clear();
                poller.wait(None).unwrap();
                if waker.is_woken() {
                    return;
                }
                continue;
            }
            Err(err) => panic!("{err}"),
        };
        let packet = &mut read[..len];
        if packet[0] >> 4 != 4 {
            continue;
        }
        let (src, dst) = packet[12..20].split_at_mut(4);
        src.swap_with_slice(dst);
        if header.gso == Gso::None {
            complete_checksum(&header, packet).unwrap();
            assert!(len <= usize::from(MTU));
            arena.spare()[..len].copy_from_slice(packet);
            let range = arena.commit(len);
            merger.push(arena.filled(), range);
            seen.packets.fetch_add(1, Ordering::Relaxed);
        } else {
            seen.super_in.fetch_add(1, Ordering::Relaxed);
            let mut segments = Segments::new(&header, packet).unwrap();
            while let Some(len) = segments.write_next(arena.spare()).unwrap() {
                assert!(len <= usize::from(MTU));
                let range = arena.commit(len);
                merger.push(arena.filled(), range);
                seen.packets.fetch_add(1, Ordering::Relaxed);
            }
        }
        if arena.remaining() < 2 * MAX_PACKET {
            merger.flush(arena.filled_mut(), |header, parts| {
                seen.super_out
                    .fetch_add(usize::from(header.gso != Gso::None), Ordering::Relaxed);
                queue.send(header, parts).unwrap();
            });
            arena.clear();
        }
    }
}

fn with_mirror(
    wants_offload: bool,
    n_queues: usize,
    body: impl FnOnce(&Seen, mesh_io::TunCapabilities),
) {
    let tun = open(wants_offload, n_queues);
    let capabilities = tun.capabilities();
    let queues = tun.into_queues();
    let waker = Waker::new().unwrap();
    let seen = Seen::default();
    /// Wakes the mirrors also when the body panics, so that the scope can end.
    struct Stop<'a>(&'a Waker);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.wake().unwrap();
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(&waker);
        for queue in &queues {
            scope.spawn(|| mirror(queue, capabilities, &waker, &seen));
        }
        body(&seen, capabilities);
    });
}

fn tcp_both_ways() {
    let listener = TcpListener::bind((OWN, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent: Vec<u8> = (0..8_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), OTHER, "came through the TUN");
            let mut bytes = vec![0; sent.len()];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == sent, "bytes changed on the way");
            stream.write_all(&bytes).unwrap();
        });
        let mut stream = TcpStream::connect((OTHER, port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(&sent).unwrap();
        let mut bytes = vec![0; sent.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes == sent, "bytes changed on the way back");
    });
}

fn udp_both_ways() {
    let socket = UdpSocket::bind((OWN, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let other = SocketAddr::from((OTHER, socket.local_addr().unwrap().port()));
    for len in [0, 1, 1000, 1252, 1253, 4000] {
        let bytes = vec![len as u8; len];
        socket.send_to(&bytes, other).unwrap();
        let mut buffer = [0; 5000];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..n]), (other, &bytes[..]));
    }
}

#[test]
fn tcp_and_udp_cross_the_tun_with_offload() {
    if !enter_namespace() {
        return;
    }
    with_mirror(true, 2, |seen, capabilities| {
        assert!(capabilities.has_header && capabilities.has_tcp);
        tcp_both_ways();
        udp_both_ways();
        let get = |n: &AtomicUsize| n.load(Ordering::Relaxed);
        assert!(get(&seen.super_in) > 0, "the kernel split by itself");
        assert!(get(&seen.super_out) > 0, "nothing was merged");
        assert!(get(&seen.super_in) * 4 < get(&seen.packets));
    });
}

#[test]
fn tcp_and_udp_cross_the_tun_without_offload() {
    if !enter_namespace() {
        return;
    }
    with_mirror(false, 1, |seen, capabilities| {
        assert_eq!(capabilities, mesh_io::TunCapabilities::default());
        tcp_both_ways();
        udp_both_ways();
        assert_eq!(seen.super_in.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn merged_udp_reaches_sockets_as_single_datagrams() {
    if !enter_namespace() {
        return;
    }
    with_mirror(true, 1, |seen, capabilities| {
        let sender = mesh_io::udp::UdpSocket::bind(mesh_io::udp::UdpConfig::default()).unwrap();
        let receiver = UdpSocket::bind((OWN, 4242)).unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let other = SocketAddr::from((OTHER, receiver.local_addr().unwrap().port()));
        let bytes: Vec<u8> = (0..32_000_u32).map(|i| (i % 253) as u8).collect();
        sender.send(other, &bytes, 1000).unwrap();
        let mut received: Vec<u8> = Vec::new();
        let mut buffer = [0; 2000];
        while received.len() < bytes.len() {
            let (n, _) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(n, 1000);
            received.extend(&buffer[..n]);
        }
        assert_eq!(received, bytes);
        if capabilities.has_udp {
            assert!(seen.super_in.load(Ordering::Relaxed) > 0);
            assert!(seen.super_out.load(Ordering::Relaxed) > 0);
        }
    });
}

#[test]
fn opens_a_name_that_is_given_and_refuses_a_long_one() {
    if !enter_namespace() {
        return;
    }
    let config = |name: &str| TunConfig {
        name: name.to_owned(),
        mtu: MTU,
        n_queues: 3,
        wants_offload: true,
    };
    let tun = Tun::open(&config("mesh7")).unwrap();
    assert_eq!(tun.name(), "mesh7");
    assert_eq!(tun.into_queues().len(), 3);
    assert!(Tun::open(&config("a-name-of-20-letters")).is_err());
    assert!(Tun::open(&config("")).is_err());
}
