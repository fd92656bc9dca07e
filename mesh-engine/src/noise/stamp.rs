//! The timestamps of this node's initiations: each newer than all before it, whatever the system's clock says.
//!
//! A peer remembers the newest one and takes no other for new (WireGuard paper, section 5.1). Only their order counts: they
//! look like times (TAI64N), and are numbers that go on from where no earlier run of this node came to.

use std::sync::atomic::{AtomicU64, Ordering};

use boringtun::noise::handshake;

const NS_PER_S: u64 = 1_000_000_000;

/// TAI64's label of Unix second 0, with the leap seconds since (<https://cr.yp.to/libtai/tai64.html>).
const UNIX_EPOCH: u64 = (1 << 62) + 37;

/// Stamps that are counted, one nanosecond each.
#[derive(Debug)]
pub(crate) struct Stamps {
    next_ns: AtomicU64,
}

impl Stamps {
    /// Begins with this one, nanoseconds since 1970. None is used twice before half of all are spent: `from_ns` is cut to
    /// that.
    pub(crate) fn new(from_ns: u64) -> Self {
        Self {
            next_ns: AtomicU64::new(from_ns.min(u64::MAX / 2)),
        }
    }
}

impl handshake::Stamps for Stamps {
    fn stamp(&self) -> [u8; 12] {
        tai64n(self.next_ns.fetch_add(1, Ordering::Relaxed))
    }
}

fn tai64n(unix_ns: u64) -> [u8; 12] {
    let mut stamp = [0; 12];
    let nanos = u32::try_from(unix_ns % NS_PER_S).unwrap_or(0);
    stamp[..8].copy_from_slice(&(UNIX_EPOCH + unix_ns / NS_PER_S).to_be_bytes());
    stamp[8..].copy_from_slice(&nanos.to_be_bytes());
    stamp
}

#[cfg(test)]
mod tests {
    use boringtun::noise::handshake::Stamps as _;

    use super::*;

    #[test]
    fn each_is_greater_than_the_one_before_it() {
        for from_ns in [0, NS_PER_S - 2, 1_800_000_000 * NS_PER_S - 2, u64::MAX] {
            let stamps = Stamps::new(from_ns);
            let all: Vec<_> = (0..5).map(|_| stamps.stamp()).collect();
            assert!(all.is_sorted_by(|one, other| one < other), "{all:?}");
        }
    }

    #[test]
    fn the_bytes_are_those_of_tai64n() {
        assert_eq!(
            tai64n(NS_PER_S + 5),
            [0x40, 0, 0, 0, 0, 0, 0, 38, 0, 0, 0, 5]
        );
    }
}
