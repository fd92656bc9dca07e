//! The stack's thread: packets in, bytes to and from sockets of this machine, packets out; then it sleeps.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_io::tun::TunQueue;
use mio::{Events, Poll, Token};
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use tokio::sync::{mpsc, oneshot};

use super::budget::Budget;
use super::device::Port;
use super::flow::{Flow, Io, Origin, Step};
use super::opening::opening;
use super::{Accepted, Care, Command, DialError, Dialed, Shared, StackConfig};

pub(super) const WAKER: Token = Token(0);
const FIRST_QUEUE: usize = 1;
/// Tokens of flows begin here: no machine has as many queues.
const FIRST_FLOW: u64 = 1 << 16;

/// Connections that this machine opened.
const N_DIALED_MAX: usize = 512;
/// Connections that peers opened.
const N_ACCEPTED_MAX: usize = 512;
/// Those of one peer.
const N_ACCEPTED_PER_PEER_MAX: usize = 128;
/// Peers' connections that are not complete: a flood of them takes no more than this.
const N_OPENING_MAX: usize = 128;
/// Those of one peer.
const N_OPENING_PER_PEER_MAX: usize = 32;
/// How long opening a connection may take.
const OPENING: Duration = Duration::from_secs(10);
/// Packets that are taken in one go; then connections have their turn.
const N_PACKETS: usize = 64;
/// Rounds of sending in one go.
const N_ROUNDS: usize = 64;
/// How often connections are looked at that wait for something.
const TICK: Duration = Duration::from_millis(250);
const N_EVENTS: usize = 256;
/// The ports that connections of this machine come from, as RFC 6056 has it.
const FIRST_PORT: u16 = 49_152;

/// For connections of peers: a caller that goes away, or leaves an answer unread, is cut.
const DOOR_CARE: Care = Care {
    keepalive: Duration::from_secs(10),
    dead_after: Duration::from_secs(30),
    unread_after: Some(Duration::from_secs(30)),
};

/// All that the thread has.
pub(super) struct Stack {
    config: StackConfig,
    poll: Poll,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    next_port: u16,
    budget: Budget,
    start: Instant,
    next_tick: Instant,
    /// There is work that waits for no event.
    has_more: bool,
}

impl Stack {
    pub(super) fn new(
        config: StackConfig,
        queues: Vec<TunQueue>,
        poll: Poll,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        seed: u64,
    ) -> io::Result<Self> {
        let mut port = Port::new(queues, config.mtu);
        port.register(poll.registry(), FIRST_QUEUE)?;
        let mut hardware = Config::new(HardwareAddress::Ip);
        hardware.random_seed = seed;
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(hardware, &mut port, now);
        interface.update_ip_addrs(|addrs| {
            // There is room for two; everything else is behind the data plane.
            let _ = addrs.push(IpCidr::new(config.ipv4.into(), 32));
            let _ = addrs.push(IpCidr::new(config.ipv6.into(), 128));
        });
        let routes = interface.routes_mut();
        // Over a link without neighbours the gateway's address is never looked up. The table has room for both.
        let _ = routes.add_default_ipv4_route(config.ipv4);
        let _ = routes.add_default_ipv6_route(config.ipv6);
        let start = Instant::now();
        let [low, high, ..] = seed.to_ne_bytes();
        Ok(Self {
            config,
            poll,
            shared,
            commands,
            port,
            interface,
            sockets: SocketSet::new(Vec::new()),
            flows: BTreeMap::new(),
            next_flow: FIRST_FLOW,
            next_port: FIRST_PORT | u16::from_ne_bytes([low, high]),
            budget: Budget::new(),
            start,
            next_tick: start,
            has_more: false,
        })
    }

    /// Runs until it is told to end.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(N_EVENTS);
        while !self.shared.is_stopping.load(Ordering::Acquire) {
            let patience = self.patience(Instant::now());
            if let Err(err) = self.poll.poll(&mut events, patience)
                && err.kind() != io::ErrorKind::Interrupted
            {
                // The data plane sees its queues closed, and the daemon ends.
                tracing::error!(%err, "the stack cannot wait for its sockets");
                return;
            }
            for event in &events {
                self.on_event(event);
            }
            self.take_commands();
            self.port.flush();
            self.has_more = self.take_packets();
            self.move_bytes();
            self.send_packets();
            self.remove_finished();
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.cut_overdue(now);
            }
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// How long to sleep; `None` for as long as nothing happens.
    fn patience(&mut self, now: Instant) -> Option<Duration> {
        if self.has_more {
            return Some(Duration::ZERO);
        }
        if self.flows.is_empty() {
            return None;
        }
        let tick = self.next_tick.saturating_duration_since(now);
        // While a packet waits for room nothing can be sent, whatever is due.
        if self.port.is_blocked() {
            return Some(tick);
        }
        let stack_now = self.now();
        let due = self.interface.poll_delay(stack_now, &self.sockets);
        let due = due.map(|due| Duration::from_micros(due.total_micros()));
        Some(due.map_or(tick, |due| due.min(tick)))
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let Token(token) = event.token();
        if token == WAKER.0 {
            // Somebody may have given up a connection.
            self.next_tick = Instant::now();
        } else if (FIRST_QUEUE..FIRST_QUEUE + self.port.n_queues()).contains(&token) {
            self.port.on_event(token - FIRST_QUEUE);
        } else if let Some(flow) = u64::try_from(token)
            .ok()
            .and_then(|id| self.flows.get_mut(&id))
        {
            let is_gone = event.is_error() || (event.is_read_closed() && event.is_write_closed());
            flow.on_event(is_gone);
        }
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Dial { to, care, answer } => {
                    if let Err((err, answer)) = self.dial(to, care, answer) {
                        // The asker may have given up meanwhile.
                        let _ = answer.send(Err(err));
                    }
                }
                Command::Splice { flow, io, early } => self.attach(flow, io, early),
            }
        }
    }

    fn dial(
        &mut self,
        to: SocketAddr,
        care: Care,
        answer: oneshot::Sender<Result<Dialed, DialError>>,
    ) -> Result<(), (DialError, oneshot::Sender<Result<Dialed, DialError>>)> {
        let is_dialed = |flow: &&Flow| matches!(flow.origin, Origin::Dial(_));
        if self.flows.values().filter(is_dialed).count() >= N_DIALED_MAX {
            return Err((DialError::Busy, answer));
        }
        let own = match to {
            SocketAddr::V4(_) => IpAddr::V4(self.config.ipv4),
            SocketAddr::V6(_) => IpAddr::V6(self.config.ipv6),
        };
        let (mut socket, buffer_len) = self.socket(care);
        let from = IpEndpoint::new(own.into(), self.free_port());
        let remote = IpEndpoint::new(to.ip().into(), to.port());
        if socket
            .connect(self.interface.context(), remote, from)
            .is_err()
        {
            // Port 0, or an address that is none.
            self.budget.give_back(buffer_len);
            return Err((DialError::Refused, answer));
        }
        let handle = self.sockets.add(socket);
        let flow = Flow::new(
            handle,
            to.ip(),
            Origin::Dial(Some(answer)),
            buffer_len,
            care,
            Instant::now(),
            OPENING,
        );
        self.insert(flow);
        Ok(())
    }

    fn socket(&mut self, care: Care) -> (Socket<'static>, usize) {
        let len = self.budget.take();
        let room = || SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(room(), room());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        // Segments come merged: one answer each is few.
        socket.set_ack_delay(None);
        let lasting = |span: Duration| {
            smoltcp::time::Duration::from_millis(
                u64::try_from(span.as_millis()).unwrap_or(u64::MAX),
            )
        };
        socket.set_keep_alive(Some(lasting(care.keepalive)));
        socket.set_timeout(Some(lasting(care.dead_after)));
        (socket, len)
    }

    fn free_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let is_used = self.flows.values().any(|flow| {
                let socket = self.sockets.get::<Socket<'_>>(flow.handle);
                socket.local_endpoint().is_some_and(|end| end.port == port)
            });
            // There are more ports than connections.
            if !is_used {
                return port;
            }
        }
    }

    fn insert(&mut self, flow: Flow) {
        self.flows.insert(self.next_flow, flow);
        self.next_flow += 1;
    }

    fn attach(&mut self, id: u64, mut io: Io, early: Vec<u8>) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let token = Token(usize::try_from(id).unwrap_or(usize::MAX));
        if io.register(self.poll.registry(), token).is_ok() {
            flow.attach(io, early);
        } else {
            flow.is_abandoned.store(true, Ordering::Release);
        }
    }

    /// Takes what peers sent; whether there may be more.
    fn take_packets(&mut self) -> bool {
        let now = self.now();
        for _ in 0..N_PACKETS {
            if self.port.is_blocked() {
                return false;
            }
            let Some(packet) = self.port.load() else {
                return false;
            };
            let listener = opening(packet).and_then(|(from, port)| self.listen(from, port));
            let taken = self
                .interface
                .poll_ingress_single(now, &mut self.port, &mut self.sockets);
            if let Some(handle) = listener {
                self.keep_if_opened(handle);
            }
            match taken {
                PollIngressSingleResult::None => return false,
                PollIngressSingleResult::PacketProcessed
                | PollIngressSingleResult::SocketStateChanged => {}
            }
        }
        true
    }

    /// Makes a socket for a connection that a peer is about to open, where there may be one more; without, it is refused.
    fn listen(&mut self, from: SocketAddr, port: u16) -> Option<SocketHandle> {
        self.config.doors.iter().find(|(door, _)| *door == port)?;
        let (mut n_accepted, mut n_opening, mut n_of_peer, mut n_opening_of_peer) = (0, 0, 0, 0);
        for flow in self.flows.values() {
            if !matches!(flow.origin, Origin::Door(_)) {
                continue;
            }
            let socket = self.sockets.get::<Socket<'_>>(flow.handle);
            let remote = socket.remote_endpoint();
            // The same packet again: its connection knows what to do.
            if remote.is_some_and(|end| SocketAddr::from(end) == from)
                && socket.local_endpoint().is_some_and(|end| end.port == port)
                && socket.state() != State::TimeWait
            {
                return None;
            }
            let (is_of_peer, is_opening) = (flow.peer == from.ip(), flow.is_opening(socket));
            n_accepted += 1;
            n_of_peer += usize::from(is_of_peer);
            n_opening += usize::from(is_opening);
            n_opening_of_peer += usize::from(is_of_peer && is_opening);
        }
        let is_full = n_accepted >= N_ACCEPTED_MAX
            || n_of_peer >= N_ACCEPTED_PER_PEER_MAX
            || n_opening >= N_OPENING_MAX
            || n_opening_of_peer >= N_OPENING_PER_PEER_MAX;
        if is_full {
            return None;
        }
        let (mut socket, buffer_len) = self.socket(DOOR_CARE);
        if socket.listen(IpListenEndpoint::from(port)).is_err() {
            self.budget.give_back(buffer_len);
            return None;
        }
        let door = self
            .config
            .doors
            .iter()
            .position(|(door, _)| *door == port)?;
        let handle = self.sockets.add(socket);
        let flow = Flow::new(
            handle,
            from.ip(),
            Origin::Door(door),
            buffer_len,
            DOOR_CARE,
            Instant::now(),
            OPENING,
        );
        self.insert(flow);
        Some(handle)
    }

    /// Takes the socket away again when the packet opened nothing after all.
    fn keep_if_opened(&mut self, handle: SocketHandle) {
        if self.sockets.get::<Socket<'_>>(handle).state() == State::Listen {
            let id = self.flows.iter().find(|(_, flow)| flow.handle == handle);
            if let Some(id) = id.map(|(id, _)| *id) {
                self.remove(id);
            }
        }
    }

    /// Lets each connection move what it can.
    fn move_bytes(&mut self) {
        let mut complete = Vec::new();
        for (id, flow) in &mut self.flows {
            if flow.is_over {
                continue;
            }
            let socket = self.sockets.get_mut::<Socket<'_>>(flow.handle);
            answer_dial(*id, flow, socket, &self.shared);
            match flow.step(socket) {
                Step::Going => {}
                Step::Busy => self.has_more = true,
                Step::Complete => complete.push(*id),
                Step::Over => flow.is_over = true,
            }
        }
        for id in complete {
            self.hand_over(id);
        }
    }

    /// Gives a peer's connection to whoever answers at its door.
    fn hand_over(&mut self, id: u64) {
        let Some(flow) = self.flows.get(&id) else {
            return;
        };
        let Origin::Door(door) = flow.origin else {
            return;
        };
        let (from, is_abandoned) = (flow.peer, Arc::clone(&flow.is_abandoned));
        let Some((_, answers)) = self.config.doors.get(door) else {
            return;
        };
        let handed = pair().ok().and_then(|(ours, theirs)| {
            let accepted = Accepted {
                stream: theirs,
                from,
            };
            answers.try_send(accepted).ok()?;
            Some(ours)
        });
        match handed {
            Some(ours) => {
                let io = Io::Unix(mio::net::UnixStream::from_std(ours));
                self.attach(id, io, Vec::new());
                // What came with the last packet of the handshake is there already.
                self.has_more = true;
            }
            // Nobody takes connections any more, or not as fast as they come.
            None => is_abandoned.store(true, Ordering::Release),
        }
    }

    fn send_packets(&mut self) {
        let now = self.now();
        for _ in 0..N_ROUNDS {
            if self.port.is_blocked() {
                return;
            }
            match self
                .interface
                .poll_egress(now, &mut self.port, &mut self.sockets)
            {
                PollResult::None => return,
                PollResult::SocketStateChanged => {}
            }
        }
        self.has_more = true;
    }

    /// Removes connections that are over, once the peer was told.
    fn remove_finished(&mut self) {
        if self.port.is_blocked() {
            return;
        }
        let over = self.flows.iter().filter(|(_, flow)| flow.is_over);
        let over: Vec<u64> = over.map(|(id, _)| *id).collect();
        for id in over {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(flow) = self.flows.remove(&id) {
            self.sockets.remove(flow.handle);
            self.budget.give_back(flow.buffer_len);
        }
    }

    fn cut_overdue(&mut self, now: Instant) {
        for flow in self.flows.values_mut() {
            let socket = self.sockets.get_mut::<Socket<'_>>(flow.handle);
            if !flow.is_over && flow.is_overdue(socket, now) {
                if let Origin::Dial(answer) = &mut flow.origin
                    && let Some(answer) = answer.take()
                {
                    // The asker may have given up meanwhile.
                    let _ = answer.send(Err(DialError::TimedOut));
                }
                flow.abort(socket);
                flow.is_over = true;
                self.has_more = true;
            }
        }
    }
}

/// Tells whoever dials how it went, once that is known.
fn answer_dial(id: u64, flow: &mut Flow, socket: &Socket<'_>, shared: &Arc<Shared>) {
    if flow.is_opening(socket) {
        return;
    }
    let Origin::Dial(answer) = &mut flow.origin else {
        return;
    };
    let Some(answer) = answer.take() else {
        return;
    };
    let result = if socket.state() == State::Closed {
        Err(DialError::Refused)
    } else {
        // It must be taken into use as soon as it came about.
        flow.deadline = Instant::now() + OPENING;
        Ok(Dialed {
            flow: id,
            is_abandoned: Arc::clone(&flow.is_abandoned),
            shared: Arc::clone(shared),
            is_taken: false,
        })
    };
    // Dropped by one who gave up, the connection is abandoned.
    let _ = answer.send(result);
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}
