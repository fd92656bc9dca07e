//! What the packet threads count: each thread its own counters, summed when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use mesh_engine::DropReason;
use mesh_io::udp::Datagrams;

/// A number that one thread moves and others read.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: usize) {
        // There is one writer, so this needs no locked instruction; a count fits 64 bits wherever usize does.
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n as u64);
        self.0.store(sum, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of one thread.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
            drops: [Counter; DropReason::ALL.len()],
        }

        /// What the data plane did since it started.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct DataplaneStats {
            $($(#[$doc])* pub $name: u64,)*
            drops: [u64; DropReason::ALL.len()],
        }

        impl Counters {
            pub(super) fn add_to(&self, stats: &mut DataplaneStats) {
                $(stats.$name += self.$name.read();)*
                for (sum, counter) in stats.drops.iter_mut().zip(&self.drops) {
                    *sum += counter.read();
                }
            }
        }
    };
}

counters! {
    /// Overlay packets sealed.
    tx_packets,
    /// Bytes of overlay packets sealed.
    tx_bytes,
    /// Datagrams sent, the engine's too.
    tx_datagrams,
    /// Bytes of datagrams sent.
    tx_datagram_bytes,
    /// Overlay packets given to this machine.
    rx_packets,
    /// Bytes of overlay packets given to this machine.
    rx_bytes,
    /// Datagrams received.
    rx_datagrams,
    /// Bytes of datagrams received.
    rx_datagram_bytes,
    /// Datagrams that a relay's link took.
    tx_relayed,
    /// Datagrams that relays delivered.
    rx_relayed,
    /// Those of the datagrams to relays that went by UDP.
    tx_relayed_udp,
    /// Those of the datagrams of relays that came by UDP.
    rx_relayed_udp,
    /// Datagrams for a relay without a link, or whose link was full.
    relay_lost,
    /// Datagrams that went twice, over a path that loses packets.
    repeated,
    /// Packets of this machine to its own service ports, and back.
    reflected,
    /// Packets that wait for a session.
    queued,
    /// Datagrams for the engine.
    control,
    /// Datagrams and events that the daemon's loop had no room for.
    inputs_lost,
    /// Packets dropped because their peer has no path.
    no_path,
    /// Datagrams that the kernel did not take.
    send_errors,
    /// Reads from the UDP sockets that gave an error.
    receive_errors,
    /// Packets that the TUN did not take or that came out of it malformed.
    tun_errors,
}

impl Counters {
    pub(super) fn drop_for(&self, reason: DropReason) {
        let found = DropReason::ALL.iter().position(|known| *known == reason);
        if let Some(counter) = found.and_then(|idx| self.drops.get(idx)) {
            counter.add(1);
        }
    }

    pub(super) fn received(&self, datagrams: &Datagrams<'_>) {
        let n_bytes = datagrams.bytes.len();
        self.rx_datagrams
            .add(n_bytes.div_ceil(datagrams.stride.max(1)));
        self.rx_datagram_bytes.add(n_bytes);
    }

    /// So many of these datagrams a relay's link took.
    pub(super) fn relayed(&self, n_taken: usize, n_datagrams: usize) {
        self.tx_relayed.add(n_taken);
        self.relay_lost.add(n_datagrams.saturating_sub(n_taken));
    }

    pub(super) fn sent(&self, n_datagrams: usize, n_bytes: usize) {
        self.tx_datagrams.add(n_datagrams);
        self.tx_datagram_bytes.add(n_bytes);
    }
}

impl DataplaneStats {
    /// How many packets and datagrams went no further, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.drops.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_threads() {
        let (one, other) = (Counters::default(), Counters::default());
        one.sent(2, 300);
        other.sent(1, 5);
        for counters in [&one, &other] {
            counters.drop_for(DropReason::Filtered);
        }
        let mut stats = DataplaneStats::default();
        one.add_to(&mut stats);
        other.add_to(&mut stats);
        assert_eq!((stats.tx_datagrams, stats.tx_datagram_bytes), (3, 305));
        let dropped: Vec<_> = stats.drops().filter(|(_, n)| *n > 0).collect();
        assert_eq!(dropped, [(DropReason::Filtered, 2)]);
    }
}
