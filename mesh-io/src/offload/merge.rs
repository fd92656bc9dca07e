//! Packets of one flow into super-packets for the TUN (GRO): bookkeeping only, no byte of payload is copied.
//!
//! Packets stay where they were opened; a super-packet is the list of its parts, written with one gathered write.
//! Nothing is held across [`Merger::flush`].

use std::io::IoSlice;
use std::ops::Range;

use super::checksum;
use super::header::{Gso, VirtioHeader};
use super::split::{TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, put, take};
use crate::TunCapabilities;

/// The most packets in a super-packet, and so the most parts that [`Merger::flush`] passes on at once.
pub const MAX_PARTS: usize = 64;

/// How many flows are watched at a time; with more, those that were watched longest just merge less.
const MAX_OPEN: usize = 32;
const NONE: u32 = u32::MAX;
const PSH: u8 = 0x08;
/// Only these may be set in a TCP segment that is merged: ACK, PSH and ECE.
const MERGEABLE_FLAGS: u8 = 0x10 | 0x08 | 0x40;
const ACK: u8 = 0x10;

/// Merges the packets of a batch.
#[derive(Debug)]
pub struct Merger {
    capabilities: TunCapabilities,
    parts: Vec<Part>,
    items: Vec<Item>,
    /// Items that may grow, at most one for each flow.
    open: Vec<usize>,
}

#[derive(Debug)]
struct Part {
    range: Range<usize>,
    next: u32,
}

#[derive(Debug)]
struct Item {
    first: u32,
    last: u32,
    n_parts: usize,
    len: usize,
    shape: Option<Shape>,
    next_seq: u32,
    last_id: u16,
    has_push: bool,
    is_short: bool,
    is_verified: bool,
}

/// What the headers of a TCP or UDP packet without IP options say.
#[derive(Debug, Clone, Copy)]
struct Shape {
    is_v4: bool,
    protocol: u8,
    transport: usize,
    header_len: usize,
    payload_len: usize,
    is_mergeable: bool,
    has_push: bool,
    seq: u32,
    id: u16,
}

impl Merger {
    /// A merger for a TUN; `n_packets` is how many packets a batch has at most.
    #[must_use]
    pub fn new(capabilities: TunCapabilities, n_packets: usize) -> Self {
        Self {
            capabilities,
            parts: Vec::with_capacity(n_packets),
            items: Vec::with_capacity(n_packets),
            open: Vec::with_capacity(MAX_OPEN),
        }
    }

    /// Takes the packet that lies at `range` of `arena`.
    pub fn push(&mut self, arena: &[u8], range: Range<usize>) {
        let Some(packet) = arena.get(range.clone()) else {
            return;
        };
        let Ok(part_idx) = u32::try_from(self.parts.len()) else {
            return;
        };
        let shape = Shape::parse(packet).filter(|shape| self.takes(shape.protocol));
        self.parts.push(Part { range, next: NONE });
        let Some(shape) = shape else {
            self.items.push(Item::new(part_idx, packet.len(), None));
            return;
        };
        if let Some((open_idx, item_idx)) = self.find(arena, packet, &shape) {
            if self.append(arena, item_idx, part_idx, packet, &shape) {
                if self.items.get(item_idx).is_none_or(|item| !item.can_grow()) {
                    self.open.swap_remove(open_idx);
                }
                return;
            }
            self.open.swap_remove(open_idx);
        }
        let item = Item::new(part_idx, packet.len(), Some(shape));
        if shape.is_mergeable && item.can_grow() {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.items.len());
        }
        self.items.push(item);
    }

    /// Passes on everything, in order, as header and parts of one gathered write each; then the merger is empty.
    pub fn flush(&mut self, arena: &mut [u8], mut emit: impl FnMut(&VirtioHeader, &[IoSlice<'_>])) {
        for item in &self.items {
            let header = self.close(arena, item).unwrap_or_default();
            let mut slices = [IoSlice::new(&[]); MAX_PARTS];
            let mut n_slices = 0;
            let mut part_idx = item.first;
            while let Some(part) = self.parts.get(part_idx as usize)
                && let Some(slot) = slices.get_mut(n_slices)
            {
                let skip = match item.shape {
                    Some(shape) if n_slices > 0 => shape.header_len,
                    _ => 0,
                };
                let range = part.range.start + skip..part.range.end;
                *slot = IoSlice::new(arena.get(range).unwrap_or_default());
                n_slices += 1;
                part_idx = part.next;
            }
            emit(&header, slices.get(..n_slices).unwrap_or_default());
        }
        self.items.clear();
        self.parts.clear();
        self.open.clear();
    }

    /// How many packets wait for [`Self::flush`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn takes(&self, protocol: u8) -> bool {
        self.capabilities.has_header
            && match protocol {
                TCP => self.capabilities.has_tcp,
                _ => self.capabilities.has_udp,
            }
    }

    fn first_packet<'a>(&self, arena: &'a [u8], item: &Item) -> Option<&'a [u8]> {
        arena.get(self.parts.get(item.first as usize)?.range.clone())
    }

    /// The open item of the packet's flow.
    fn find(&self, arena: &[u8], packet: &[u8], shape: &Shape) -> Option<(usize, usize)> {
        self.open
            .iter()
            .enumerate()
            .find_map(|(open_idx, &item_idx)| {
                let item = self.items.get(item_idx)?;
                let first = self.first_packet(arena, item)?;
                let first_shape = item.shape?;
                let is_same = first_shape.is_v4 == shape.is_v4
                    && first_shape.protocol == shape.protocol
                    && shape.ports(packet) == first_shape.ports(first)
                    && shape.addrs(packet) == first_shape.addrs(first);
                is_same.then_some((open_idx, item_idx))
            })
    }

    fn append(
        &mut self,
        arena: &[u8],
        item_idx: usize,
        part_idx: u32,
        packet: &[u8],
        shape: &Shape,
    ) -> bool {
        let Some(item) = self.items.get(item_idx) else {
            return false;
        };
        let Some(first) = self.first_packet(arena, item) else {
            return false;
        };
        if !item.fits(first, packet, shape)
            || !shape.is_right(packet)
            || !(item.is_verified || item.shape.is_some_and(|shape| shape.is_right(first)))
        {
            return false;
        }
        let last = item.last as usize;
        if let Some(part) = self.parts.get_mut(last) {
            part.next = part_idx;
        }
        if let Some(item) = self.items.get_mut(item_idx) {
            item.last = part_idx;
            item.n_parts += 1;
            item.len += shape.payload_len;
            item.next_seq = shape.next_seq();
            item.last_id = shape.id;
            item.has_push = shape.has_push;
            item.is_verified = true;
            // A short segment can only be the last one.
            item.is_short = item
                .shape
                .is_some_and(|first| shape.payload_len < first.payload_len);
        }
        true
    }

    /// Rewrites the first packet's headers for the whole and gives the header to write before it.
    fn close(&self, arena: &mut [u8], item: &Item) -> Option<VirtioHeader> {
        let shape = item.shape.filter(|_| item.n_parts > 1)?;
        let range = self.parts.get(item.first as usize)?.range.clone();
        let packet = arena.get_mut(range)?;
        let (ip, transport) = packet.split_at_mut_checked(shape.transport)?;
        let transport_len = item.len - shape.transport;
        let len = |value: usize| u16::try_from(value).ok().map(u16::to_be_bytes);
        if shape.is_v4 {
            put(ip, 2, len(item.len)?).ok()?;
            put(ip, 10, [0, 0]).ok()?;
            put(ip, 10, checksum::fold(checksum::sum(0, ip)).map(|b| !b)).ok()?;
        } else {
            put(ip, 4, len(transport_len)?).ok()?;
        }
        let checksum_offset = if shape.protocol == TCP {
            let [flags] = take(transport, 13).ok()?;
            put(transport, 13, [flags | if item.has_push { PSH } else { 0 }]).ok()?;
            TCP_CHECKSUM
        } else {
            put(transport, 4, len(transport_len)?).ok()?;
            UDP_CHECKSUM
        };
        let pseudo = checksum::pseudo_header(ip, shape.protocol, transport_len);
        put(transport, checksum_offset, checksum::fold(pseudo)).ok()?;
        Some(VirtioHeader {
            needs_checksum: true,
            gso: match (shape.protocol, shape.is_v4) {
                (TCP, true) => Gso::Tcp4,
                (TCP, false) => Gso::Tcp6,
                _ => Gso::Udp,
            },
            header_len: u16::try_from(shape.header_len).ok()?,
            gso_size: u16::try_from(shape.payload_len).ok()?,
            checksum_start: u16::try_from(shape.transport).ok()?,
            checksum_offset: u16::try_from(checksum_offset).ok()?,
            ..VirtioHeader::default()
        })
    }
}

impl Item {
    fn new(part_idx: u32, len: usize, shape: Option<Shape>) -> Self {
        Self {
            first: part_idx,
            last: part_idx,
            n_parts: 1,
            len,
            shape,
            next_seq: shape.map_or(0, |shape| shape.next_seq()),
            last_id: shape.map_or(0, |shape| shape.id),
            has_push: shape.is_some_and(|shape| shape.has_push),
            is_short: false,
            is_verified: false,
        }
    }

    fn can_grow(&self) -> bool {
        !self.has_push && !self.is_short && self.n_parts < MAX_PARTS
    }

    /// Whether the packet, of the same flow, continues this item so that a split gives the same packets again.
    fn fits(&self, first: &[u8], packet: &[u8], shape: &Shape) -> bool {
        let Some(first_shape) = &self.shape else {
            return false;
        };
        let is_next = shape.is_mergeable
            && shape.header_len == first_shape.header_len
            && shape.payload_len <= first_shape.payload_len
            && self.len + shape.payload_len <= usize::from(u16::MAX);
        is_next
            && (shape.protocol == UDP || shape.seq == self.next_seq)
            && first_shape.has_same_ip(first, packet, shape.id, self.last_id)
            && first_shape.has_same_transport(first, packet)
    }
}

impl Shape {
    /// `None` for anything but whole TCP and UDP packets without IP options or extension headers.
    fn parse(packet: &[u8]) -> Option<Self> {
        let (is_v4, protocol, transport, id) = match packet.first()? {
            0x45 => {
                let is_whole = packet.get(6)? & 0x3f == 0 && *packet.get(7)? == 0;
                let len = u16::from_be_bytes(take(packet, 2).ok()?);
                if !is_whole || usize::from(len) != packet.len() {
                    return None;
                }
                let id = u16::from_be_bytes(take(packet, 4).ok()?);
                (true, *packet.get(9)?, 20, id)
            }
            byte if byte >> 4 == 6 => {
                let len = u16::from_be_bytes(take(packet, 4).ok()?);
                if usize::from(len) + 40 != packet.len() {
                    return None;
                }
                (false, *packet.get(6)?, 40, 0)
            }
            _ => return None,
        };
        let header = packet.get(transport..)?;
        let (transport_len, flags, seq) = match protocol {
            TCP => {
                let [offset, flags] = take(header, 12).ok()?;
                let seq = u32::from_be_bytes(take(header, 4).ok()?);
                // Reserved bits count as flags that must not be set.
                let is_plain = offset & 0xf == 0 && flags & ACK != 0;
                let unwanted = if is_plain {
                    flags & !MERGEABLE_FLAGS
                } else {
                    1
                };
                (usize::from(offset >> 4) * 4, (flags & PSH, unwanted), seq)
            }
            UDP => {
                let len = u16::from_be_bytes(take(header, 4).ok()?);
                let has_checksum = take::<2>(header, UDP_CHECKSUM).ok()? != [0, 0];
                let is_plain = has_checksum && usize::from(len) == header.len();
                (8, (0, u8::from(!is_plain)), 0)
            }
            _ => return None,
        };
        let min_len = if protocol == TCP { 20 } else { 8 };
        let payload_len = header.len().checked_sub(transport_len)?;
        let (push, unwanted) = flags;
        (transport_len >= min_len).then_some(Self {
            is_v4,
            protocol,
            transport,
            header_len: transport + transport_len,
            payload_len,
            is_mergeable: payload_len > 0 && unwanted == 0,
            has_push: push != 0,
            seq,
            id,
        })
    }

    fn next_seq(&self) -> u32 {
        // A payload is shorter than 64 KiB.
        let len = u32::try_from(self.payload_len).unwrap_or_default();
        self.seq.wrapping_add(len)
    }

    fn addrs<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        packet.get(if self.is_v4 { 12..20 } else { 8..40 })
    }

    fn ports<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        packet.get(self.transport..self.transport + 4)
    }

    fn has_same_ip(&self, first: &[u8], packet: &[u8], id: u16, last_id: u16) -> bool {
        if !self.is_v4 {
            // Version, traffic class and flow label; hop limit.
            return first.get(..4) == packet.get(..4) && first.get(7) == packet.get(7);
        }
        let is_dont_fragment = packet.get(6).is_some_and(|byte| byte & 0x40 != 0);
        // Without DF the id matters to reassembly, and a split counts it upward.
        first.get(..2) == packet.get(..2)
            && first.get(6..10) == packet.get(6..10)
            && (is_dont_fragment || id == last_id.wrapping_add(1))
    }

    fn has_same_transport(&self, first: &[u8], packet: &[u8]) -> bool {
        if self.protocol == UDP {
            return true;
        }
        let at = |packet: &[u8]| -> Option<([u8; 4], [u8; 4])> {
            let ack = take(packet, self.transport + 8).ok()?;
            // Offset, flags and window; PSH may differ, it ends a super-packet.
            let [offset, flags, w0, w1] = take(packet, self.transport + 12).ok()?;
            Some((ack, [offset, flags & !PSH, w0, w1]))
        };
        // The urgent pointer, which may be there without its flag, and options.
        let rest = self.transport + 18..self.header_len;
        at(first) == at(packet) && first.get(rest.clone()) == packet.get(rest)
    }

    /// Whether the checksums are right: merging makes new ones and must not bless a broken packet.
    fn is_right(&self, packet: &[u8]) -> bool {
        let Some((ip, transport)) = packet.split_at_checked(self.transport) else {
            return false;
        };
        let pseudo = checksum::pseudo_header(ip, self.protocol, transport.len());
        (!self.is_v4 || checksum::is_right(checksum::sum(0, ip)))
            && checksum::is_right(checksum::sum(pseudo, transport))
    }
}
