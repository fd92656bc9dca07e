//! How much of what a lossy path is given may go twice: sparse packets may, bulk may not.
//!
//! A stream of tokens, or a TCP that has lost so much that it waits for its timer, is hurt by each lost packet and costs little
//! to repeat. The copy is the same datagram: whichever comes second is a replay to the other end, be it this program or a stock
//! WireGuard (WireGuard paper, section 5.4.6), so nothing is delivered twice.

use crate::config::REPEATED_BYTES;

const MS_PER_S: u64 = 1000;

/// A token bucket, in bytes. It starts full.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// What was taken and has not come back yet, in thousandths of a byte.
    taken: u64,
    at_ms: u64,
}

impl Allowance {
    /// Takes so many bytes, if they are there.
    pub(super) fn take(&mut self, len: usize, now_ms: u64) -> bool {
        let (rate, most) = REPEATED_BYTES;
        let since_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        // A byte a second is a thousandth of a byte a millisecond.
        self.taken = self
            .taken
            .saturating_sub(since_ms.saturating_mul(u64::from(rate)));
        let wanted = (len as u64).saturating_mul(MS_PER_S);
        let after = self.taken.saturating_add(wanted);
        let fits = after <= u64::from(most) * MS_PER_S;
        if fits {
            self.taken = after;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_at_once_and_then_as_much_as_comes_back() {
        let (rate, most) = REPEATED_BYTES;
        let mut allowance = Allowance::default();
        assert!(allowance.take(most as usize, 5000));
        assert!(!allowance.take(1, 5000), "all is taken");
        assert!(allowance.take(rate as usize / 1000, 5001));
        assert!(
            !allowance.take(rate as usize / 10, 5050),
            "half of that came"
        );
        assert!(allowance.take(rate as usize / 20, 5051));
    }

    #[test]
    fn what_is_too_much_takes_nothing_and_no_clock_breaks_it() {
        let most = REPEATED_BYTES.1 as usize;
        let mut allowance = Allowance::default();
        assert!(!allowance.take(most + 1, 0) && !allowance.take(usize::MAX, u64::MAX));
        assert!(
            allowance.take(most, u64::MAX) && !allowance.take(1, 0),
            "time went back"
        );
        assert!(allowance.take(most, u64::MAX));
    }
}
