//! What waits to be written to one relay: filled by packet threads, emptied by the link's task. Bounded both ways.
//!
//! Packet threads write whole frames into it under a lock that is held for one copy and is taken once a batch; the link
//! swaps the full buffers for its empty ones. What does not fit is dropped: a packet thread that waited would stand in the
//! way of direct paths, and the sender of a packet learns of it as of any loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_proto::key::NodeKey;
use mesh_proto::relay::{CONTENTS_MAX, DATAGRAMS_AT, Datagrams, Frame, N_DATAGRAMS_MAX};
use tokio::sync::Notify;

/// Bulk that waits: as much as the relay lets wait, so that a stream's window is several batches, and one is sealed, one
/// written and one forwarded at a time. With what waits in the relay it stays below the 1,024 packets after which a session
/// forgets: small packets pass it.
const BULK_LEN_MAX: usize = 656 << 10;
const N_BULK_MAX: usize = 448;
/// Handshakes, path discovery and small packets that wait.
const URGENT_LEN_MAX: usize = 128 << 10;
const N_URGENT_MAX: usize = 1024;

/// What waits for one relay.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    ready: Notify,
    is_open: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    urgent: Row,
    bulk: Row,
}

#[derive(Debug, Default)]
struct Row {
    frames: Vec<u8>,
    n_datagrams: usize,
}

impl Row {
    /// How many datagrams of this length still fit.
    fn room(&self, stride: usize, len_max: usize, n_max: usize) -> usize {
        let n_bytes = len_max.saturating_sub(self.frames.len() + DATAGRAMS_AT);
        (n_bytes / stride).min(n_max.saturating_sub(self.n_datagrams))
    }
}

impl Outbox {
    /// Lets datagrams in, or throws away what waits and keeps new ones out.
    pub(super) fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Ordering::Relaxed);
        *self.lock() = Waiting::default();
    }

    /// Puts datagrams in; tells how many there was room for.
    pub(super) fn push(&self, to: &NodeKey, contents: &[u8], stride: usize) -> usize {
        if stride == 0 || !self.is_open.load(Ordering::Relaxed) {
            return 0;
        }
        let n_fit = (CONTENTS_MAX / stride).clamp(1, N_DATAGRAMS_MAX);
        let mut n_taken = 0;
        let mut waiting = self.lock();
        for part in contents.chunks(n_fit * stride) {
            let Some(all) = Datagrams::new(part, stride) else {
                break;
            };
            let (row, len_max, n_max) = if all.is_urgent() {
                (&mut waiting.urgent, URGENT_LEN_MAX, N_URGENT_MAX)
            } else {
                (&mut waiting.bulk, BULK_LEN_MAX, N_BULK_MAX)
            };
            let room = row.room(stride, len_max, n_max);
            let kept = part.get(..room * stride).unwrap_or(part);
            let Some(datagrams) = Datagrams::new(kept, stride) else {
                break;
            };
            Frame::Send { to: *to, datagrams }.write(&mut row.frames);
            row.n_datagrams += datagrams.n_datagrams();
            n_taken += datagrams.n_datagrams();
        }
        drop(waiting);
        if n_taken > 0 {
            self.ready.notify_one();
        }
        n_taken
    }

    /// Puts in a word of the link itself.
    pub(super) fn say(&self, frame: &Frame<'_>) {
        let mut waiting = self.lock();
        if waiting.urgent.frames.len() < URGENT_LEN_MAX {
            frame.write(&mut waiting.urgent.frames);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    /// Waits until there is something, and swaps it for two empty buffers; tells how many datagrams are in it.
    pub(super) async fn take(&self, urgent: &mut Vec<u8>, bulk: &mut Vec<u8>) -> usize {
        loop {
            {
                let mut waiting = self.lock();
                if !waiting.urgent.frames.is_empty() || !waiting.bulk.frames.is_empty() {
                    std::mem::swap(&mut waiting.urgent.frames, urgent);
                    std::mem::swap(&mut waiting.bulk.frames, bulk);
                    let n_urgent = std::mem::take(&mut waiting.urgent.n_datagrams);
                    let n_bulk = std::mem::take(&mut waiting.bulk.n_datagrams);
                    return n_urgent + n_bulk;
                }
            }
            self.ready.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NodeKey {
        NodeKey::from_bytes([1; 32])
    }

    fn open() -> Outbox {
        let outbox = Outbox::default();
        outbox.set_open(true);
        outbox
    }

    /// The lengths of the datagrams that waited: urgent ones, then bulk.
    async fn drain(outbox: &Outbox) -> (Vec<usize>, Vec<usize>) {
        let (mut urgent, mut bulk) = (Vec::new(), Vec::new());
        outbox.take(&mut urgent, &mut bulk).await;
        let lengths = |frames: &[u8]| {
            let mut rest = frames;
            let mut lengths = Vec::new();
            while let Some(len) = mesh_proto::relay::frame_len(rest, usize::MAX).unwrap() {
                if let Frame::Send { datagrams, .. } = Frame::parse(&rest[..len]).unwrap() {
                    lengths.extend(datagrams.iter().map(<[u8]>::len));
                }
                rest = &rest[len..];
            }
            lengths
        };
        (lengths(&urgent), lengths(&bulk))
    }

    #[tokio::test]
    async fn datagrams_wait_in_their_row() {
        let outbox = open();
        assert_eq!(outbox.push(&key(), &[4; 2_500], 1_000), 3);
        assert_eq!(outbox.push(&key(), &[1; 148], 148), 1);
        assert_eq!(drain(&outbox).await, (vec![148], vec![1_000, 1_000, 500]));
    }

    #[tokio::test]
    async fn a_long_batch_becomes_several_frames() {
        let outbox = open();
        assert_eq!(outbox.push(&key(), &[4; 200_000], 1_400), 143);
        let (_, bulk) = drain(&outbox).await;
        assert_eq!(bulk.iter().sum::<usize>(), 200_000);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_small_packets_still_go() {
        let outbox = open();
        let mut n_taken = 0;
        for _ in 0..100 {
            n_taken += outbox.push(&key(), &[4; 64_000], 1_280);
        }
        assert!(n_taken <= N_BULK_MAX, "{n_taken}");
        assert_eq!(outbox.push(&key(), &[4; 128], 128), 1);
        let (urgent, bulk) = drain(&outbox).await;
        assert_eq!((urgent.len(), bulk.len()), (1, n_taken));
        assert!(outbox.push(&key(), &[4; 64_000], 1_280) > 0);
    }

    #[test]
    fn a_closed_outbox_takes_nothing() {
        let outbox = Outbox::default();
        assert_eq!(outbox.push(&key(), &[4; 100], 100), 0);
        outbox.set_open(true);
        assert_eq!(outbox.push(&key(), &[4; 100], 0), 0);
        assert_eq!(outbox.push(&key(), &[], 100), 0);
        assert_eq!(outbox.push(&key(), &[4; 100], 100), 1);
        outbox.set_open(false);
        assert!(outbox.lock().urgent.frames.is_empty());
    }
}
