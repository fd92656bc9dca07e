//! One worker: some TUN queues and a UDP socket, both ways on one thread, so that what a packet causes is dealt with
//! before anyone is woken for it.
//!
//! The kernel spreads this machine's flows over the TUN's queues and keeps a flow on the queue that its answers are written
//! to. With several queues a worker, each served in turn, a bulk stream does not stand in the way of the others.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use mesh_engine::Plane;
use mesh_io::TunCapabilities;
use mesh_io::tun::TunQueue;
use mesh_io::udp::UdpSocket;
use mesh_io::wait::{Interest, Poller, Waker};

use super::Inputs;
use super::inbound::Inward;
use super::outbound::{Flushed, Outward};
use super::spare::Spares;
use crate::relay::{Delivery, RelaySender};

/// TUN queues of each worker. More make it less likely that a chat shares one with a bulk stream.
pub(super) const N_QUEUES: usize = 4;

const SOCKET: u32 = N_QUEUES as u32;
const WAKER: u32 = SOCKET + 1;
const BELL: u32 = WAKER + 1;

/// What both directions use.
pub(super) struct Link {
    pub(super) queues: Vec<Arc<TunQueue>>,
    /// Those of the next worker: for writing alone.
    pub(super) next_queues: Vec<Arc<TunQueue>>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) spares: Arc<Spares>,
    pub(super) plane: Arc<Plane>,
    pub(super) relays: Arc<RelaySender>,
    pub(super) waker: Arc<Waker>,
    pub(super) inputs: Inputs,
    pub(super) tun: TunCapabilities,
}

/// Runs until the waker is used. One worker opens what relays deliver.
pub(super) fn run(link: &Link, mut delivery: Option<Delivery>) -> io::Result<()> {
    let poller = Poller::new()?;
    for (queue, token) in link.queues.iter().zip(0..) {
        poller.add(queue.as_fd(), token, Interest::Readable)?;
    }
    poller.add(link.socket.as_fd(), SOCKET, Interest::Readable)?;
    poller.add(link.waker.as_fd(), WAKER, Interest::Readable)?;
    if let Some(delivery) = &delivery {
        poller.add(delivery.as_fd(), BELL, Interest::Readable)?;
    }
    let (mut inward, mut outward) = (Inward::new(link.tun), Outward::new());
    let mut is_blocked = false;
    while !link.waker.is_woken() {
        let ready = poller.wait(outward.patience(Instant::now()))?;
        // Queues whose flows were just given packets have answers, most often.
        let mut queues = ready.readable & !(1 << SOCKET | 1 << WAKER | 1 << BELL);
        if ready.readable & (1 << SOCKET) != 0 {
            queues |= inward.step(link)?;
        }
        if ready.readable & (1 << BELL) != 0
            && let Some(delivery) = &mut delivery
        {
            queues |= inward.take_delivery(link, delivery);
        }
        let flushed = match outward.flush(link) {
            Flushed::All => outward.step(link, queues)?,
            Flushed::Blocked => Flushed::Blocked,
        };
        let must_block = matches!(flushed, Flushed::Blocked);
        if must_block != is_blocked {
            is_blocked = must_block;
            watch(link, &poller, is_blocked)?;
        }
    }
    Ok(())
}

/// While the socket has no room, packets stay in the TUN's queues: that slows senders down without loss.
fn watch(link: &Link, poller: &Poller, is_blocked: bool) -> io::Result<()> {
    let (queues, socket) = if is_blocked {
        (Interest::Nothing, Interest::Both)
    } else {
        (Interest::Readable, Interest::Readable)
    };
    for (queue, token) in link.queues.iter().zip(0..) {
        poller.modify(queue.as_fd(), token, queues)?;
    }
    poller.modify(link.socket.as_fd(), SOCKET, socket)
}
