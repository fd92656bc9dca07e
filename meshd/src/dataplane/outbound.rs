//! TUN to UDP: packets of this machine, split, sealed, and sent many at a time.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_engine::{
    ChecksumState, Outbound, PeerHandle, Plane, SEAL_BUFFER_MIN, SEAL_OVERHEAD, Sealed, Sealer,
};
use mesh_io::buf::Arena;
use mesh_io::offload::{Gso, OffloadError, Segments, VirtioHeader, complete_checksum};
use mesh_io::tun::{MAX_PACKET, TunQueue};
use mesh_io::udp::UdpSocket;
use mesh_io::wait::{Interest, Waited, Waker, wait};

use super::Inputs;

/// So many reads from the TUN, then what was sealed must go.
const MAX_READS: usize = 64;
/// Room for a few sealed super-packets.
const ARENA_LEN: usize = 256 << 10;
/// A socket that has no room for this long is stuck, and newer packets are worth more.
const MAX_SEND_WAIT: Duration = Duration::from_millis(100);

/// One worker's way out.
pub(super) struct Outward {
    pub(super) queue: Arc<TunQueue>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) plane: Arc<Plane>,
    pub(super) waker: Arc<Waker>,
    pub(super) inputs: Inputs,
}

/// Sealed datagrams that wait for the end of the batch.
struct Batch {
    arena: Arena,
    runs: Vec<Run>,
}

/// Datagrams to one endpoint, all of length `stride` but the last.
struct Run {
    dst: SocketAddr,
    range: Range<usize>,
    stride: usize,
    is_closed: bool,
}

impl Outward {
    pub(super) fn run(self) -> io::Result<()> {
        let mut packet = vec![0; MAX_PACKET];
        let mut segment = vec![0; MAX_PACKET];
        let mut batch = Batch {
            arena: Arena::new(ARENA_LEN),
            runs: Vec::with_capacity(MAX_READS),
        };
        while !self.waker.is_woken() {
            let mut is_idle = false;
            for _ in 0..MAX_READS {
                match self.queue.recv(&mut packet) {
                    Ok((header, len)) => {
                        let packet = packet.get_mut(..len).unwrap_or_default();
                        self.on_packet(&header, packet, &mut segment, &mut batch);
                    }
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        is_idle = true;
                        break;
                    }
                    Err(err) if err.kind() == io::ErrorKind::InvalidData => {
                        self.inputs.counters.tun_errors.add(1);
                    }
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) => return Err(err),
                }
            }
            self.flush(&mut batch)?;
            if is_idle {
                wait(self.queue.as_fd(), Interest::Readable, &self.waker, None)?;
            }
        }
        Ok(())
    }

    fn on_packet(
        &self,
        header: &VirtioHeader,
        packet: &mut [u8],
        segment: &mut [u8],
        batch: &mut Batch,
    ) {
        let checksum = if header.needs_checksum {
            ChecksumState::Partial
        } else {
            ChecksumState::Complete
        };
        let counters = &self.inputs.counters;
        match self.plane.outbound(Instant::now(), packet, checksum) {
            Outbound::Peer(peer) => {
                let sealed = if header.gso == Gso::None {
                    complete_checksum(header, packet)
                        .map(|()| self.seal_single(&peer, packet, batch))
                } else {
                    Segments::new(header, packet)
                        .and_then(|segments| self.seal_segments(&peer, segments, segment, batch))
                };
                if sealed.is_err() {
                    counters.tun_errors.add(1);
                }
            }
            Outbound::Reflect => match self.queue.send(header, &[IoSlice::new(packet)]) {
                Ok(()) => counters.reflected.add(1),
                Err(_) => counters.tun_errors.add(1),
            },
            Outbound::Drop(reason) => counters.drop_for(reason),
        }
    }

    fn seal_single(&self, peer: &PeerHandle, packet: &[u8], batch: &mut Batch) {
        if !batch.has_room(packet.len()) && self.flush(batch).is_err() {
            return;
        }
        let dst = peer.endpoint();
        let mut sealer = peer.seal();
        self.seal(&mut sealer, dst, packet, batch);
        if let Some(event) = sealer.finish() {
            self.inputs.plane(event);
        }
    }

    /// Seals all segments under one lock, or as few as there is room for.
    fn seal_segments(
        &self,
        peer: &PeerHandle,
        mut segments: Segments<'_>,
        segment: &mut [u8],
        batch: &mut Batch,
    ) -> Result<(), OffloadError> {
        let n_bytes = (segments.max_len() + SEAL_OVERHEAD).saturating_mul(segments.n_remaining());
        if !batch.has_room(n_bytes.min(MAX_PACKET + ARENA_LEN / 4)) && self.flush(batch).is_err() {
            return Ok(());
        }
        while segments.n_remaining() > 0 {
            let dst = peer.endpoint();
            let mut sealer = peer.seal();
            let mut result = Ok(());
            while batch.has_room(segments.max_len()) {
                match segments.write_next(segment) {
                    Ok(Some(len)) => {
                        let packet = segment.get(..len).unwrap_or_default();
                        self.seal(&mut sealer, dst, packet, batch);
                    }
                    Ok(None) => break,
                    Err(err) => {
                        result = Err(err);
                        break;
                    }
                }
            }
            if let Some(event) = sealer.finish() {
                self.inputs.plane(event);
            }
            result?;
            if segments.n_remaining() > 0 && self.flush(batch).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn seal(
        &self,
        sealer: &mut Sealer<'_>,
        dst: Option<SocketAddr>,
        packet: &[u8],
        batch: &mut Batch,
    ) {
        let counters = &self.inputs.counters;
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

    /// Sends what was sealed. Waiting for room here lets the TUN fill up, which slows senders down without loss.
    fn flush(&self, batch: &mut Batch) -> io::Result<()> {
        let counters = &self.inputs.counters;
        for run in batch.runs.drain(..) {
            let mut bytes = batch.arena.filled().get(run.range).unwrap_or_default();
            let mut stuck_since = None;
            while !bytes.is_empty() {
                match self.socket.send(run.dst, bytes, run.stride) {
                    Ok(n) => {
                        counters.sent(n.div_ceil(run.stride), n);
                        bytes = bytes.get(n..).unwrap_or_default();
                        stuck_since = None;
                    }
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        let since = *stuck_since.get_or_insert_with(Instant::now);
                        let left = MAX_SEND_WAIT.saturating_sub(since.elapsed());
                        let waited = wait(
                            self.socket.as_fd(),
                            Interest::Writable,
                            &self.waker,
                            Some(left),
                        )?;
                        if waited != Waited::Ready || left.is_zero() {
                            counters.send_errors.add(bytes.len().div_ceil(run.stride));
                            break;
                        }
                    }
                    Err(_) => {
                        counters.send_errors.add(bytes.len().div_ceil(run.stride));
                        break;
                    }
                }
            }
        }
        batch.arena.clear();
        Ok(())
    }
}

impl Batch {
    fn has_room(&self, packet_len: usize) -> bool {
        self.arena.remaining() >= (packet_len + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)
    }

    /// Keeps the datagram that was just sealed.
    fn push(&mut self, dst: SocketAddr, len: usize) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_with_a_short_datagram_or_another_endpoint() {
        let mut batch = Batch {
            arena: Arena::new(10_000),
            runs: Vec::new(),
        };
        let (a, b) = (
            SocketAddr::from(([1, 1, 1, 1], 1)),
            SocketAddr::from(([2, 2, 2, 2], 2)),
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
