//! Which peer a receiver index belongs to: random 24-bit numbers, so that they tell nothing and never clash.

use crate::config::N_INDICES_MAX;
use crate::peer::PeerHandle;
use crate::seed::Seed;
use crate::shard::ShardMap;

/// The table. boringtun appends 8 bits of its own to each index.
#[derive(Debug)]
pub(crate) struct Indices {
    peers: ShardMap<u32, PeerHandle>,
}

impl Indices {
    pub(crate) fn new() -> Self {
        Self {
            peers: ShardMap::new(),
        }
    }

    /// The peer whose message names this receiver; lock-free.
    pub(crate) fn peer(&self, receiver: u32) -> Option<PeerHandle> {
        self.peers.get(&(receiver >> 8))
    }

    /// Gives a peer a free index; `n_live` is how many are taken. `None` when there are too many.
    pub(crate) fn allocate(
        &self,
        seed: &mut Seed,
        n_live: usize,
        peer: &PeerHandle,
    ) -> Option<u32> {
        if n_live >= N_INDICES_MAX {
            return None;
        }
        // At most one in 16 is taken: 64 draws all fail once in 2^256.
        let index = (0..64)
            .map(|_| u32::try_from(seed.u64() >> 40).unwrap_or(0))
            .find(|index| !self.peers.contains(index))?;
        self.peers.insert(index, peer.clone());
        Some(index)
    }

    pub(crate) fn release(&self, index: u32) {
        self.peers.remove(&index);
    }
}
