//! The engine's random numbers: SHA-256 in counter mode over the seed, so that one seed gives one course of events.

use std::fmt;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A stream of numbers that nobody without the seed can foretell.
#[derive(Clone)]
pub(crate) struct Seed {
    key: Zeroizing<[u8; 32]>,
    counter: u64,
}

impl Seed {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self {
            key: Zeroizing::new(key),
            counter: 0,
        }
    }

    pub(crate) fn block(&mut self) -> [u8; 32] {
        self.counter = self.counter.wrapping_add(1);
        Sha256::new()
            .chain_update(b"proxima engine seed\0")
            .chain_update(*self.key)
            .chain_update(self.counter.to_le_bytes())
            .finalize()
            .into()
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.block();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// A number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The bias of the remainder is below 2^-40 for the small bounds used here.
        self.u64() % bound
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed([redacted])")
    }
}
