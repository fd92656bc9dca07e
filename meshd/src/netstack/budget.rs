//! How much memory each connection gets: much while there are few, less with each, and never more than a bound in all. Pure.

/// What all buffers have beside the least that each connection gets.
const TOTAL: usize = 24 << 20;
/// A part of what is left goes to the next buffer.
const SHARE: usize = 32;
/// The largest buffer.
const BUFFER_MAX: usize = 768 << 10;
/// The least that works: a few segments.
const BUFFER_MIN: usize = 8 << 10;

/// What is left.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { left: TOTAL }
    }

    /// The length of both buffers of the next connection, taken from what is left.
    pub(super) fn take(&mut self) -> usize {
        let len = (self.left / SHARE).min(BUFFER_MAX) & !0xfff;
        if len <= BUFFER_MIN {
            return BUFFER_MIN;
        }
        self.left -= 2 * len;
        len
    }

    /// Gives a connection's back.
    pub(super) const fn give_back(&mut self, len: usize) {
        if len > BUFFER_MIN {
            self.left += 2 * len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_together_stay_within_the_bound() {
        let mut budget = Budget::new();
        let lens: Vec<usize> = (0..1024).map(|_| budget.take()).collect();
        assert_eq!(lens[0], BUFFER_MAX);
        assert!(
            lens.iter()
                .all(|len| (BUFFER_MIN..=BUFFER_MAX).contains(len))
        );
        assert!(2 * lens.iter().sum::<usize>() <= 40 << 20);
        for len in lens {
            budget.give_back(len);
        }
        assert_eq!(budget.left, TOTAL);
        assert_eq!(budget.take(), BUFFER_MAX);
    }
}
