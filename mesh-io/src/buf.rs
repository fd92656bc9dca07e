//! Where packets lie during a batch: one allocation, made once and used again for each batch.

use std::ops::Range;

/// A fixed stretch of memory that a batch fills from the front.
#[derive(Debug)]
pub struct Arena {
    bytes: Box<[u8]>,
    used: usize,
}

impl Arena {
    /// Allocates `capacity` bytes, once.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity].into_boxed_slice(),
            used: 0,
        }
    }

    /// How many bytes are free.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// How many bytes were committed since the last [`Self::clear`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing was committed since the last [`Self::clear`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// All that is free, to be written to; [`Self::commit`] keeps a part of it.
    pub fn spare(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.used..).unwrap_or_default()
    }

    /// Keeps the first `len` bytes of what [`Self::spare`] gave, and says where they lie.
    ///
    /// # Panics
    /// When `len` is more than what was free: the caller wrote no such number of bytes.
    pub fn commit(&mut self, len: usize) -> Range<usize> {
        assert!(len <= self.remaining(), "committed more than was free");
        let start = self.used;
        self.used += len;
        start..self.used
    }

    /// All committed bytes.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// All committed bytes, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.used).unwrap_or_default()
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_committed_until_cleared() {
        let mut arena = Arena::new(8);
        arena.spare()[..3].copy_from_slice(b"abc");
        assert_eq!(arena.commit(3), 0..3);
        arena.spare()[..2].copy_from_slice(b"de");
        assert_eq!(arena.commit(2), 3..5);
        assert_eq!((arena.filled(), arena.remaining()), (&b"abcde"[..], 3));
        arena.clear();
        assert!(arena.is_empty());
        assert_eq!(arena.spare().len(), 8);
    }
}
