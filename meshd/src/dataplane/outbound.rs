//! TUN to UDP and relays: packets of this machine, split, sealed, and sent many at a time.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::{Duration, Instant};

use mesh_engine::{
    ChecksumState, Destination, DropReason, Fit, Outbound, PeerHandle, SEAL_BUFFER_MIN,
    SEAL_OVERHEAD, Sealed, Sealer, Way,
};
use mesh_io::buf::Arena;
use mesh_io::offload::{Gso, OffloadError, Segments, VirtioHeader, complete_checksum};
use mesh_io::tun::{MAX_PACKET, TunQueue};
use mesh_proto::relay::UDP_HEADER_LEN;

use super::worker::Link;

/// So many bytes are sealed, then they go and the other direction has its turn: a sixth of a millisecond's work.
const STEP_LEN: usize = 128 << 10;
/// And so many packets, if they are small.
const MAX_READS: usize = 64;
/// What a queue may take of a step before the next one has its turn.
const QUANTUM: usize = 32 << 10;
/// And so many packets.
const MAX_QUEUE_READS: usize = 16;
/// Room for a step and two super-packets more.
const ARENA_LEN: usize = STEP_LEN + (160 << 10);
/// A socket that has no room for this long is stuck, and newer packets are worth more.
const MAX_SEND_WAIT: Duration = Duration::from_millis(100);

/// The way out.
pub(super) struct Outward {
    packet: Vec<u8>,
    segment: Vec<u8>,
    fragment: Vec<u8>,
    batch: Batch,
    /// The queue that is served first in the next step.
    turn: usize,
}

/// Whether everything that was sealed went.
pub(super) enum Flushed {
    All,
    /// The socket has no room; the rest waits.
    Blocked,
}

/// Sealed datagrams that wait for the end of the batch.
struct Batch {
    arena: Arena,
    runs: Vec<Run>,
    /// A run behind the headers of a relay's UDP.
    headed: Vec<u8>,
    /// Runs that went.
    n_sent: usize,
    blocked_since: Option<Instant>,
}

/// Datagrams that go one way, all of length `stride` but the last.
#[derive(Debug)]
struct Run {
    dst: Destination,
    range: Range<usize>,
    stride: usize,
    is_closed: bool,
}

impl Outward {
    pub(super) fn new() -> Self {
        Self {
            packet: vec![0; MAX_PACKET],
            segment: vec![0; MAX_PACKET],
            fragment: vec![0; MAX_PACKET],
            batch: Batch::new(ARENA_LEN),
            turn: 0,
        }
    }

    /// How long the worker may sleep: until a socket without room counts as stuck.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let since = self.batch.blocked_since?;
        Some(MAX_SEND_WAIT.saturating_sub(now.saturating_duration_since(since)))
    }

    /// Reads the queues that have packets, each in its turn, as much as a step may take; and sends that.
    pub(super) fn step(&mut self, link: &Link, queues: u64) -> io::Result<Flushed> {
        let n_queues = link.queues.len().max(1);
        let (mut full, mut n_reads) = (queues, 0);
        while full != 0 && n_reads < MAX_READS && self.batch.arena.len() < STEP_LEN {
            let queue_idx = self.turn;
            self.turn = (self.turn + 1) % n_queues;
            let bit = 1_u64 << queue_idx;
            let Some(queue) = link.queues.get(queue_idx).filter(|_| full & bit != 0) else {
                continue;
            };
            if !self.serve(link, queue, &mut n_reads)? {
                full &= !bit;
            }
            if self.batch.blocked_since.is_some() {
                return Ok(Flushed::Blocked);
            }
        }
        Ok(self.flush(link))
    }

    /// Reads one queue; whether it may have more.
    fn serve(&mut self, link: &Link, queue: &TunQueue, n_reads: &mut usize) -> io::Result<bool> {
        let start = self.batch.arena.len();
        for _ in 0..MAX_QUEUE_READS {
            match queue.recv(&mut self.packet) {
                Ok((header, len)) => {
                    *n_reads += 1;
                    self.on_packet(link, queue, &header, len);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(err) if err.kind() == io::ErrorKind::InvalidData => {
                    link.inputs.counters.tun_errors.add(1);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
            let is_served = self.batch.arena.len().saturating_sub(start) >= QUANTUM;
            if is_served || self.batch.blocked_since.is_some() {
                break;
            }
        }
        Ok(true)
    }

    fn on_packet(&mut self, link: &Link, queue: &TunQueue, header: &VirtioHeader, len: usize) {
        let Self {
            packet,
            segment,
            fragment,
            batch,
            ..
        } = self;
        let packet = packet.get_mut(..len).unwrap_or_default();
        let checksum = if header.needs_checksum {
            ChecksumState::Partial
        } else {
            ChecksumState::Complete
        };
        let counters = &link.inputs.counters;
        match link.plane.outbound(Instant::now(), packet, checksum) {
            Outbound::Peer(peer) => {
                let way = peer.way();
                let mut lane = Lane {
                    link,
                    queue,
                    peer: &peer,
                    way,
                    batch,
                };
                let sealed = if header.gso != Gso::None {
                    Segments::new(header, packet)
                        .and_then(|segments| lane.seal_super(segments, segment, fragment))
                } else if packet.len() <= usize::from(way.mtu) {
                    complete_checksum(header, packet).map(|()| lane.seal_single(packet))
                } else {
                    complete_checksum(header, packet)
                        .and_then(|()| lane.seal_long(packet, fragment))
                };
                if sealed.is_err() {
                    counters.tun_errors.add(1);
                }
            }
            Outbound::Reflect => match queue.send(header, &[IoSlice::new(packet)]) {
                Ok(()) => counters.reflected.add(1),
                Err(_) => counters.tun_errors.add(1),
            },
            Outbound::Drop(reason) => counters.drop_for(reason),
        }
    }

    /// Sends what was sealed, as far as the socket has room.
    pub(super) fn flush(&mut self, link: &Link) -> Flushed {
        self.batch.flush(link)
    }
}

/// The way of one packet to its peer.
struct Lane<'a> {
    link: &'a Link,
    queue: &'a TunQueue,
    peer: &'a PeerHandle,
    way: Way,
    batch: &'a mut Batch,
}

impl Lane<'_> {
    fn seal_single(&mut self, packet: &[u8]) {
        if !self.batch.make_room(self.link, packet.len()) {
            return;
        }
        let start = self.batch.arena.len();
        let mut sealer = self.peer.seal();
        seal(self.link, &mut sealer, self.way.dst, packet, self.batch);
        self.finish(sealer, start);
    }

    /// Unlocks the session; what was sealed from `start` on goes twice if the path loses much and it is little.
    fn finish(&mut self, mut sealer: Sealer<'_>, start: usize) {
        if self.way.is_lossy {
            let len = self.batch.arena.len().saturating_sub(start);
            if len > 0 && sealer.may_repeat(len) {
                let n_repeated = self.batch.repeat(start);
                self.link.inputs.counters.repeated.add(n_repeated);
            }
        }
        if let Some(event) = sealer.finish() {
            self.link.inputs.plane(event);
        }
    }

    /// Seals a super-packet: TCP in segments that the path takes, datagrams as they are if it takes them.
    fn seal_super(
        &mut self,
        mut segments: Segments<'_>,
        segment: &mut [u8],
        fragment: &mut [u8],
    ) -> Result<(), OffloadError> {
        let mtu = usize::from(self.way.mtu);
        segments.limit(mtu);
        if segments.max_len() <= mtu {
            return self.seal_segments(segments, segment);
        }
        while let Some(len) = segments.write_next(segment)? {
            let packet = segment.get(..len).unwrap_or_default();
            if len <= mtu {
                self.seal_single(packet);
            } else {
                self.seal_long(packet, fragment)?;
            }
        }
        Ok(())
    }

    /// Seals all segments under one lock, or as few as there is room for.
    fn seal_segments(
        &mut self,
        mut segments: Segments<'_>,
        segment: &mut [u8],
    ) -> Result<(), OffloadError> {
        while segments.n_remaining() > 0 {
            let n_bytes =
                (segments.max_len() + SEAL_OVERHEAD).saturating_mul(segments.n_remaining());
            // Many tiny segments may be longer than the arena: then as many at a time as it holds.
            let n_bytes = n_bytes.min(ARENA_LEN - SEAL_OVERHEAD);
            if !self.batch.make_room(self.link, n_bytes) {
                return Ok(());
            }
            let start = self.batch.arena.len();
            let mut sealer = self.peer.seal();
            let mut result = Ok(());
            while self.batch.has_room(segments.max_len()) {
                match segments.write_next(segment) {
                    Ok(Some(len)) => {
                        let packet = segment.get(..len).unwrap_or_default();
                        seal(self.link, &mut sealer, self.way.dst, packet, self.batch);
                    }
                    Ok(None) => break,
                    Err(err) => {
                        result = Err(err);
                        break;
                    }
                }
            }
            self.finish(sealer, start);
            result?;
        }
        Ok(())
    }

    /// Seals a packet that is longer than the path takes in parts, or tells its sender; its checksums are complete.
    #[cold]
    fn seal_long(&mut self, packet: &[u8], part: &mut [u8]) -> Result<(), OffloadError> {
        let counters = &self.link.inputs.counters;
        match self.link.plane.fit(packet, &self.way) {
            Fit::Segments {
                transport_at,
                segment_size,
            } => {
                let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
                let header = VirtioHeader::tcp(is_ipv4, transport_at, segment_size);
                self.seal_segments(Segments::new(&header, packet)?, part)?;
            }
            Fit::Fragments(mut fragments) => {
                while let Some(len) = fragments.write_next(part) {
                    self.seal_single(part.get(..len).unwrap_or_default());
                }
            }
            Fit::TooBig(message) => {
                counters.drop_for(DropReason::TooBig);
                let parts = [IoSlice::new(message.packet())];
                if self.queue.send(&VirtioHeader::default(), &parts).is_err() {
                    counters.tun_errors.add(1);
                }
            }
            Fit::Drop => counters.drop_for(DropReason::TooBig),
        }
        Ok(())
    }
}

fn seal(
    link: &Link,
    sealer: &mut Sealer<'_>,
    dst: Option<Destination>,
    packet: &[u8],
    batch: &mut Batch,
) {
    let counters = &link.inputs.counters;
    match (sealer.seal(packet, batch.arena.spare()), dst) {
        (Sealed::Datagram(len), Some(dst)) => {
            batch.push(dst, len);
            counters.tx_packets.add(1);
            counters.tx_bytes.add(packet.len());
        }
        (Sealed::Datagram(_), None) => counters.no_path.add(1),
        (Sealed::Queued, _) => counters.queued.add(1),
        (Sealed::Dropped(reason), _) => counters.drop_for(reason),
    }
}

impl Batch {
    fn new(arena_len: usize) -> Self {
        Self {
            arena: Arena::new(arena_len),
            runs: Vec::with_capacity(MAX_READS),
            headed: Vec::new(),
            n_sent: 0,
            blocked_since: None,
        }
    }

    fn has_room(&self, packet_len: usize) -> bool {
        self.arena.remaining() >= (packet_len + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)
    }

    /// Sends what is there if the packet does not fit beside it; without room even so, the packet is lost and counted.
    fn make_room(&mut self, link: &Link, packet_len: usize) -> bool {
        if self.has_room(packet_len) {
            return true;
        }
        if matches!(self.flush(link), Flushed::All) {
            return true;
        }
        link.inputs.counters.send_errors.add(1);
        false
    }

    /// Keeps the datagram that was just sealed.
    fn push(&mut self, dst: Destination, len: usize) {
        let range = self.arena.commit(len);
        if let Some(run) = self.runs.last_mut()
            && run.dst == dst
            && !run.is_closed
            && len <= run.stride
        {
            run.range.end = range.end;
            run.is_closed = len < run.stride;
            return;
        }
        self.runs.push(Run {
            dst,
            range,
            stride: len.max(1),
            is_closed: false,
        });
    }

    /// Lets what lies in the arena from `start` on go once more, after all that waits: how many datagrams that is.
    fn repeat(&mut self, start: usize) -> usize {
        let mut n_datagrams = 0;
        for idx in 0..self.runs.len() {
            let Some(run) = self.runs.get_mut(idx) else {
                break;
            };
            // Datagrams before `start` are as long as the rest of their run.
            let range = run.range.start.max(start)..run.range.end;
            if range.is_empty() {
                continue;
            }
            // A later datagram must not become part of either.
            run.is_closed = true;
            n_datagrams += range.len().div_ceil(run.stride);
            let again = Run {
                dst: run.dst,
                stride: run.stride,
                range,
                is_closed: true,
            };
            self.runs.push(again);
        }
        n_datagrams
    }

    fn flush(&mut self, link: &Link) -> Flushed {
        let counters = &link.inputs.counters;
        while let Some(run) = self.runs.get_mut(self.n_sent) {
            let bytes = self
                .arena
                .filled()
                .get(run.range.clone())
                .unwrap_or_default();
            if bytes.is_empty() {
                self.n_sent += 1;
                continue;
            }
            let (endpoint, header_len) = match run.dst {
                Destination::Udp(endpoint) => (endpoint, 0),
                Destination::Spare { socket, endpoint } => {
                    let found = link.spares.find(socket);
                    let n = found
                        .and_then(|socket| socket.send(endpoint, bytes, run.stride).ok())
                        .unwrap_or(0);
                    counters.sent(n.div_ceil(run.stride), n);
                    // There is none to wait for room with: the worker watches its own socket alone.
                    let n_lost = bytes.len().saturating_sub(n).div_ceil(run.stride);
                    counters.send_errors.add(n_lost);
                    run.range.start = run.range.end;
                    continue;
                }
                Destination::Relay { relay, peer } => {
                    let Some((endpoint, header)) =
                        link.relays.udp(&relay, &peer, bytes, run.stride)
                    else {
                        let n = link.relays.send(&relay, &peer, bytes, run.stride);
                        counters.relayed(n, bytes.len().div_ceil(run.stride));
                        run.range.start = run.range.end;
                        continue;
                    };
                    self.headed.clear();
                    for datagram in bytes.chunks(run.stride) {
                        self.headed.extend_from_slice(&header);
                        self.headed.extend_from_slice(datagram);
                    }
                    (endpoint, UDP_HEADER_LEN)
                }
            };
            let (datagrams, stride) = match header_len {
                0 => (bytes, run.stride),
                _ => (&self.headed[..], run.stride + header_len),
            };
            match link.socket.send(endpoint, datagrams, stride) {
                Ok(n) => {
                    let n_datagrams = n.div_ceil(stride);
                    counters.sent(n_datagrams, n);
                    if header_len > 0 {
                        counters.relayed(n_datagrams, n_datagrams);
                        counters.tx_relayed_udp.add(n_datagrams);
                    }
                    run.range.start += n - n_datagrams * header_len;
                    self.blocked_since = None;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    let now = Instant::now();
                    let since = *self.blocked_since.get_or_insert(now);
                    if now.saturating_duration_since(since) < MAX_SEND_WAIT {
                        return Flushed::Blocked;
                    }
                    counters.send_errors.add(bytes.len().div_ceil(run.stride));
                    run.range.start = run.range.end;
                }
                Err(_) => {
                    counters.send_errors.add(bytes.len().div_ceil(run.stride));
                    run.range.start = run.range.end;
                }
            }
        }
        (self.n_sent, self.blocked_since) = (0, None);
        self.runs.clear();
        self.arena.clear();
        Flushed::All
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn what_goes_twice_goes_after_all_that_waits_and_alone() {
        let mut batch = Batch::new(10_000);
        let a = Destination::Udp(SocketAddr::from(([1, 1, 1, 1], 1)));
        for len in [100, 100] {
            batch.push(a, len);
        }
        let start = batch.arena.len();
        for len in [100, 60, 90] {
            batch.push(a, len);
        }
        assert_eq!(batch.repeat(start), 3);
        let end = batch.arena.len();
        assert_eq!(batch.repeat(end), 0, "nothing was sealed since");
        batch.push(a, 90);
        let runs: Vec<_> = batch.runs.iter().map(|run| run.range.clone()).collect();
        assert_eq!(runs, [0..360, 360..450, 200..360, 360..450, 450..540]);
    }

    #[test]
    fn a_run_ends_with_a_short_datagram_or_another_endpoint() {
        let mut batch = Batch::new(10_000);
        let (a, b) = (
            Destination::Udp(SocketAddr::from(([1, 1, 1, 1], 1))),
            Destination::Udp(SocketAddr::from(([2, 2, 2, 2], 2))),
        );
        let pushes = [
            (a, 100),
            (a, 100),
            (a, 60),
            (a, 60),
            (b, 60),
            (b, 90),
            (a, 90),
        ];
        for (dst, len) in pushes {
            batch.push(dst, len);
        }
        let runs: Vec<_> = batch
            .runs
            .iter()
            .map(|run| (run.dst, run.range.clone(), run.stride))
            .collect();
        let expected = [
            (a, 0..260, 100),
            (a, 260..320, 60),
            (b, 320..380, 60),
            (b, 380..470, 90),
            (a, 470..560, 90),
        ];
        assert_eq!(runs, expected);
    }
}
