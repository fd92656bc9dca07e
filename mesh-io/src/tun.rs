//! The overlay's network interface: a TUN with one queue for each worker.
//!
//! Needs CAP_NET_ADMIN and /dev/net/tun, nothing more. Addresses and routes are set by others.

mod linux;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Socket, Type};

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
    /// Two queues that are connected with each other and with no interface: what is written to one is read from the other.
    /// So a TCP/IP stack inside this process takes the place of the kernel's, packet by packet, offload included. Each
    /// direction holds about `n_bytes`, as far as the kernel grants that; with no room left, writing is `WouldBlock`.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn pair(n_bytes: usize) -> io::Result<[Self; 2]> {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        let open = |socket: Socket| {
            socket.set_nonblocking(true)?;
            socket.set_send_buffer_size(n_bytes)?;
            Ok::<_, io::Error>(Self {
                file: File::from(OwnedFd::from(socket)),
                has_header: true,
            })
        };
        Ok([open(a)?, open(b)?])
    }

    /// Reads one packet or super-packet into `packet`, which should hold [`MAX_PACKET`] bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` for one packet with an offload kind never asked for; `UnexpectedEof`
    /// when the other end of a [`Self::pair`] is closed.
    pub fn recv(&self, packet: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
        if !self.has_header {
            let len = (&self.file).read(packet)?;
            return Ok((VirtioHeader::default(), len));
        }
        let mut header = [0; VIRTIO_HEADER_LEN];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(packet)];
        let len = (&self.file).read_vectored(&mut parts)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Gso;

    #[test]
    fn a_pair_carries_packets_whole_with_their_headers_and_fills_up() {
        let [a, b] = TunQueue::pair(256 << 10).unwrap();
        let mut room = vec![0; MAX_PACKET];
        let empty = a.recv(&mut room).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let header = VirtioHeader {
            needs_checksum: true,
            gso: Gso::Tcp4,
            gso_size: 1240,
            ..VirtioHeader::default()
        };
        let long = vec![7; 60_000];
        a.send(
            &header,
            &[IoSlice::new(&long[..9]), IoSlice::new(&long[9..])],
        )
        .unwrap();
        a.send(&VirtioHeader::default(), &[IoSlice::new(b"short")])
            .unwrap();
        assert_eq!(b.recv(&mut room).unwrap(), (header, long.len()));
        assert_eq!(room[..long.len()], long);
        assert_eq!(b.recv(&mut room).unwrap(), (VirtioHeader::default(), 5));
        let full = (0..10_000).find_map(|_| {
            let sent = b.send(&header, &[IoSlice::new(&long)]);
            sent.err().map(|err| err.kind())
        });
        assert_eq!(full, Some(io::ErrorKind::WouldBlock));
    }
}
