//! The overlay's network interface: a TUN with one queue for each worker.
//!
//! Needs CAP_NET_ADMIN and /dev/net/tun, nothing more. Addresses and routes are set by others.

mod linux;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::TunCapabilities;
use crate::offload::{MAX_PARTS, OffloadError, VIRTIO_HEADER_LEN, VirtioHeader};

/// The longest packet that a TUN gives: a super-packet of 65,535 bytes after an IPv6 header.
pub const MAX_PACKET: usize = 65_535 + 40;

/// How to open a TUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunConfig {
    /// The interface's name, at most 15 bytes; with `%d` in it the kernel puts a free number there.
    pub name: String,
    /// The largest packet that comes out of it after splitting.
    pub mtu: u16,
    /// How many queues; at least one.
    pub n_queues: usize,
    /// Whether to ask for offload at all.
    pub wants_offload: bool,
}

/// An open TUN; the interface disappears with its last queue.
#[derive(Debug)]
pub struct Tun {
    name: String,
    capabilities: TunCapabilities,
    queues: Vec<TunQueue>,
}

impl Tun {
    /// Creates the interface, brings it up and opens its queues, with all the offload that this kernel has.
    ///
    /// # Errors
    /// Those of opening /dev/net/tun (is the module there? is CAP_NET_ADMIN?) and of its ioctls.
    pub fn open(config: &TunConfig) -> io::Result<Self> {
        linux::open(config)
    }

    /// What the interface is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel granted.
    #[must_use]
    pub fn capabilities(&self) -> TunCapabilities {
        self.capabilities
    }

    /// The queues, to be given to the workers.
    #[must_use]
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }
}

/// One queue of a TUN, non-blocking. Reading and writing need no lock.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
    has_header: bool,
}

impl TunQueue {
    /// Reads one packet or super-packet into `packet`, which should hold [`MAX_PACKET`] bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` for one packet with an offload kind never asked for.
    pub fn recv(&self, packet: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
        if !self.has_header {
            let len = (&self.file).read(packet)?;
            return Ok((VirtioHeader::default(), len));
        }
        let mut header = [0; VIRTIO_HEADER_LEN];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(packet)];
        let len = (&self.file).read_vectored(&mut parts)?;
        let invalid = |err: OffloadError| io::Error::new(io::ErrorKind::InvalidData, err);
        let packet_len = len
            .checked_sub(VIRTIO_HEADER_LEN)
            .ok_or_else(|| invalid(OffloadError::Malformed))?;
        Ok((VirtioHeader::decode(&header).map_err(invalid)?, packet_len))
    }

    /// Writes one packet or super-packet, given in at most [`MAX_PARTS`] parts.
    ///
    /// # Errors
    /// Those of the driver: `InvalidInput` when it does not like the packet.
    pub fn send(&self, header: &VirtioHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if !self.has_header {
            return (&self.file).write_vectored(parts).map(drop);
        }
        let header = header.encode();
        let mut all = [IoSlice::new(&[]); MAX_PARTS + 1];
        let (first, rest) = all.split_at_mut(1);
        first.fill(IoSlice::new(&header));
        rest.get_mut(..parts.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(parts);
        let all = all.get(..=parts.len()).unwrap_or_default();
        // The driver takes a packet whole or not at all.
        (&self.file).write_vectored(all).map(drop)
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
