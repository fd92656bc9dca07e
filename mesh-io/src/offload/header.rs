//! The virtio network header that stands before each TUN packet, and the errors of this module.

/// The length of the header; the TUN is set to it (`TUNSETVNETHDRSZ`).
pub const VIRTIO_HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Why a packet cannot be split or completed; drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The headers contradict each other or the packet's length.
    #[error("malformed packet or offload header")]
    Malformed,
    /// The kernel uses a kind of offload that was not asked for.
    #[error("unknown kind of offload {0}")]
    UnknownKind(u8),
    /// The caller's buffer is too small for a segment.
    #[error("buffer too small for a segment")]
    BufferTooSmall,
}

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// A single packet.
    #[default]
    None,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams.
    Udp,
}

/// A decoded virtio network header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// The transport checksum is partial: the field holds the pseudo-header's sum.
    pub needs_checksum: bool,
    /// The transport checksum was verified.
    pub is_checksum_valid: bool,
    /// What the packet is made of.
    pub gso: Gso,
    /// The first TCP segment carries CWR.
    pub has_ecn: bool,
    /// The length of all headers. A hint: the kernel is known to fill it loosely.
    pub header_len: u16,
    /// The payload of each segment but the last.
    pub gso_size: u16,
    /// Where the transport header starts.
    pub checksum_start: u16,
    /// Where the checksum field is, from there.
    pub checksum_offset: u16,
}

impl VirtioHeader {
    /// The header of a TCP super-packet, as the kernel would make it for one packet that is to be cut.
    #[must_use]
    pub fn tcp(is_ipv4: bool, transport_at: u16, segment_size: u16) -> Self {
        Self {
            needs_checksum: true,
            gso: if is_ipv4 { Gso::Tcp4 } else { Gso::Tcp6 },
            gso_size: segment_size,
            checksum_start: transport_at,
            checksum_offset: 16,
            ..Self::default()
        }
    }

    /// Reads a header as the TUN gives it, in the machine's own byte order.
    ///
    /// # Errors
    /// [`OffloadError::UnknownKind`] for a kind of super-packet that this module cannot split.
    pub fn decode(bytes: &[u8; VIRTIO_HEADER_LEN]) -> Result<Self, OffloadError> {
        let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let gso = match kind & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP => Gso::Udp,
            other => return Err(OffloadError::UnknownKind(other)),
        };
        Ok(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            is_checksum_valid: flags & CHECKSUM_VALID != 0,
            gso,
            has_ecn: kind & GSO_ECN != 0,
            header_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            checksum_start: u16::from_ne_bytes([s0, s1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// Writes a header as the TUN takes it.
    #[must_use]
    pub fn encode(&self) -> [u8; VIRTIO_HEADER_LEN] {
        let mut flags = 0;
        if self.needs_checksum {
            flags |= NEEDS_CHECKSUM;
        }
        if self.is_checksum_valid {
            flags |= CHECKSUM_VALID;
        }
        let mut kind = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        if self.has_ecn {
            kind |= GSO_ECN;
        }
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}
