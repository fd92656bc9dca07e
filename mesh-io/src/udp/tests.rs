//! Datagrams over the loopback: merged, single, both families, both implementations.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use super::{UdpConfig, fallback, linux};
use crate::wait::{Interest, Poller};

fn ready(fd: impl AsFd) {
    let poller = Poller::new().unwrap();
    poller.add(fd.as_fd(), 0, Interest::Readable).unwrap();
    let ready = poller.wait(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(ready.readable, 1, "nothing arrived");
}

/// Sends `bytes` by `stride` and gives the datagrams that arrived, with what the receiver's reads looked like.
fn exchange(loopback: IpAddr, bytes: &[u8], stride: usize) -> (Vec<Vec<u8>>, usize) {
    let sender = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    let receiver = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    let dst = SocketAddr::new(loopback, receiver.local_port());
    assert_eq!(sender.send(dst, bytes, stride).unwrap(), bytes.len());
    let mut batch = linux::RecvBatch::new();
    let (mut datagrams, mut n_reads, mut n_bytes) = (Vec::new(), 0, 0);
    while n_bytes < bytes.len() {
        ready(&receiver);
        receiver.recv_batch(&mut batch).unwrap();
        for received in batch.iter() {
            assert_eq!(
                received.from,
                SocketAddr::new(loopback, sender.local_port())
            );
            n_reads += 1;
            for datagram in received.iter() {
                n_bytes += datagram.len();
                datagrams.push(datagram.to_vec());
            }
        }
    }
    let empty = receiver.recv_batch(&mut batch).unwrap_err();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(batch.iter().count(), 0);
    (datagrams, n_reads)
}

#[test]
fn datagrams_arrive_whole_and_in_order() {
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    for loopback in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        for (len, stride) in [
            (1, 1400),
            (1400, 1400),
            (1401, 1400),
            (200_000, 1312),
            (900, 9),
        ] {
            let (datagrams, n_reads) = exchange(loopback, &bytes[..len], stride);
            let expected: Vec<Vec<u8>> = bytes[..len].chunks(stride).map(<[u8]>::to_vec).collect();
            assert_eq!(datagrams, expected, "{loopback} {len} by {stride}");
            let socket = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
            if socket.capabilities().has_gso && socket.capabilities().has_gro && len > 100_000 {
                assert!(n_reads < expected.len() / 8, "{n_reads} reads: not merged");
            }
        }
    }
}

#[test]
fn datagrams_longer_than_the_route_allows_are_sent_one_by_one() {
    // The loopback's MTU is 65,536: no segment fits beside its headers, so segmentation is refused.
    let bytes = vec![7; 65_507];
    let (datagrams, _) = exchange(IpAddr::V4(Ipv4Addr::LOCALHOST), &bytes, 65_507);
    assert_eq!(datagrams.len(), 1);
}

#[test]
fn long_datagrams_among_small_ones_do_not_pile_up_in_memory() {
    let sender = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    let receiver = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    let dst = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), receiver.local_port());
    let (small, long) = (vec![1; 100], vec![7; 60_000]);
    let mut batch = linux::RecvBatch::new();
    let mut n_most = 0;
    for round in 0..130 {
        for at in 0..64 {
            let bytes = if at == round % 64 { &long } else { &small };
            sender.send(dst, bytes, bytes.len()).unwrap();
        }
        let mut at = 0;
        while at < 64 {
            ready(&receiver);
            receiver.recv_batch(&mut batch).unwrap();
            n_most = n_most.max(batch.n_touched());
            for datagram in batch.iter().flat_map(|received| received.iter()) {
                let bytes = if at == round % 64 { &long } else { &small };
                assert!(datagram == bytes, "round {round}, datagram {at}");
                at += 1;
            }
        }
    }
    // Long ones came to each place, which would be near 4 MiB.
    assert!((640 << 10..1 << 20).contains(&n_most), "{n_most} bytes");
}

#[test]
fn shared_sockets_have_one_port() {
    let config = UdpConfig {
        port: 0,
        is_shared: true,
    };
    let first = linux::UdpSocket::bind(config).unwrap();
    let port = first.local_port();
    let second = linux::UdpSocket::bind(UdpConfig { port, ..config }).unwrap();
    assert_eq!(second.local_port(), port);
    let alone = UdpConfig {
        port,
        is_shared: false,
    };
    let refused = linux::UdpSocket::bind(alone).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn the_fallback_speaks_to_the_fast_one() {
    let slow = fallback::UdpSocket::bind(UdpConfig::default()).unwrap();
    let fast = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    slow.retry_gso();
    assert!(!slow.capabilities().has_gso);
    let to = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(slow.send(to(fast.local_port()), b"aabbc", 2).unwrap(), 5);
    let mut batch = linux::RecvBatch::new();
    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        ready(&fast);
        fast.recv_batch(&mut batch).unwrap();
        for datagrams in batch.iter() {
            for datagram in datagrams.iter() {
                seen.insert(datagram.to_vec(), datagrams.from);
            }
        }
    }
    assert!(seen.values().all(|from| *from == to(slow.local_port())));
    assert_eq!(fast.send(to(slow.local_port()), b"dde", 2).unwrap(), 3);
    let mut batch = fallback::RecvBatch::new();
    for expected in [&b"dd"[..], b"e"] {
        ready(&slow);
        slow.recv_batch(&mut batch).unwrap();
        let all: Vec<_> = batch.iter().map(|datagrams| datagrams.bytes).collect();
        assert_eq!(all, [expected]);
    }
}

#[test]
fn a_stride_of_zero_is_an_error() {
    let socket = linux::UdpSocket::bind(UdpConfig::default()).unwrap();
    let dst = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    assert!(socket.send(dst, b"x", 0).is_err());
}

/// A socket of one address receives, and what it received is changed and sent on without a copy.
macro_rules! passes_on {
    ($name:ident, $imp:ident) => {
        #[test]
        fn $name() {
            for loopback in ["127.0.0.1:0", "[::1]:0"] {
                let far = std::net::UdpSocket::bind(loopback).unwrap();
                far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let own = std::net::UdpSocket::bind(loopback).unwrap();
                let addr = own.local_addr().unwrap();
                let socket = $imp::UdpSocket::from_std(own).unwrap();
                assert_eq!(socket.local_port(), addr.port());
                far.send_to(b"abc", addr).unwrap();
                ready(&socket);
                let mut batch = $imp::RecvBatch::new();
                socket.recv_batch(&mut batch).unwrap();
                let mut n_received = 0;
                for datagrams in batch.iter_mut() {
                    assert_eq!(datagrams.from, far.local_addr().unwrap());
                    datagrams.bytes.make_ascii_uppercase();
                    let n_sent = socket.send(datagrams.from, datagrams.bytes, datagrams.stride);
                    assert_eq!(n_sent.unwrap(), 3);
                    n_received += 1;
                }
                assert_eq!(n_received, 1);
                let mut answer = [0; 8];
                let (len, from) = far.recv_from(&mut answer).unwrap();
                assert_eq!((&answer[..len], from), (&b"ABC"[..], addr));
            }
        }
    };
}

passes_on!(a_socket_of_one_address_passes_on, linux);
passes_on!(a_fallback_socket_of_one_address_passes_on, fallback);
