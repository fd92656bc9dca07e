//! recvmmsg with UDP_GRO and sendmsg with UDP_SEGMENT; sendmmsg where the kernel or the route cannot segment.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_uint, c_void, iovec, mmsghdr, msghdr, sockaddr_storage};
use socket2::{SockAddr, SockAddrStorage, Socket};

use super::{
    Datagrams, DatagramsMut, RECV_QUEUE_BYTES, SEND_QUEUE_BYTES, UdpConfig, bind, canonical,
    to_family,
};
use crate::UdpCapabilities;
use crate::wait::check;

/// Buffers filled by one call at most, when each holds a single datagram.
const N_BUFFERS: usize = 64;
/// How much a call should bring: the more at once, the later the first of it is dealt with.
const BATCH_LEN: usize = 256 << 10;
/// The longest that a merged read can be.
const BUFFER_LEN: usize = 65_536;
/// So much of all buffers stays in memory. Where single datagrams are small and many, a few long ones, as strangers may send them,
/// would each leave another buffer in memory for good.
const TOUCHED_MAX: usize = 640 << 10;
/// Both limits of the kernel on one segmented send: datagrams, and bytes under the smaller (IPv4) headers.
const MAX_SEGMENTS: usize = 64;
const MAX_SEND: usize = 65_507;

/// Control messages of one datagram, aligned as the kernel's header needs.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 128]);

/// A non-blocking UDP socket on all addresses of the machine.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    has_v6: bool,
    has_gro: bool,
    has_gso: AtomicBool,
    port: u16,
}

/// Buffers for [`UdpSocket::recv_batch`] and what the last call put there.
#[derive(Debug)]
pub struct RecvBatch {
    bytes: Box<[u8]>,
    received: Vec<Received>,
    /// How many buffers the next call fills.
    n_wanted: usize,
    /// How much of each buffer was ever filled, and of all together.
    touched: [usize; N_BUFFERS],
    n_touched: usize,
}

#[derive(Debug, Clone, Copy)]
struct Received {
    from: SocketAddr,
    len: usize,
    stride: usize,
}

impl RecvBatch {
    /// Allocates the buffers: 4 MiB, of which only what datagrams touch is ever in memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; N_BUFFERS * BUFFER_LEN].into_boxed_slice(),
            received: Vec::with_capacity(N_BUFFERS),
            n_wanted: BATCH_LEN / BUFFER_LEN,
            touched: [0; N_BUFFERS],
            n_touched: 0,
        }
    }

    /// How much of the buffers is in memory.
    #[cfg(test)]
    pub(super) fn n_touched(&self) -> usize {
        self.n_touched
    }

    /// Notes how far the buffers were filled.
    fn note_touched(&mut self) {
        for (received, touched) in self.received.iter().zip(&mut self.touched) {
            if received.len > *touched {
                self.n_touched += received.len - *touched;
                *touched = received.len;
            }
        }
    }

    /// Gives the buffers' memory back when it became too much; what was received is lost.
    fn trim(&mut self) {
        if self.n_touched <= TOUCHED_MAX {
            return;
        }
        (self.touched, self.n_touched) = ([0; N_BUFFERS], 0);
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let ahead = self.bytes.as_ptr().align_offset(page);
        let Some(pages) = self.bytes.get_mut(ahead..) else {
            return;
        };
        let len = pages.len() / page * page;
        // SAFETY: whole pages of private anonymous memory that nobody else refers to. They read as zeros from then on, which are
        // bytes.
        unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_DONTNEED) };
    }

    /// Merged datagrams fill whole buffers and single ones do not: wants as many as bring about [`BATCH_LEN`].
    fn adapt(&mut self) {
        let total: usize = self.received.iter().map(|received| received.len).sum();
        let average = total / self.received.len().max(1);
        self.n_wanted = (BATCH_LEN / average.max(1)).clamp(BATCH_LEN / BUFFER_LEN, N_BUFFERS);
    }

    /// What the last call received.
    pub fn iter(&self) -> impl Iterator<Item = Datagrams<'_>> {
        self.received
            .iter()
            .zip(self.bytes.chunks_exact(BUFFER_LEN))
            .filter_map(|(received, buffer)| {
                Some(Datagrams {
                    from: received.from,
                    bytes: buffer.get(..received.len)?,
                    stride: received.stride,
                })
            })
    }

    /// The same, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = DatagramsMut<'_>> {
        self.received
            .iter()
            .zip(self.bytes.chunks_exact_mut(BUFFER_LEN))
            .filter_map(|(received, buffer)| {
                Some(DatagramsMut {
                    from: received.from,
                    bytes: buffer.get_mut(..received.len)?,
                    stride: received.stride,
                })
            })
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
        grow(
            &socket,
            RECV_QUEUE_BYTES,
            libc::SO_RCVBUFFORCE,
            Socket::set_recv_buffer_size,
        );
        grow(
            &socket,
            SEND_QUEUE_BYTES,
            libc::SO_SNDBUFFORCE,
            Socket::set_send_buffer_size,
        );
        forbid_fragments(&socket, has_v6)?;
        let has_gro = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // Zero means no segmentation by default; kernels without UDP_SEGMENT refuse to hear of it.
        let has_gso = set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let port = socket
            .local_addr()?
            .as_socket()
            .map_or(0, |addr| addr.port());
        Ok(Self {
            socket,
            has_v6,
            has_gro,
            has_gso: AtomicBool::new(has_gso),
            port,
        })
    }

    /// The port it is bound to.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// What this kernel does; GSO goes away when an interface turned out not to do it.
    #[must_use]
    pub fn capabilities(&self) -> UdpCapabilities {
        UdpCapabilities {
            has_gso: self.has_gso.load(Ordering::Relaxed),
            has_gro: self.has_gro,
            has_v6: self.has_v6,
        }
    }

    /// Asks the kernel for GSO again: the underlay changed, and another interface may do what the last did not.
    pub fn retry_gso(&self) {
        let has_gso = set_option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        self.has_gso.store(has_gso, Ordering::Relaxed);
    }

    /// Receives as much as there is and fits.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; others tell of earlier sends that came to nothing, and can be ignored.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.received.clear();
        batch.trim();
        // Written by the kernel before it is read here; not cleared, for that would cost as much as a small read.
        let mut names = [const { MaybeUninit::<sockaddr_storage>::uninit() }; N_BUFFERS];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; N_BUFFERS];
        let mut iovecs = [iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; N_BUFFERS];
        // SAFETY: for these plain C structs all-zero bytes are a value.
        let mut messages: [mmsghdr; N_BUFFERS] = unsafe { std::mem::zeroed() };
        let n_wanted = batch.n_wanted.min(N_BUFFERS);
        let buffers = batch.bytes.chunks_exact_mut(BUFFER_LEN).take(n_wanted);
        let slots = names.iter_mut().zip(&mut controls).zip(&mut iovecs);
        for ((message, ((name, control), iov)), buffer) in
            messages.iter_mut().zip(slots).zip(buffers)
        {
            iov.iov_base = buffer.as_mut_ptr().cast();
            iov.iov_len = buffer.len();
            message.msg_hdr.msg_name = name.as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = socklen(size_of::<sockaddr_storage>());
            message.msg_hdr.msg_iov = iov;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: each message points to a name, a control buffer, an iovec and through it to a buffer, none shared
        // with another message, all alive and unmoved until after the call.
        let n = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                n_wanted as c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        for (message, name) in messages.iter().zip(&names).take(n) {
            let len = usize::try_from(message.msg_len).unwrap_or_default();
            let is_whole = message.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
            // SAFETY: the kernel filled as much of the name as it says.
            let from = unsafe { socket_addr(name, message.msg_hdr.msg_namelen) };
            // SAFETY: the kernel filled this message; its control buffer is still alive.
            let stride = unsafe { gro_stride(&message.msg_hdr) }.unwrap_or(len);
            batch.received.push(match from {
                Some(from) if is_whole => Received { from, len, stride },
                // Keeps its place, so that the others stay with their buffers, and yields nothing.
                _ => Received {
                    from: SocketAddr::from(([0, 0, 0, 0], 0)),
                    len: 0,
                    stride: 1,
                },
            });
        }
        batch.adapt();
        batch.note_touched();
        Ok(())
    }

    /// Sends `bytes` as datagrams of `stride` bytes, the last one perhaps shorter, and gives how many bytes went.
    /// That is all of them, or as many whole datagrams as the kernel had room for.
    ///
    /// # Errors
    /// When not even the first could be sent: `WouldBlock` when there is no room, others for an address that
    /// cannot be reached.
    pub fn send(&self, dst: SocketAddr, bytes: &[u8], stride: usize) -> io::Result<usize> {
        if stride == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let dst = SockAddr::from(to_family(dst, self.has_v6));
        let per_send = (MAX_SEND / stride).clamp(1, MAX_SEGMENTS) * stride;
        let mut sent = 0;
        for chunk in bytes.chunks(per_send) {
            match self.send_chunk(&dst, chunk, stride) {
                Ok(n) if n == chunk.len() => sent += n,
                Ok(n) => return Ok(sent + n),
                Err(_) if sent > 0 => return Ok(sent),
                Err(err) => return Err(err),
            }
        }
        Ok(sent)
    }

    fn send_chunk(&self, dst: &SockAddr, chunk: &[u8], stride: usize) -> io::Result<usize> {
        if chunk.len() <= stride {
            return self.socket.send_to(chunk, dst);
        }
        if !self.has_gso.load(Ordering::Relaxed) {
            return self.send_each(dst, chunk, stride);
        }
        match self.send_segmented(dst, chunk, stride) {
            Ok(n) => Ok(n),
            Err(err) => match err.raw_os_error() {
                // The interface cannot checksum segments (EIO): it will not learn to.
                Some(libc::EIO) => {
                    self.has_gso.store(false, Ordering::Relaxed);
                    self.send_each(dst, chunk, stride)
                }
                // A datagram is longer than the interface's MTU: single ones may fit, and the last one is shorter.
                Some(libc::EINVAL | libc::EMSGSIZE) => self.send_each(dst, chunk, stride),
                _ => Err(err),
            },
        }
    }

    fn send_segmented(&self, dst: &SockAddr, chunk: &[u8], stride: usize) -> io::Result<usize> {
        let segment =
            u16::try_from(stride).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut control = Control([0; 128]);
        let mut iov = read_iovec(chunk);
        let mut message = message_to(dst, &mut iov);
        // SAFETY: computes a size.
        let space = unsafe { libc::CMSG_SPACE(size_of::<u16>() as c_uint) };
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        // SAFETY: the control buffer is aligned for a header and longer than `space`, so the first header and its
        // u16 lie inside it. All that the message points to lives until after sendmsg, which only reads it.
        let n = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            if header.is_null() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as c_uint) as _;
            libc::CMSG_DATA(header)
                .cast::<u16>()
                .write_unaligned(segment);
            libc::sendmsg(
                self.socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    fn send_each(&self, dst: &SockAddr, chunk: &[u8], stride: usize) -> io::Result<usize> {
        let mut iovecs = [read_iovec(&[]); MAX_SEGMENTS];
        // SAFETY: for this plain C struct all-zero bytes are a value.
        let mut messages: [mmsghdr; MAX_SEGMENTS] = unsafe { std::mem::zeroed() };
        let mut n_messages: c_uint = 0;
        for ((message, iov), datagram) in messages
            .iter_mut()
            .zip(&mut iovecs)
            .zip(chunk.chunks(stride))
        {
            *iov = read_iovec(datagram);
            message.msg_hdr = message_to(dst, iov);
            n_messages += 1;
        }
        // SAFETY: the first `n_messages` messages point to `dst` and to an iovec each, over a part of `chunk`; all
        // live until after the call, which only reads them.
        let n = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                n_messages,
                libc::MSG_DONTWAIT as _,
            )
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok((n * stride).min(chunk.len()))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message of one buffer to one address. The pointers in it are to be used only while both live.
fn message_to(dst: &SockAddr, iov: &mut iovec) -> msghdr {
    // SAFETY: for this plain C struct all-zero bytes are a value.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = dst.as_ptr().cast::<c_void>().cast_mut();
    message.msg_namelen = dst.len();
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message
}

/// The kernel only reads what it is given to send, so the pointer may lose its `const`.
fn read_iovec(bytes: &[u8]) -> iovec {
    iovec {
        iov_base: bytes.as_ptr().cast::<c_void>().cast_mut(),
        iov_len: bytes.len(),
    }
}

/// The length of each datagram in a merged read.
///
/// # Safety
/// The kernel filled `message` in, and the control buffer it points to is alive.
unsafe fn gro_stride(message: &msghdr) -> Option<usize> {
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR stay inside the control buffer, whose length the kernel set; the data of
    // a UDP_GRO message is an int.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_UDP && found.cmsg_type == libc::UDP_GRO {
                let stride = libc::CMSG_DATA(header).cast::<c_int>().read_unaligned();
                return usize::try_from(stride).ok().filter(|stride| *stride > 0);
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// # Safety
/// The kernel wrote the first `len` bytes of `name`.
unsafe fn socket_addr(
    name: &MaybeUninit<sockaddr_storage>,
    len: libc::socklen_t,
) -> Option<SocketAddr> {
    let mut storage = SockAddrStorage::zeroed();
    let n_bytes = usize::try_from(len)
        .ok()?
        .min(size_of::<sockaddr_storage>());
    // SAFETY: a SockAddrStorage is a sockaddr_storage by its documentation; both are at least `n_bytes` long, and so many
    // of the name's were written.
    let addr = unsafe {
        std::ptr::copy_nonoverlapping(
            name.as_ptr().cast::<u8>(),
            (&raw mut *storage.view_as::<sockaddr_storage>()).cast(),
            n_bytes,
        );
        SockAddr::new(storage, len)
    };
    addr.as_socket().map(canonical)
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or_default()
}

fn grow(
    socket: &Socket,
    wanted: usize,
    force: c_int,
    set: impl Fn(&Socket, usize) -> io::Result<()>,
) {
    let bytes = c_int::try_from(wanted).unwrap_or(c_int::MAX);
    if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
        // Without CAP_NET_ADMIN the system's limit holds, and the kernel takes what is allowed of the wish.
        let _ = set(socket, wanted);
    }
}

/// Sets don't-fragment and leaves path MTUs to who sends: what the kernel believes of them comes from ICMP, which anybody
/// can forge, and a fragmented probe would prove nothing (RFC 8899, section 4.7).
fn forbid_fragments(socket: &Socket, has_v6: bool) -> io::Result<()> {
    // An IPv6 socket sends by IPv4 too, and kernels that let it choose for that want the option of each.
    let for_v4 = set_option(
        socket,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    );
    if !has_v6 {
        return for_v4;
    }
    set_option(
        socket,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::IPV6_PMTUDISC_PROBE,
    )
}

fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            socklen(size_of::<c_int>()),
        )
    };
    check(rc)
}
