//! The last TCP packets that were sent into silence. Sent again once the peer is reached, they spare TCP the wait for its
//! next retransmission, which comes ever later the longer an outage lasts.
//!
//! TCP alone: it takes a segment that comes twice for what it is, and others may not.

use crate::config::N_STASHED_MAX;

/// Copies, the oldest replaced first. Their room is used again, so that no packet costs an allocation.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    packets: [Vec<u8>; N_STASHED_MAX],
    n_packets: usize,
    next: usize,
}

impl Stash {
    pub(crate) fn push(&mut self, packet: &[u8]) {
        let place = &mut self.packets[self.next];
        place.clear();
        place.extend_from_slice(packet);
        self.next = (self.next + 1) % N_STASHED_MAX;
        self.n_packets = (self.n_packets + 1).min(N_STASHED_MAX);
    }

    /// From the oldest to the newest.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let oldest = (self.next + N_STASHED_MAX - self.n_packets) % N_STASHED_MAX;
        (0..self.n_packets).map(move |n| &self.packets[(oldest + n) % N_STASHED_MAX][..])
    }
}

/// Whether an IP packet holds a TCP segment, as far as its first header tells.
pub(crate) fn is_tcp(packet: &[u8]) -> bool {
    const TCP: u8 = 6;
    let protocol_at = match packet.first().map(|first| first >> 4) {
        Some(4) => 9,
        Some(6) => 6,
        Some(_) | None => return false,
    };
    packet.get(protocol_at) == Some(&TCP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_newest_in_their_order() {
        let mut stash = Stash::default();
        assert_eq!(stash.iter().count(), 0);
        for n in 0..20_u8 {
            stash.push(&[n; 3]);
            let kept: Vec<u8> = stash.iter().map(|packet| packet[0]).collect();
            let first = (n + 1).saturating_sub(u8::try_from(N_STASHED_MAX).unwrap());
            assert_eq!(kept, (first..=n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tcp_is_told_from_the_rest() {
        let v4 = |protocol| [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol][..], &[0; 30]].concat();
        let v6 = |protocol| [&[0x60, 0, 0, 0, 0, 20, protocol, 64][..], &[0; 52]].concat();
        assert!(is_tcp(&v4(6)) && is_tcp(&v6(6)));
        assert!(!is_tcp(&v4(17)) && !is_tcp(&v6(17)) && !is_tcp(&v6(58)));
        assert!(!is_tcp(&[]) && !is_tcp(&[0x45]) && !is_tcp(&[0x25; 40]));
    }
}
