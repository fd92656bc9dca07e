//! One connection: bytes between a TCP socket of the stack and a socket of this machine, each half by itself.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Interest, Registry, Token};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use tokio::sync::oneshot;

use super::{Care, DialError, Dialed};

/// What one connection may move each way before the others have their turn.
const TURN_LEN: usize = 512 << 10;

/// A socket of this machine.
#[derive(Debug)]
pub(super) enum Io {
    /// A program's, that came to a proxy.
    Tcp(mio::net::TcpStream),
    /// Of a part of this process.
    Unix(mio::net::UnixStream),
}

impl Io {
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => registry.register(stream, token, both),
            Self::Unix(stream) => registry.register(stream, token, both),
        }
    }

    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(room),
            Self::Unix(stream) => stream.read(room),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    /// Says that no more comes.
    fn end_write(&self) {
        // One that is gone already needs no word.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Has the program see a reset rather than an end.
    fn reset(&self) {
        if let Self::Tcp(stream) = self {
            // Closed without lingering, a socket sends a reset.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Who wanted the connection.
pub(super) enum Origin {
    /// This machine: until the answer is given, the connection is being opened.
    Dial(Option<oneshot::Sender<Result<Dialed, DialError>>>),
    /// A peer, at this door.
    Door(usize),
}

/// What became of a connection in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on.
    Going,
    /// It goes on, and has more to move at once.
    Busy,
    /// A peer's connection is complete: it wants a socket of this machine.
    Complete,
    /// It is over: what is left to say to the peer is said when the stack sends next.
    Over,
}

/// A connection.
pub(super) struct Flow {
    pub(super) handle: SocketHandle,
    pub(super) peer: IpAddr,
    pub(super) origin: Origin,
    pub(super) is_abandoned: Arc<AtomicBool>,
    /// The length of each of its buffers.
    pub(super) buffer_len: usize,
    /// When it must have come about.
    pub(super) deadline: Instant,
    pub(super) is_over: bool,
    care: Care,
    io: Option<Io>,
    early: Vec<u8>,
    can_read: bool,
    can_write: bool,
    /// Both directions of the program's socket are closed.
    is_gone: bool,
    /// The program ended its half.
    is_read_done: bool,
    /// The peer ended its half, and the program knows.
    is_write_done: bool,
    has_fin: bool,
    /// How much waited for the peer, and since when it is not less.
    unread: (usize, Instant),
}

impl Flow {
    pub(super) fn new(
        handle: SocketHandle,
        peer: IpAddr,
        origin: Origin,
        buffer_len: usize,
        care: Care,
        now: Instant,
        patience: Duration,
    ) -> Self {
        Self {
            handle,
            peer,
            origin,
            is_abandoned: Arc::default(),
            buffer_len,
            deadline: now + patience,
            is_over: false,
            care,
            io: None,
            early: Vec::new(),
            can_read: false,
            can_write: false,
            is_gone: false,
            is_read_done: false,
            is_write_done: false,
            has_fin: false,
            unread: (0, now),
        }
    }

    /// Whether the peer has not completed it yet.
    pub(super) fn is_opening(&self, socket: &Socket<'_>) -> bool {
        matches!(
            socket.state(),
            State::Listen | State::SynSent | State::SynReceived
        )
    }

    /// Gives it its socket of this machine.
    pub(super) fn attach(&mut self, io: Io, early: Vec<u8>) {
        (self.io, self.early) = (Some(io), early);
        (self.can_read, self.can_write) = (true, true);
    }

    pub(super) fn has_io(&self) -> bool {
        self.io.is_some()
    }

    /// Something happened at its socket.
    pub(super) fn on_event(&mut self, is_gone: bool) {
        (self.can_read, self.can_write) = (true, true);
        self.is_gone |= is_gone;
    }

    /// Moves what can be moved.
    pub(super) fn step(&mut self, socket: &mut Socket<'_>) -> Step {
        let state = socket.state();
        if self.is_opening(socket) {
            return Step::Going;
        }
        self.has_fin |= matches!(
            state,
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait
        );
        let Some(io) = &mut self.io else {
            return match (&self.origin, state) {
                (_, State::Closed) => Step::Over,
                (Origin::Door(_), _) => Step::Complete,
                (Origin::Dial(_), _) => Step::Going,
            };
        };
        let mut n_moved = 0;
        while self.can_write && socket.can_recv() && n_moved < TURN_LEN {
            let written = socket.recv(|bytes| match io.write(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(err) => (0, Err(err)),
            });
            match written {
                Ok(Ok(0)) | Err(_) => break,
                Ok(Ok(n)) => n_moved += n,
                Ok(Err(err)) if err.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
                Ok(Err(err)) if err.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Self::cut(io, socket),
            }
        }
        let mut n_taken = 0;
        while !self.early.is_empty() && socket.can_send() {
            match socket.send_slice(&self.early) {
                Ok(n) if n > 0 => drop(self.early.drain(..n)),
                Ok(_) | Err(_) => break,
            }
        }
        while self.early.is_empty()
            && self.can_read
            && !self.is_read_done
            && socket.can_send()
            && n_taken < TURN_LEN
        {
            let read = socket.send(|room| match io.read(room) {
                Ok(n) => (n, Ok(n)),
                Err(err) => (0, Err(err)),
            });
            match read {
                Ok(Ok(0)) => self.is_read_done = true,
                Ok(Ok(n)) => n_taken += n,
                Ok(Err(err)) if err.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Ok(Err(err)) if err.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Self::cut(io, socket),
                Err(_) => break,
            }
        }
        if self.is_read_done {
            // The end goes after what was read before it.
            socket.close();
        }
        self.settle(socket, n_moved >= TURN_LEN || n_taken >= TURN_LEN)
    }

    /// Passes ends on, and finds out whether it is over.
    fn settle(&mut self, socket: &mut Socket<'_>, is_busy: bool) -> Step {
        let Some(io) = &self.io else {
            return Step::Going;
        };
        let is_drained = !socket.can_recv();
        if is_drained && self.has_fin && !self.is_write_done {
            io.end_write();
            self.is_write_done = true;
        }
        match socket.state() {
            State::Closed | State::TimeWait if is_drained => {
                if !(self.has_fin && self.is_read_done) {
                    io.reset();
                }
                Step::Over
            }
            // Nobody is left to read what the peer may still send.
            State::FinWait2 if self.is_gone && !self.is_write_done => {
                socket.abort();
                Step::Over
            }
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                if is_busy {
                    Step::Busy
                } else {
                    Step::Going
                }
            }
        }
    }

    /// The program's socket broke: the peer learns of it by a reset.
    fn cut(io: &Io, socket: &mut Socket<'_>) -> Step {
        io.reset();
        socket.abort();
        Step::Over
    }

    /// Whether it has lasted too long without what it waits for.
    pub(super) fn is_overdue(&mut self, socket: &Socket<'_>, now: Instant) -> bool {
        if self.is_abandoned.load(Ordering::Acquire) {
            return true;
        }
        if let Origin::Dial(Some(answer)) = &self.origin
            && answer.is_closed()
        {
            return true;
        }
        if self.is_opening(socket) || !self.has_io() {
            return now >= self.deadline;
        }
        let waiting = socket.send_queue();
        if waiting == 0 || waiting < self.unread.0 {
            self.unread = (waiting, now);
            return false;
        }
        // More may come to what waits; only less shows that the peer takes it.
        self.unread.0 = waiting.max(self.unread.0);
        let patience = self.care.unread_after;
        patience.is_some_and(|patience| now.saturating_duration_since(self.unread.1) >= patience)
    }

    /// Cuts it: both ends see a reset.
    pub(super) fn abort(&mut self, socket: &mut Socket<'_>) {
        socket.abort();
        if let Some(io) = &self.io {
            io.reset();
        }
    }
}
