//! UDP and relays to TUN: datagrams of peers, opened, admitted, merged, and given to this machine many at a time.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use mesh_engine::{Admit, Inbound, Opened, PeerHandle, Plane};
use mesh_io::TunCapabilities;
use mesh_io::buf::Arena;
use mesh_io::offload::Merger;
use mesh_io::udp::{RecvBatch, UdpSocket};
use mesh_proto::id::RelayId;
use mesh_proto::key::NodeKey;
use mesh_proto::relay::{Alias, FRAME_MAX, Frame, frame_len, is_relay_udp};

use super::steer::{self, Side};
use super::worker::Link;
use crate::relay::{Chunk, Delivery};

/// So many opened bytes, then they go to the TUN: a full read of the socket.
const ARENA_LEN: usize = 256 << 10;
/// Packets that fit there, when they are small.
const N_PACKETS: usize = 1024;
/// So many are opened under one lock and then looked at while they still lie in the nearest cache.
const N_RUN: usize = 16;
/// Chunks of relays that are opened in one go; then the sockets have their turn.
const N_CHUNKS: usize = 4;
/// A socket that gives nothing but errors will not recover.
const MAX_ERRORS: u32 = 1000;

/// Where a datagram came from.
#[derive(Clone, Copy)]
enum Origin {
    Udp(SocketAddr),
    Spare(u16, SocketAddr),
    Relay(RelayId, NodeKey),
    RelayUdp(RelayId, Alias),
}

/// The way in.
pub(super) struct Inward {
    received: RecvBatch,
    opening: Opening,
    n_errors: u32,
}

/// Room for what is opened.
struct Opening {
    arena: Arena,
    merger: Merger,
    /// Opened packets of the peer at hand.
    opened: Vec<Range<usize>>,
}

impl Inward {
    pub(super) fn new(tun: TunCapabilities) -> Self {
        Self {
            received: RecvBatch::new(),
            opening: Opening {
                arena: Arena::new(ARENA_LEN),
                merger: Merger::new(tun, N_PACKETS),
                opened: Vec::with_capacity(N_RUN),
            },
            n_errors: 0,
        }
    }

    /// Reads the socket once; gives the queues that were written to, a bit each.
    pub(super) fn step(&mut self, link: &Link) -> io::Result<u64> {
        match link.socket.recv_batch(&mut self.received) {
            Ok(()) => {
                self.n_errors = 0;
                return Ok(self.on_read(link));
            }
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(err) => {
                // Tells of an earlier send, or of an interface that went away.
                link.inputs.counters.receive_errors.add(1);
                self.n_errors += 1;
                if self.n_errors == MAX_ERRORS {
                    return Err(err);
                }
            }
        }
        Ok(0)
    }

    fn on_read(&mut self, link: &Link) -> u64 {
        let counters = &link.inputs.counters;
        let datagrams = self.received.iter().flat_map(|datagrams| {
            counters.received(&datagrams);
            let from = datagrams.from;
            datagrams
                .iter()
                .filter_map(move |datagram| unwrapped(link, from, datagram))
        });
        self.opening.take(link, datagrams)
    }

    /// Reads a spare socket once. One that breaks is of no use to anybody, and is left to the engine to give up.
    pub(super) fn read_spare(&mut self, link: &Link, number: u16, socket: &UdpSocket) {
        if let Err(err) = socket.recv_batch(&mut self.received) {
            if err.kind() != io::ErrorKind::WouldBlock {
                link.inputs.counters.receive_errors.add(1);
            }
            return;
        }
        let counters = &link.inputs.counters;
        let datagrams = self.received.iter().flat_map(|datagrams| {
            counters.received(&datagrams);
            let from = Origin::Spare(number, datagrams.from);
            datagrams.iter().map(move |datagram| (from, datagram))
        });
        self.opening.take(link, datagrams);
    }

    /// Opens what relays delivered; gives the queues that were written to, a bit each.
    pub(super) fn take_delivery(&mut self, link: &Link, delivery: &mut Delivery) -> u64 {
        delivery.answer();
        let mut written = 0;
        for _ in 0..N_CHUNKS {
            let Some(chunk) = delivery.next() else {
                return written;
            };
            written |= self.opening.take(
                link,
                datagrams(&chunk).inspect(|_| {
                    link.inputs.counters.rx_relayed.add(1);
                }),
            );
        }
        delivery.look_again();
        written
    }
}

/// What came by UDP: a peer's datagram, or one that a relay wrapped; `None` when it is for nobody here.
fn unwrapped<'a>(link: &Link, from: SocketAddr, datagram: &'a [u8]) -> Option<(Origin, &'a [u8])> {
    if !is_relay_udp(datagram) {
        return Some((Origin::Udp(from), datagram));
    }
    let (relay, alias, datagram) = link.relays.take_udp(from, datagram)?;
    link.inputs.counters.rx_relayed.add(1);
    link.inputs.counters.rx_relayed_udp.add(1);
    Some((Origin::RelayUdp(relay, alias), datagram))
}

/// The datagrams in a relay's frames.
fn datagrams(chunk: &Chunk) -> impl Iterator<Item = (Origin, &[u8])> {
    let relay = chunk.relay;
    let mut rest = &chunk.frames[..];
    let frames = std::iter::from_fn(move || {
        let len = frame_len(rest, FRAME_MAX).ok()??;
        let (frame, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(frame)
    });
    let received = frames.filter_map(|frame| match Frame::parse(frame) {
        Ok(Frame::Received { from, datagrams }) => Some((from, datagrams)),
        Ok(_) | Err(_) => None,
    });
    received.flat_map(move |(from, datagrams)| {
        let from = Origin::Relay(relay, from);
        datagrams.iter().map(move |datagram| (from, datagram))
    })
}

impl Opening {
    /// Opens, admits and writes.
    fn take<'a>(
        &mut self,
        link: &Link,
        mut datagrams: impl Iterator<Item = (Origin, &'a [u8])>,
    ) -> u64 {
        let Self {
            arena,
            merger,
            opened,
        } = self;
        let counters = &link.inputs.counters;
        let mut batch = Batch {
            link,
            now: Instant::now(),
            arena,
            merger,
            opened,
            written: 0,
        };
        let mut next = datagrams.next();
        while let Some((from, datagram)) = next {
            next = match link.plane.inbound(batch.now, datagram) {
                Inbound::Data(peer) => {
                    if !batch.has_room(datagram) {
                        batch.write();
                    }
                    let after = batch.open_run(&peer, (from, datagram), &mut datagrams);
                    batch.admit(&peer);
                    after
                }
                Inbound::Control => {
                    match from {
                        Origin::Udp(from) => link.inputs.datagram(from, datagram),
                        Origin::Spare(socket, from) => link.inputs.spare(socket, from, datagram),
                        Origin::Relay(relay, from) => link.inputs.relayed(relay, from, datagram),
                        Origin::RelayUdp(relay, alias) => {
                            if let Some(from) = link.relays.peer_of(&relay, alias) {
                                link.inputs.relayed(relay, from, datagram);
                            }
                        }
                    }
                    datagrams.next()
                }
                Inbound::Drop(reason) => {
                    counters.drop_for(reason);
                    datagrams.next()
                }
            };
        }
        batch.write();
        batch.written
    }
}

/// What was opened and not yet written.
struct Batch<'a> {
    link: &'a Link,
    now: Instant,
    arena: &'a mut Arena,
    merger: &'a mut Merger,
    opened: &'a mut Vec<Range<usize>>,
    written: u64,
}

impl Batch<'_> {
    fn has_room(&self, datagram: &[u8]) -> bool {
        self.arena.remaining() >= datagram.len()
            && self.merger.len() + self.opened.len() < N_PACKETS
    }

    /// Opens this datagram and all of the same session that follow it and fit, under one lock; gives the first that was not.
    fn open_run<'a>(
        &mut self,
        peer: &PeerHandle,
        first: (Origin, &'a [u8]),
        datagrams: &mut impl Iterator<Item = (Origin, &'a [u8])>,
    ) -> Option<(Origin, &'a [u8])> {
        let (mut from, mut datagram) = first;
        let mut opener = peer.open();
        let after = loop {
            let out = self.arena.spare();
            let opened = match from {
                Origin::Udp(from) => opener.open(from, datagram, out),
                Origin::Spare(socket, from) => opener.open_spare(socket, from, datagram, out),
                Origin::Relay(relay, _) | Origin::RelayUdp(relay, _) => {
                    opener.open_relayed(relay, datagram, out)
                }
            };
            match opened {
                Opened::Packet(len) => self.opened.push(self.arena.commit(len)),
                Opened::Keepalive => {}
                Opened::Dropped(reason) => self.link.inputs.counters.drop_for(reason),
            }
            match datagrams.next() {
                Some((next_from, next))
                    if Plane::is_same_session(datagram, next)
                        && self.has_room(next)
                        && self.opened.len() < N_RUN =>
                {
                    (from, datagram) = (next_from, next);
                }
                after => break after,
            }
        };
        if let Some(event) = opener.finish() {
            self.link.inputs.plane(event);
        }
        after
    }

    fn admit(&mut self, peer: &PeerHandle) {
        let counters = &self.link.inputs.counters;
        let mut admitter = self.link.plane.admitter(self.now, peer);
        let (mut n_packets, mut n_bytes) = (0, 0);
        for range in self.opened.drain(..) {
            let Some(packet) = self.arena.filled_mut().get_mut(range.clone()) else {
                continue;
            };
            match admitter.admit(packet) {
                Admit::Deliver => {
                    n_packets += 1;
                    n_bytes += range.len();
                    self.merger.push(self.arena.filled(), range);
                }
                Admit::Consumed(event) => self.link.inputs.plane(event),
                Admit::Drop(reason) => counters.drop_for(reason),
            }
        }
        counters.rx_packets.add(n_packets);
        counters.rx_bytes.add(n_bytes);
    }

    /// Gives this machine what was admitted, each flow by a queue of its own as far as there are enough.
    fn write(&mut self) {
        let link = self.link;
        let written = &mut self.written;
        self.merger.flush(self.arena.filled_mut(), |header, parts| {
            let head = parts.first().map_or(&[][..], |part| part);
            let side = steer::side(head);
            let queues = match side {
                Side::Own => &link.queues,
                Side::Next => &link.next_queues,
            };
            let queue_idx = steer::flow_hash(head) % queues.len().max(1);
            let Some(queue) = queues.get(queue_idx) else {
                return;
            };
            if side == Side::Own {
                *written |= 1 << queue_idx;
            }
            if queue.send(header, parts).is_err() {
                link.inputs.counters.tun_errors.add(parts.len());
            }
        });
        self.arena.clear();
    }
}
