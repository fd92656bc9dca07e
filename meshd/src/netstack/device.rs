//! The stack's side of the data plane's queues, as a network device of smoltcp: long segments both ways, checksums left to
//! offload.
//!
//! A packet that finds no room in its queue waits here, and the stack makes no further one until it went: the stack
//! must not believe sent what was not.

use std::io::{self, IoSlice};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _};

use mesh_io::offload::{VirtioHeader, is_intact, leave_to_offload};
use mesh_io::tun::{MAX_PACKET, TunQueue};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::dataplane::flow_hash;

/// The longest packet that the stack makes; IPv4 can say no more.
const LONGEST: usize = u16::MAX as usize;

/// All queues to the data plane.
pub(super) struct Port {
    queues: Vec<TunQueue>,
    /// Which may have packets.
    is_ready: Vec<bool>,
    /// The queue that is read next.
    turn: usize,
    mtu: usize,
    packet: Vec<u8>,
    /// The length of the packet that waits for the stack; 0 for none.
    packet_len: usize,
    outlet: Outlet,
}

/// The way out.
struct Outlet {
    packet: Vec<u8>,
    /// The packet that waits for room: its queue, header and length.
    waiting: Option<(usize, VirtioHeader, usize)>,
}

impl Port {
    pub(super) fn new(queues: Vec<TunQueue>, mtu: u16) -> Self {
        Self {
            is_ready: vec![true; queues.len()],
            queues,
            turn: 0,
            mtu: usize::from(mtu),
            packet: vec![0; MAX_PACKET],
            packet_len: 0,
            outlet: Outlet {
                packet: vec![0; MAX_PACKET],
                waiting: None,
            },
        }
    }

    /// Watches all queues, the first of them under token `first`.
    pub(super) fn register(&self, registry: &Registry, first: usize) -> io::Result<()> {
        for (queue_idx, queue) in self.queues.iter().enumerate() {
            let fd = queue.as_fd().as_raw_fd();
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut SourceFd(&fd), Token(first + queue_idx), both)?;
        }
        Ok(())
    }

    /// Something happened at a queue.
    pub(super) fn on_event(&mut self, queue_idx: usize) {
        if let Some(is_ready) = self.is_ready.get_mut(queue_idx) {
            *is_ready = true;
        }
    }

    pub(super) fn n_queues(&self) -> usize {
        self.queues.len()
    }

    /// Whether a packet waits for room.
    pub(super) fn is_blocked(&self) -> bool {
        self.outlet.waiting.is_some()
    }

    /// Tries to send what waits for room.
    pub(super) fn flush(&mut self) {
        if let Some((queue_idx, header, len)) = self.outlet.waiting.take() {
            self.outlet.send(&self.queues, queue_idx, header, len);
        }
    }

    /// Reads the next packet for the stack; `None` when there is none.
    pub(super) fn load(&mut self) -> Option<&[u8]> {
        let n_queues = self.queues.len();
        let mut n_empty = 0;
        while n_empty < n_queues {
            let queue_idx = self.turn;
            self.turn = (self.turn + 1) % n_queues;
            let (Some(queue), Some(is_ready)) =
                (self.queues.get(queue_idx), self.is_ready.get_mut(queue_idx))
            else {
                return None;
            };
            if !*is_ready {
                n_empty += 1;
                continue;
            }
            match queue.recv(&mut self.packet) {
                Ok((header, len)) => {
                    n_empty = 0;
                    let packet = self.packet.get(..len).unwrap_or_default();
                    if header.needs_checksum || is_intact(packet) {
                        self.packet_len = len;
                        return self.packet.get(..len);
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // Empty, or the data plane ended.
                Err(_) => *is_ready = false,
            }
        }
        None
    }
}

impl Outlet {
    fn send(&mut self, queues: &[TunQueue], queue_idx: usize, header: VirtioHeader, len: usize) {
        let Some(queue) = queues.get(queue_idx) else {
            return;
        };
        let packet = self.packet.get(..len).unwrap_or_default();
        if let Err(err) = queue.send(&header, &[IoSlice::new(packet)])
            && err.kind() == io::ErrorKind::WouldBlock
        {
            self.waiting = Some((queue_idx, header, len));
        }
    }
}

/// The packet that was loaded.
pub(super) struct Incoming<'a>(&'a [u8]);

/// The right to send one packet.
pub(super) struct Outgoing<'a> {
    queues: &'a [TunQueue],
    outlet: &'a mut Outlet,
    meta: PacketMeta,
}

impl Device for Port {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        if self.is_blocked() || self.packet_len == 0 {
            return None;
        }
        let len = std::mem::take(&mut self.packet_len);
        let outgoing = Outgoing {
            queues: &self.queues,
            outlet: &mut self.outlet,
            meta: PacketMeta::default(),
        };
        Some((Incoming(self.packet.get(..len)?), outgoing))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        (!self.is_blocked()).then_some(Outgoing {
            queues: &self.queues,
            outlet: &mut self.outlet,
            meta: PacketMeta::default(),
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        // smoltcp hands long segments on over IPv4 alone.
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(LONGEST);
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let Some(packet) = self.outlet.packet.get_mut(..len) else {
            // Longer than any packet that the stack was told it may make: nothing to send, but an answer to give.
            return f(&mut vec![0; len]);
        };
        let result = f(packet);
        let segment_size = self.meta.segmentation_offload_size;
        let segment_size = segment_size.map_or(u16::MAX, std::num::NonZero::get);
        if let Ok(header) = leave_to_offload(packet, segment_size) {
            let queue_idx = flow_hash(packet) % self.queues.len().max(1);
            self.outlet.send(self.queues, queue_idx, header, len);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
