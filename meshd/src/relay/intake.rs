//! From relay links to the packet thread that opens what they deliver: bounded, and a link waits while it is full.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bytes::Bytes;
use mesh_io::wait::Bell;
use mesh_proto::id::RelayId;
use tokio::sync::mpsc;

/// Chunks that wait: a link reads no further meanwhile, so that its relay learns how fast this node is.
const N_CHUNKS: usize = 16;

/// Frames that a relay delivered: whole ones, as they came.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// By which relay.
    pub relay: RelayId,
    /// [`mesh_proto::relay::Frame`]s; other kinds than `Received` may be among them and mean nothing here.
    pub frames: Bytes,
}

/// The links' end.
#[derive(Debug, Clone)]
pub struct Intake {
    tx: mpsc::Sender<Chunk>,
    bell: Arc<Bell>,
}

/// The packet thread's end: readable while something may wait.
#[derive(Debug)]
pub struct Delivery {
    rx: mpsc::Receiver<Chunk>,
    bell: Arc<Bell>,
}

/// Opens the way from the links to a packet thread.
///
/// # Errors
/// When the process has no descriptor left.
pub fn intake() -> io::Result<(Intake, Delivery)> {
    let (tx, rx) = mpsc::channel(N_CHUNKS);
    let bell = Arc::new(Bell::new()?);
    let intake = Intake {
        tx,
        bell: Arc::clone(&bell),
    };
    Ok((intake, Delivery { rx, bell }))
}

impl Intake {
    /// Hands a chunk over; `false` when the packet thread is gone.
    pub(super) async fn send(&self, chunk: Chunk) -> bool {
        let is_sent = self.tx.send(chunk).await.is_ok();
        self.bell.ring();
        is_sent
    }
}

impl Delivery {
    /// Silences the descriptor. To be called before [`Self::next`] is asked for all that waits.
    pub(crate) fn answer(&self) {
        self.bell.answer();
    }

    /// Rings again when more waits than was taken.
    pub(crate) fn look_again(&self) {
        if !self.rx.is_empty() {
            self.bell.ring();
        }
    }

    /// The next chunk, if there is one.
    pub(crate) fn next(&mut self) -> Option<Chunk> {
        self.rx.try_recv().ok()
    }
}

impl AsFd for Delivery {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_there_after_the_bell_and_a_full_intake_waits() {
        let (intake, mut delivery) = intake().unwrap();
        let chunk = Chunk {
            relay: RelayId::from_bytes([1; 10]),
            frames: Bytes::from_static(b"x"),
        };
        for _ in 0..N_CHUNKS {
            assert!(intake.send(chunk.clone()).await);
        }
        let late = tokio::spawn({
            let (intake, chunk) = (intake.clone(), chunk.clone());
            async move { intake.send(chunk).await }
        });
        tokio::task::yield_now().await;
        assert!(!late.is_finished());
        delivery.answer();
        for _ in 0..N_CHUNKS {
            assert!(delivery.next().is_some());
        }
        assert!(late.await.unwrap());
        assert!(delivery.next().is_some() && delivery.next().is_none());
        drop(delivery);
        assert!(!intake.send(chunk).await);
    }
}
