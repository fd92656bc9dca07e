//! Connections as the gateway sees them, whether the kernel or the stack in this process carries them.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::netstack::{Accepted, Care, StackDialer};

/// An open connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// The kernel's.
    Tcp(TcpStream),
    /// The stack's, by a socket between it and this.
    Stack(UnixStream),
}

impl Stream {
    /// Makes a connection notice in time that its other end died without a word. The stack sees to its own.
    pub(crate) fn tune(&self, keepalive: Duration, user_timeout: Duration) -> io::Result<()> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Stack(_) => return Ok(()),
        };
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        let probes = TcpKeepalive::new()
            .with_time(keepalive)
            .with_interval(keepalive)
            .with_retries(2);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(user_timeout))
    }

    /// Whether the other end has neither closed it nor sent anything that was not read. The reactor knows of most that come,
    /// so that the kernel is asked only when there is something.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = match self {
            Self::Tcp(stream) => {
                stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte))
            }
            Self::Stack(stream) => {
                stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte))
            }
        };
        peeked.is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A connection on its way to the thread that will have it.
#[derive(Debug)]
pub(crate) enum Parked {
    Tcp(std::net::TcpStream),
    Stack(std::os::unix::net::UnixStream),
}

impl Parked {
    /// Registers it with the runtime of this thread.
    pub(crate) fn resume(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Self::Stack(stream) => UnixStream::from_std(stream).map(Stream::Stack),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(task, room),
            Self::Stack(stream) => Pin::new(stream).poll_read(task, room),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(task, bytes),
            Self::Stack(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(task),
            Self::Stack(stream) => Pin::new(stream).poll_flush(task),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(task),
            Self::Stack(stream) => Pin::new(stream).poll_shutdown(task),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(task, parts),
            Self::Stack(stream) => Pin::new(stream).poll_write_vectored(task, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Listener {
    /// The overlay's interface: the kernel says who is there.
    Overlay(TcpListener),
    /// A loopback port: whoever can reach it counts as this node, which has that address.
    Loopback(TcpListener, IpAddr),
    /// The stack: it says which peer is there, as the tunnel proved it.
    Stack(mpsc::Receiver<Accepted>),
}

impl Listener {
    /// The next connection and the overlay address behind it. Loses none when it is dropped.
    pub(crate) async fn accept(&mut self) -> io::Result<(Parked, IpAddr)> {
        match self {
            Self::Overlay(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((Parked::Tcp(stream.into_std()?), from.ip()))
            }
            Self::Loopback(listener, own) => {
                let (stream, _) = listener.accept().await?;
                Ok((Parked::Tcp(stream.into_std()?), *own))
            }
            Self::Stack(accepted) => match accepted.recv().await {
                Some(Accepted { stream, from }) => Ok((Parked::Stack(stream), from)),
                // The stack ended: the daemon does too.
                None => std::future::pending().await,
            },
        }
    }
}

/// How other hosts' doors are reached.
#[derive(Debug, Clone)]
pub(crate) enum Outward {
    /// By the kernel's routes.
    Kernel,
    /// By the stack.
    Stack(StackDialer),
}

/// A host that died is noticed as soon as by the kernel: the request goes to another one then.
const HOST_CARE: Care = Care {
    keepalive: Duration::from_secs(1),
    dead_after: Duration::from_secs(5),
    unread_after: Some(Duration::from_secs(5)),
};

impl Outward {
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        match self {
            Self::Kernel => TcpStream::connect(to).await.map(Stream::Tcp),
            Self::Stack(dialer) => dialer.connect(to, HOST_CARE).await.map(Stream::Stack),
        }
    }
}
