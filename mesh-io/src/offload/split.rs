//! One super-packet into wire segments, each written straight into the caller's buffer with right checksums.

use super::checksum;
use super::header::{Gso, OffloadError, VirtioHeader};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
const TCP_FLAGS: usize = 13;
const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// Completes a single packet's partial checksum in place; does nothing when it is complete.
///
/// # Errors
/// [`OffloadError::Malformed`] when the checksum's place is not inside the packet.
pub fn complete_checksum(header: &VirtioHeader, packet: &mut [u8]) -> Result<(), OffloadError> {
    if !header.needs_checksum {
        return Ok(());
    }
    let start = usize::from(header.checksum_start);
    let covered = packet.get_mut(start..).ok_or(OffloadError::Malformed)?;
    // The field holds the pseudo-header's sum, so it is part of what is summed.
    let total = checksum::finish(checksum::sum(0, covered));
    put(covered, usize::from(header.checksum_offset), total)
}

/// The segments of one packet that was read from the TUN, one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    is_v4: bool,
    protocol: u8,
    transport: usize,
    header_len: usize,
    segment_size: usize,
    /// Payload bytes already written.
    done: usize,
    index: u16,
}

impl<'a> Segments<'a> {
    /// Checks the headers of a super-packet.
    ///
    /// # Errors
    /// [`OffloadError::Malformed`] when it is no super-packet or its headers contradict each other.
    pub fn new(header: &VirtioHeader, packet: &'a [u8]) -> Result<Self, OffloadError> {
        Self::check(header, packet).ok_or(OffloadError::Malformed)
    }

    fn check(header: &VirtioHeader, packet: &'a [u8]) -> Option<Self> {
        let transport = usize::from(header.checksum_start);
        let segment_size = usize::from(header.gso_size);
        let is_v4 = match packet.first()? >> 4 {
            4 => true,
            6 => false,
            _ => return None,
        };
        let protocol = match header.gso {
            Gso::None => return None,
            Gso::Tcp4 if is_v4 => TCP,
            Gso::Tcp6 if !is_v4 => TCP,
            Gso::Tcp4 | Gso::Tcp6 => return None,
            Gso::Udp => UDP,
        };
        let is_placed = if is_v4 {
            let header_len = usize::from(packet.first()? & 0xf) * 4;
            let is_whole = packet.get(6)? & 0x3f == 0 && *packet.get(7)? == 0;
            header_len >= 20 && header_len == transport && *packet.get(9)? == protocol && is_whole
        } else {
            // Extension headers may stand between; they are the same in each segment.
            transport >= 40
        };
        // header_len of the virtio header is only a hint, so the transport header itself says how long it is.
        let transport_len = match protocol {
            TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
            _ => 8,
        };
        let header_len = transport + transport_len;
        let is_sane = is_placed
            && segment_size > 0
            && transport_len >= if protocol == TCP { 20 } else { 8 }
            && header_len < packet.len()
            && packet.len() <= usize::from(u16::MAX) + 40;
        is_sane.then_some(Self {
            packet,
            is_v4,
            protocol,
            transport,
            header_len,
            segment_size,
            done: 0,
            index: 0,
        })
    }

    /// Cuts TCP smaller than the kernel asked for, so that no segment is longer than `max_len`; datagrams stay as they are,
    /// for their bounds mean something.
    pub fn limit(&mut self, max_len: usize) {
        let room = max_len.saturating_sub(self.header_len);
        if self.protocol == TCP && room > 0 {
            self.segment_size = self.segment_size.min(room);
        }
    }

    /// The length of the longest segment still to come.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.header_len + self.segment_size.min(self.remaining())
    }

    /// How many segments are still to come.
    #[must_use]
    pub fn n_remaining(&self) -> usize {
        self.remaining().div_ceil(self.segment_size)
    }

    fn remaining(&self) -> usize {
        self.packet.len() - self.header_len - self.done
    }

    /// Writes the next segment to the front of `out` and gives its length; `None` after the last.
    ///
    /// # Errors
    /// [`OffloadError::BufferTooSmall`] when `out` cannot hold [`Self::max_len`] bytes.
    pub fn write_next(&mut self, out: &mut [u8]) -> Result<Option<usize>, OffloadError> {
        let remaining = self.remaining();
        if remaining == 0 {
            return Ok(None);
        }
        let payload_len = remaining.min(self.segment_size);
        let len = self.header_len + payload_len;
        let out = out.get_mut(..len).ok_or(OffloadError::BufferTooSmall)?;
        let (head, body) = out.split_at_mut(self.header_len);
        let start = self.header_len + self.done;
        // Both ranges lie inside the packet: new() checked the header, remaining() the payload.
        head.copy_from_slice(self.packet.get(..self.header_len).unwrap_or_default());
        body.copy_from_slice(
            self.packet
                .get(start..start + payload_len)
                .unwrap_or_default(),
        );
        self.write_headers(out, remaining == payload_len)?;
        self.done += payload_len;
        self.index = self.index.wrapping_add(1);
        Ok(Some(len))
    }

    fn write_headers(&self, out: &mut [u8], is_last: bool) -> Result<(), OffloadError> {
        let len = out.len();
        let (ip, transport) = out.split_at_mut(self.transport);
        if self.is_v4 {
            put(ip, 2, be16(len)?)?;
            let id = u16::from_be_bytes(take(ip, 4)?).wrapping_add(self.index);
            put(ip, 4, id.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            put(ip, 10, checksum::fold(checksum::sum(0, ip)).map(|b| !b))?;
        } else {
            put(ip, 4, be16(len - 40)?)?;
        }
        let at = if self.protocol == TCP {
            let offset = u32::try_from(self.done).map_err(|_| OffloadError::Malformed)?;
            let seq = u32::from_be_bytes(take(transport, 4)?).wrapping_add(offset);
            put(transport, 4, seq.to_be_bytes())?;
            let [mut flags] = take(transport, TCP_FLAGS)?;
            if !is_last {
                flags &= !FIN_PSH;
            }
            if self.index > 0 {
                flags &= !CWR;
            }
            put(transport, TCP_FLAGS, [flags])?;
            TCP_CHECKSUM
        } else {
            put(transport, 4, be16(transport.len())?)?;
            UDP_CHECKSUM
        };
        put(transport, at, [0, 0])?;
        let pseudo = checksum::pseudo_header(ip, self.protocol, transport.len());
        put(
            transport,
            at,
            checksum::finish(checksum::sum(pseudo, transport)),
        )
    }
}

fn be16(len: usize) -> Result<[u8; 2], OffloadError> {
    u16::try_from(len)
        .map(u16::to_be_bytes)
        .map_err(|_| OffloadError::Malformed)
}

pub(super) fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], OffloadError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(OffloadError::Malformed)
}

pub(super) fn put<const N: usize>(
    bytes: &mut [u8],
    at: usize,
    value: [u8; N],
) -> Result<(), OffloadError> {
    *bytes
        .get_mut(at..)
        .and_then(<[u8]>::first_chunk_mut)
        .ok_or(OffloadError::Malformed)? = value;
    Ok(())
}
