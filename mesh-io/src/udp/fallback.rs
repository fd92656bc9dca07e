//! One datagram a call, for systems without anything better.

use std::io;
use std::net::SocketAddr;

use socket2::Socket;

use super::{
    Datagrams, DatagramsMut, RECV_QUEUE_BYTES, SEND_QUEUE_BYTES, UdpConfig, bind, canonical,
    to_family,
};
use crate::UdpCapabilities;

/// A non-blocking UDP socket on all addresses of the machine.
#[derive(Debug)]
pub struct UdpSocket {
    socket: std::net::UdpSocket,
    has_v6: bool,
    port: u16,
}

/// A buffer for [`UdpSocket::recv_batch`] and what the last call put there.
#[derive(Debug)]
pub struct RecvBatch {
    bytes: Box<[u8]>,
    received: Option<(SocketAddr, usize)>,
}

impl RecvBatch {
    /// Allocates the buffer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; 65_536].into_boxed_slice(),
            received: None,
        }
    }

    /// What the last call received.
    pub fn iter(&self) -> impl Iterator<Item = Datagrams<'_>> {
        self.received.iter().filter_map(|&(from, len)| {
            Some(Datagrams {
                from,
                bytes: self.bytes.get(..len)?,
                stride: len,
            })
        })
    }

    /// The same, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = DatagramsMut<'_>> {
        let Self { bytes, received } = self;
        received
            .and_then(|(from, len)| {
                Some(DatagramsMut {
                    from,
                    bytes: bytes.get_mut(..len)?,
                    stride: len,
                })
            })
            .into_iter()
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl UdpSocket {
    /// Opens a socket.
    ///
    /// # Errors
    /// `AddrInUse` when somebody else has the port.
    pub fn bind(config: UdpConfig) -> io::Result<Self> {
        let (socket, has_v6) = bind(config)?;
        Self::over(socket, has_v6)
    }

    /// Takes a socket that is bound to one address; an IPv6 one that takes no IPv4.
    ///
    /// # Errors
    /// When it is not bound.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<Self> {
        let has_v6 = socket.local_addr()?.is_ipv6();
        socket.set_nonblocking(true)?;
        Self::over(Socket::from(socket), has_v6)
    }

    fn over(socket: Socket, has_v6: bool) -> io::Result<Self> {
        // The system's default queues do as well, only worse.
        let _ = socket.set_recv_buffer_size(RECV_QUEUE_BYTES);
        let _ = socket.set_send_buffer_size(SEND_QUEUE_BYTES);
        let socket = std::net::UdpSocket::from(socket);
        let port = socket.local_addr()?.port();
        Ok(Self {
            socket,
            has_v6,
            port,
        })
    }

    /// The port it is bound to.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// What this system does.
    #[must_use]
    pub fn capabilities(&self) -> UdpCapabilities {
        UdpCapabilities {
            has_v6: self.has_v6,
            ..UdpCapabilities::default()
        }
    }

    /// Does nothing: there is no GSO here.
    pub fn retry_gso(&self) {}

    /// Receives one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.received = None;
        let (len, from) = self.socket.recv_from(&mut batch.bytes)?;
        batch.received = Some((canonical(from), len));
        Ok(())
    }

    /// Sends `bytes` as datagrams of `stride` bytes and gives how many bytes went.
    ///
    /// # Errors
    /// When not even the first could be sent.
    pub fn send(&self, dst: SocketAddr, bytes: &[u8], stride: usize) -> io::Result<usize> {
        if stride == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let dst = to_family(dst, self.has_v6);
        let mut sent = 0;
        for datagram in bytes.chunks(stride) {
            match self.socket.send_to(datagram, dst) {
                Ok(_) => sent += datagram.len(),
                Err(_) if sent > 0 => break,
                Err(err) => return Err(err),
            }
        }
        Ok(sent)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for UdpSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
