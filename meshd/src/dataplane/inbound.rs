//! UDP to TUN: datagrams of peers, opened, admitted, merged, and given to this machine many at a time.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use mesh_engine::{Admit, Inbound, Opened, PeerHandle, Plane};
use mesh_io::TunCapabilities;
use mesh_io::buf::Arena;
use mesh_io::offload::Merger;
use mesh_io::tun::TunQueue;
use mesh_io::udp::{RecvBatch, UdpSocket};
use mesh_io::wait::{Interest, Waker, wait};

use super::Inputs;

/// What one read of the socket gives at most; opened packets are shorter than their datagrams.
const ARENA_LEN: usize = 16 * 65_536;
/// Packets in a full read.
const N_PACKETS: usize = 1024;
/// A socket that gives nothing but errors will not recover.
const MAX_ERRORS: u32 = 1000;

/// One worker's way in.
pub(super) struct Inward {
    pub(super) queue: Arc<TunQueue>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) plane: Arc<Plane>,
    pub(super) waker: Arc<Waker>,
    pub(super) inputs: Inputs,
    pub(super) tun: TunCapabilities,
}

/// The opened packets of one read.
struct Batch {
    arena: Arena,
    merger: Merger,
    /// Those of the peer at hand.
    opened: Vec<Range<usize>>,
}

/// A datagram, its sender, and where it belongs.
type Found<'a> = (SocketAddr, &'a [u8], Inbound);

impl Inward {
    pub(super) fn run(self) -> io::Result<()> {
        let mut received = RecvBatch::new();
        let mut batch = Batch {
            arena: Arena::new(ARENA_LEN),
            merger: Merger::new(self.tun, N_PACKETS),
            opened: Vec::with_capacity(N_PACKETS),
        };
        let mut n_errors = 0;
        while !self.waker.is_woken() {
            match self.socket.recv_batch(&mut received) {
                Ok(()) => {
                    n_errors = 0;
                    self.on_read(&received, &mut batch);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), Interest::Readable, &self.waker, None)?;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    // Tells of an earlier send, or of an interface that went away.
                    self.inputs.counters.receive_errors.add(1);
                    n_errors += 1;
                    if n_errors == MAX_ERRORS {
                        return Err(err);
                    }
                }
            }
        }
        Ok(())
    }

    fn on_read(&self, received: &RecvBatch, batch: &mut Batch) {
        let counters = &self.inputs.counters;
        let now = Instant::now();
        let mut datagrams = received.iter().flat_map(|datagrams| {
            let from = datagrams.from;
            datagrams.iter().map(move |datagram| (from, datagram))
        });
        let mut classify = || {
            let (from, datagram) = datagrams.next()?;
            counters.rx_datagrams.add(1);
            counters.rx_datagram_bytes.add(datagram.len());
            Some((from, datagram, self.plane.inbound(now, datagram)))
        };
        let mut next = classify();
        while let Some((from, datagram, inbound)) = next {
            next = match inbound {
                Inbound::Data(peer) => {
                    let after = self.open_run(&peer, (from, datagram), &mut classify, batch);
                    self.admit(now, &peer, batch);
                    after
                }
                Inbound::Control => {
                    self.inputs.datagram(from, datagram);
                    classify()
                }
                Inbound::Drop(reason) => {
                    counters.drop_for(reason);
                    classify()
                }
            };
        }
        let (arena, merger) = (&mut batch.arena, &mut batch.merger);
        merger.flush(arena.filled_mut(), |header, parts| {
            if self.queue.send(header, parts).is_err() {
                counters.tun_errors.add(parts.len());
            }
        });
        arena.clear();
    }

    /// Opens this datagram and all of the same peer that follow it, under one lock; gives the first that is not.
    fn open_run<'a>(
        &self,
        peer: &PeerHandle,
        first: (SocketAddr, &'a [u8]),
        classify: &mut impl FnMut() -> Option<Found<'a>>,
        batch: &mut Batch,
    ) -> Option<Found<'a>> {
        let (mut from, mut datagram) = first;
        let mut opener = peer.open();
        let after = loop {
            match opener.open(from, datagram, batch.arena.spare()) {
                Opened::Packet(len) => batch.opened.push(batch.arena.commit(len)),
                Opened::Keepalive => {}
                Opened::Dropped(reason) => self.inputs.counters.drop_for(reason),
            }
            match classify() {
                Some((next_from, next, Inbound::Data(owner))) if owner == *peer => {
                    (from, datagram) = (next_from, next);
                }
                after => break after,
            }
        };
        if let Some(event) = opener.finish() {
            self.inputs.plane(event);
        }
        after
    }

    fn admit(&self, now: Instant, peer: &PeerHandle, batch: &mut Batch) {
        let counters = &self.inputs.counters;
        for range in batch.opened.drain(..) {
            let Some(packet) = batch.arena.filled_mut().get_mut(range.clone()) else {
                continue;
            };
            match self.plane.admit(now, peer, packet) {
                Admit::Deliver => {
                    counters.rx_packets.add(1);
                    counters.rx_bytes.add(range.len());
                    batch.merger.push(batch.arena.filled(), range);
                }
                Admit::Consumed(event) => self.inputs.plane(event),
                Admit::Drop(reason) => counters.drop_for(reason),
            }
        }
    }
}
