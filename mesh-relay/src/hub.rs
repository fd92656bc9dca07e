//! Who is connected to the relay and what waits for whom. Pure: it is told the time, and sockets are not its business.
//!
//! A node may be connected more than once, as after a change of network, or when its state was copied to another
//! machine. The newest connection receives; older ones are told so and wait for their turn, so that two machines with
//! one key do not throw each other out for ever.

mod udp;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::key::NodeKey;
use mesh_proto::relay::{Frame, Health};

use super::lane::{Bounds, Lane, Loses, Waiting};
use super::rate::Bucket;
pub(crate) use udp::Verdict;
use udp::{Binding, Endpoints};

/// A connection, numbered since the start.
pub(crate) type ClientId = u64;

/// Bulk that waits for one client. Small packets pass it, and a session forgets what comes 1,024 packets late: with
/// what waits in the sender that must not be reached.
const BULK: Bounds = Bounds {
    n_bytes: 512 << 10,
    n_datagrams: 448,
};
/// Handshakes, path discovery and small packets that wait for one client.
const URGENT: Bounds = Bounds {
    n_bytes: 128 << 10,
    n_datagrams: 1024,
};
/// How often a sender may be asked to wait a moment for a receiver that takes nothing meanwhile.
const PATIENCE: u32 = 8;
/// What waits for all clients together.
const N_BYTES_MAX: usize = 256 << 20;
/// Connections of one node.
const N_SAME_MAX: usize = 3;
/// How many nodes a connection is told to be gone at once, and how many of them a second.
const N_GONE_MAX: usize = 64;
/// How many senders a connection remembers, to tell them of its end.
const N_SENDERS_MAX: usize = 256;
/// Bytes of the relay's own words that wait for a client; one that takes none of them is told no more.
const CONTROL_LEN_MAX: usize = 1024;
/// Answers to pings that wait; more are not given.
const N_PONGS_MAX: usize = 4;

/// The relay's memory. `W` wakes the writer of a connection.
#[derive(Debug)]
pub(crate) struct Hub<W> {
    n_clients_max: usize,
    bytes_per_second: u64,
    next: ClientId,
    clients: HashMap<ClientId, Client<W>>,
    /// The connections of a node, the newest last.
    of: HashMap<NodeKey, Vec<ClientId>>,
    endpoints: Endpoints,
    n_bytes: usize,
}

#[derive(Debug)]
struct Client<W> {
    node: NodeKey,
    waker: W,
    urgent: Lane,
    bulk: Lane,
    control: Control,
    rate: Bucket,
    /// Who sent to this connection.
    senders: BTreeSet<ClientId>,
    /// How often senders may still wait for it; full again when it takes something.
    patience: u32,
    udp: Option<Binding>,
    end: Option<End>,
}

/// What the relay itself has to say to a client.
#[derive(Debug, Default)]
struct Control {
    frames: Vec<u8>,
    n_pongs: usize,
    gone: BTreeSet<NodeKey>,
    n_gone: usize,
    gone_since: Option<Instant>,
}

/// Why a connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its node is not of the mesh any more.
    Removed,
    /// Too many newer ones have the same key.
    Superseded,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// It waits for its receiver; so many datagrams were lost for it.
    Queued {
        /// Itself or others.
        n_lost: usize,
        /// Much waits, and the receiver takes it: a sender that pauses a moment loses less.
        is_filling: bool,
    },
    /// Its receiver is not here.
    NotHere,
}

/// What a writer shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Write this, then ask again.
    More,
    /// Nothing waits.
    Nothing,
    /// Write this and end.
    End(End),
}

impl<W: Clone> Hub<W> {
    /// An empty hub for so many connections; each may send so many bytes a second, 0 for any.
    pub(crate) fn new(n_clients_max: usize, bytes_per_second: u64) -> Self {
        Self {
            n_clients_max,
            bytes_per_second,
            next: 1,
            clients: HashMap::new(),
            of: HashMap::new(),
            endpoints: Endpoints::default(),
            n_bytes: 0,
        }
    }

    /// Whose connection it is.
    pub(crate) fn node_of(&self, id: ClientId) -> Option<NodeKey> {
        self.clients.get(&id).map(|client| client.node)
    }

    /// Bytes that wait for all.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Takes a connection in; `None` when there is no place. Tells whom to wake.
    pub(crate) fn enter(
        &mut self,
        node: NodeKey,
        waker: W,
        now: Instant,
        wake: &mut Vec<W>,
    ) -> Option<ClientId> {
        if self.clients.len() >= self.n_clients_max {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let same = self.of.entry(node).or_default();
        let older = same.last().copied();
        same.push(id);
        let superseded = (same.len() > N_SAME_MAX).then(|| same.remove(0));
        self.clients.insert(
            id,
            Client {
                node,
                waker,
                urgent: Lane::new(URGENT, Loses::Newest),
                bulk: Lane::new(BULK, Loses::Oldest),
                control: Control::default(),
                rate: Bucket::new(self.bytes_per_second, now),
                senders: BTreeSet::new(),
                patience: PATIENCE,
                udp: None,
                end: None,
            },
        );
        if let Some(client) = older.and_then(|older| self.clients.get_mut(&older)) {
            client.say(&Frame::Health(Health::Duplicate), wake);
        }
        if let Some(superseded) = superseded {
            self.end(superseded, End::Superseded, wake);
        }
        Some(id)
    }

    /// Forgets a connection. An older one of the same node receives again; without one, those who sent hear of it.
    pub(crate) fn leave(&mut self, id: ClientId, wake: &mut Vec<W>) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.n_bytes -= client.urgent.n_bytes() + client.bulk.n_bytes();
        if let Some(binding) = &client.udp {
            let is_last = self
                .of
                .get(&client.node)
                .is_some_and(|same| same.len() == 1);
            self.forget_udp(binding, !is_last);
        }
        let mut heir = None;
        if let Some(same) = self.of.get_mut(&client.node) {
            let was_newest = same.last() == Some(&id);
            same.retain(|other| *other != id);
            heir = same.last().copied();
            if same.is_empty() {
                self.of.remove(&client.node);
            } else if !was_newest {
                return;
            }
        }
        match heir.and_then(|heir| self.clients.get_mut(&heir)) {
            Some(heir) => heir.say(&Frame::Health(Health::Well), wake),
            None => {
                for sender in client.senders {
                    if let Some(sender) = self.clients.get_mut(&sender) {
                        sender.say_gone(client.node, None, wake);
                    }
                }
            }
        }
    }

    /// Puts a `Received` frame where its receiver takes it from.
    pub(crate) fn forward(
        &mut self,
        from: ClientId,
        to: &NodeKey,
        frame: Received,
        now: Instant,
        wake: &mut Vec<W>,
    ) -> Forwarded {
        let receiver = self.newest(to);
        let Some(client) = receiver.and_then(|id| self.clients.get_mut(&id)) else {
            if let Some(sender) = self.clients.get_mut(&from) {
                sender.say_gone(*to, Some(now), wake);
            }
            return Forwarded::NotHere;
        };
        let n_datagrams = frame.n_datagrams;
        if self.n_bytes + frame.bytes.len() > N_BYTES_MAX {
            return Forwarded::Queued {
                n_lost: n_datagrams,
                is_filling: false,
            };
        }
        if client.senders.len() < N_SENDERS_MAX {
            client.senders.insert(from);
        }
        let was_empty = client.is_idle();
        let lane = if frame.is_urgent {
            &mut client.urgent
        } else {
            &mut client.bulk
        };
        let before = lane.n_bytes();
        let n_lost = lane.push(
            from,
            Waiting {
                frame: frame.bytes,
                n_datagrams,
            },
        );
        self.n_bytes = self.n_bytes + lane.n_bytes() - before;
        if was_empty {
            wake.push(client.waker.clone());
        }
        let is_filling = client.bulk.n_bytes() > BULK.n_bytes / 2 && client.patience > 0;
        if is_filling {
            client.patience -= 1;
        }
        Forwarded::Queued { n_lost, is_filling }
    }

    /// What wakes the connection that receives for a node.
    pub(crate) fn waker(&self, node: &NodeKey) -> Option<&W> {
        Some(&self.clients.get(&self.newest(node)?)?.waker)
    }

    /// The connection that receives for a node.
    fn newest(&self, node: &NodeKey) -> Option<ClientId> {
        self.of.get(node)?.last().copied()
    }

    /// Gives what waits for a connection, about `n_bytes_max` bytes of it: the relay's own words first, then urgent
    /// frames, then bulk. Some bulk goes each time.
    pub(crate) fn take(&mut self, id: ClientId, n_bytes_max: usize, out: &mut Vec<Bytes>) -> Taken {
        let Some(client) = self.clients.get_mut(&id) else {
            return Taken::End(End::Superseded);
        };
        let mut left = n_bytes_max;
        if let Some(frames) = client.control.take() {
            out.push(frames);
        }
        if let Some(end) = client.end {
            return Taken::End(end);
        }
        client.patience = PATIENCE;
        let before = client.urgent.n_bytes() + client.bulk.n_bytes();
        let n_reserved = if client.bulk.is_empty() { 0 } else { left / 2 };
        for (lane, reserved) in [(&mut client.urgent, n_reserved), (&mut client.bulk, 0)] {
            while left > reserved {
                let Some(frame) = lane.pop() else {
                    break;
                };
                left = left.saturating_sub(frame.len());
                out.push(frame);
            }
        }
        let after = client.urgent.n_bytes() + client.bulk.n_bytes();
        self.n_bytes -= before - after;
        if out.is_empty() {
            Taken::Nothing
        } else {
            Taken::More
        }
    }

    /// A connection sent so many bytes; tells how long nothing more may be read from it.
    pub(crate) fn on_read(
        &mut self,
        id: ClientId,
        n_bytes: usize,
        now: Instant,
        wake: &mut Vec<W>,
    ) -> Option<Duration> {
        let client = self.clients.get_mut(&id)?;
        let pause = client.rate.take(n_bytes, now)?;
        let pause_ms = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
        if pause_ms > 0 {
            client.say(&Frame::RateLimited { pause_ms }, wake);
        }
        Some(pause)
    }

    /// A connection pinged.
    pub(crate) fn on_ping(&mut self, id: ClientId, bytes: [u8; 8], wake: &mut Vec<W>) {
        if let Some(client) = self.clients.get_mut(&id)
            && client.control.n_pongs < N_PONGS_MAX
        {
            client.control.n_pongs += 1;
            client.say(&Frame::Pong(bytes), wake);
        }
    }

    /// Ends the connections of nodes that may not be here any more.
    pub(crate) fn retain(&mut self, is_member: impl Fn(&NodeKey) -> bool, wake: &mut Vec<W>) {
        let mut gone: Vec<ClientId> = self
            .of
            .iter()
            .filter(|(node, _)| !is_member(node))
            .flat_map(|(_, same)| same.iter().copied())
            .collect();
        gone.sort_unstable();
        for id in gone {
            if let Some(client) = self.clients.get_mut(&id) {
                client.say(&Frame::Health(Health::Removed), wake);
            }
            self.end(id, End::Removed, wake);
        }
    }

    fn end(&mut self, id: ClientId, end: End, wake: &mut Vec<W>) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.end = Some(end);
            wake.push(client.waker.clone());
        }
    }
}

/// A frame that is ready for its receiver.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) n_datagrams: usize,
    pub(crate) is_urgent: bool,
}

impl<W: Clone> Client<W> {
    fn is_idle(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    fn say(&mut self, frame: &Frame<'_>, wake: &mut Vec<W>) {
        if self.control.frames.len() >= CONTROL_LEN_MAX {
            return;
        }
        frame.write(&mut self.control.frames);
        wake.push(self.waker.clone());
    }

    /// Tells that a node is not here; not each time, when asked without end.
    fn say_gone(&mut self, node: NodeKey, now: Option<Instant>, wake: &mut Vec<W>) {
        let control = &mut self.control;
        if let Some(now) = now {
            let since = *control.gone_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= Duration::from_secs(1) {
                (control.gone_since, control.n_gone) = (Some(now), 0);
            }
            if control.n_gone >= N_GONE_MAX {
                return;
            }
        }
        if control.gone.len() < N_GONE_MAX && control.gone.insert(node) {
            control.n_gone += 1;
            wake.push(self.waker.clone());
        }
    }
}

impl Control {
    fn take(&mut self) -> Option<Bytes> {
        for node in std::mem::take(&mut self.gone) {
            Frame::PeerGone { node }.write(&mut self.frames);
        }
        self.n_pongs = 0;
        (!self.frames.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.frames)))
    }
}

#[cfg(test)]
mod tests;
