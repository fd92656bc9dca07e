//! Userspace mode's TCP/IP stack: connections of the overlay without any interface, on a thread of its own.
//!
//! The stack stands where the kernel's does, at the other end of the data plane's queues, so that addresses, packet filter
//! and offload are the same in both modes. What a program reads and writes is a socket of this machine: the stack moves
//! bytes between it and the connection, and a half that ends here ends there.

mod budget;
mod device;
mod flow;
mod opening;
mod stack;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use mesh_io::tun::TunQueue;
use tokio::sync::{mpsc, oneshot};

use flow::Io;
use stack::Stack;

/// Commands that wait for the stack's thread.
const N_COMMANDS: usize = 1024;
/// What each direction of a queue to the data plane may hold, in bytes, where the kernel grants as much.
const QUEUE_LEN: usize = 2 << 20;

/// What the stack is.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// The own IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// The own IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// The overlay's MTU.
    pub mtu: u16,
    /// The ports at which peers' connections are taken, as the plane leads them there, and where they go.
    pub doors: Vec<(u16, mpsc::Sender<Accepted>)>,
}

/// A connection that a peer opened.
#[derive(Debug)]
pub struct Accepted {
    /// This machine's end, non-blocking.
    pub stream: UnixStream,
    /// The peer's overlay address.
    pub from: IpAddr,
}

/// How a connection is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// How often a silent peer is asked whether it is there.
    pub keepalive: Duration,
    /// After how long without any word from it the connection is cut.
    pub dead_after: Duration,
    /// After how long the connection is cut when the peer takes nothing of what waits for it.
    pub unread_after: Option<Duration>,
}

impl Care {
    /// For programs that know themselves how long they wait.
    pub const PATIENT: Self = Self {
        keepalive: Duration::from_secs(30),
        dead_after: Duration::from_secs(120),
        unread_after: None,
    };
}

/// Why a connection did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The other end said no.
    #[error("connection refused")]
    Refused,
    /// Nobody answered.
    #[error("no answer")]
    TimedOut,
    /// There are as many connections as the stack keeps, or it ended.
    #[error("too many connections")]
    Busy,
}

impl From<DialError> for io::Error {
    fn from(err: DialError) -> Self {
        let kind = match err {
            DialError::Refused => io::ErrorKind::ConnectionRefused,
            DialError::TimedOut => io::ErrorKind::TimedOut,
            DialError::Busy => io::ErrorKind::QuotaExceeded,
        };
        Self::new(kind, err)
    }
}

/// The running stack. Dropping it cuts all connections and ends the thread.
#[derive(Debug)]
pub struct Netstack {
    dialer: StackDialer,
    thread: Option<JoinHandle<()>>,
}

/// Opens connections into the overlay.
#[derive(Debug, Clone)]
pub struct StackDialer(Arc<Shared>);

/// What the stack's thread and all others have in common.
struct Shared {
    commands: mpsc::Sender<Command>,
    waker: mio::Waker,
    is_stopping: AtomicBool,
}

/// What others ask of the stack.
#[derive(Debug)]
enum Command {
    Dial {
        to: SocketAddr,
        care: Care,
        answer: oneshot::Sender<Result<Dialed, DialError>>,
    },
    /// Moves bytes between a connection and a socket of this machine from now on; `early` goes first.
    Splice { flow: u64, io: Io, early: Vec<u8> },
}

/// A connection that was opened and has no socket yet. Dropping it resets the connection.
#[derive(Debug)]
pub struct Dialed {
    flow: u64,
    is_abandoned: Arc<AtomicBool>,
    shared: Arc<Shared>,
    is_taken: bool,
}

impl Netstack {
    /// Starts the thread; gives the data plane's ends of as many queues as it has workers.
    ///
    /// # Errors
    /// When the process may have no more descriptors or threads.
    pub fn start(config: StackConfig, n_queues: usize) -> anyhow::Result<(Self, Vec<TunQueue>)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..n_queues {
            let [our, their] = TunQueue::pair(QUEUE_LEN).context("opening a packet queue")?;
            ours.push(our);
            theirs.push(their);
        }
        let poll = mio::Poll::new().context("opening the stack's poller")?;
        let waker =
            mio::Waker::new(poll.registry(), stack::WAKER).context("opening the stack's waker")?;
        let (commands, commands_rx) = mpsc::channel(N_COMMANDS);
        let shared = Arc::new(Shared {
            commands,
            waker,
            is_stopping: AtomicBool::new(false),
        });
        let dialer = StackDialer(Arc::clone(&shared));
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).context("the system's random source")?;
        let seed = u64::from_ne_bytes(seed);
        let stack = Stack::new(config, ours, poll, shared, commands_rx, seed)
            .context("watching the packet queues")?;
        let thread = std::thread::Builder::new()
            .name("mesh-stack".to_owned())
            .spawn(move || stack.run())
            .context("starting the stack's thread")?;
        let netstack = Self {
            dialer,
            thread: Some(thread),
        };
        Ok((netstack, theirs))
    }

    /// Opens connections through this stack, for as long as it lives.
    #[must_use]
    pub fn dialer(&self) -> StackDialer {
        self.dialer.clone()
    }
}

impl Drop for Netstack {
    fn drop(&mut self) {
        let shared = &self.dialer.0;
        shared.is_stopping.store(true, Ordering::Release);
        if let Err(err) = shared.waker.wake() {
            tracing::error!(%err, "the stack's thread cannot be woken; leaving it behind");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl StackDialer {
    /// Opens a connection. Dropping the future gives it up.
    ///
    /// # Errors
    /// [`DialError`] says why there is none.
    pub async fn dial(&self, to: SocketAddr, care: Care) -> Result<Dialed, DialError> {
        let (answer, reply) = oneshot::channel();
        self.0.ask(Command::Dial { to, care, answer })?;
        reply.await.map_err(|_| DialError::Busy)?
    }

    /// Opens a connection as a stream for a program in this process.
    ///
    /// # Errors
    /// As [`Self::dial`], and when the process has no descriptor left.
    pub async fn connect(&self, to: SocketAddr, care: Care) -> io::Result<tokio::net::UnixStream> {
        let dialed = self.dial(to, care).await?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        dialed.take(Io::Unix(mio::net::UnixStream::from_std(theirs)), Vec::new())?;
        tokio::net::UnixStream::from_std(ours)
    }
}

impl Dialed {
    /// Has the stack move bytes between the connection and a program's socket, `early` first, until both halves ended.
    ///
    /// # Errors
    /// When the socket cannot be used, or the stack is too busy or gone; both ends are closed then.
    pub fn splice(self, stream: std::net::TcpStream, early: Vec<u8>) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.take(Io::Tcp(mio::net::TcpStream::from_std(stream)), early)
    }

    fn take(mut self, io: Io, early: Vec<u8>) -> io::Result<()> {
        let flow = self.flow;
        self.shared.ask(Command::Splice { flow, io, early })?;
        self.is_taken = true;
        Ok(())
    }
}

impl Drop for Dialed {
    fn drop(&mut self) {
        if !self.is_taken {
            self.is_abandoned.store(true, Ordering::Release);
            // Without a wake the stack finds it at its next look.
            let _ = self.shared.waker.wake();
        }
    }
}

impl Shared {
    fn ask(&self, command: Command) -> Result<(), DialError> {
        self.commands
            .try_send(command)
            .map_err(|_| DialError::Busy)?;
        self.waker.wake().map_err(|_| DialError::Busy)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
