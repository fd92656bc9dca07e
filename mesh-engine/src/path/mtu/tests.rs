//! A path that passes so much, searched and watched: sound, shrunken, lossy.

use proptest::prelude::*;

use super::*;

/// A path that passes packets of some length and answers after a while.
struct Net {
    mtu: PathMtu,
    now_ms: u64,
    rtt_ms: u64,
    passes: u16,
    most: u16,
    is_sending: bool,
    n_probes: usize,
}

impl Net {
    fn new(passes: u16, most: u16) -> Self {
        Self {
            mtu: PathMtu::default(),
            now_ms: 1000,
            rtt_ms: 20,
            passes,
            most,
            is_sending: true,
            n_probes: 0,
        }
    }

    /// Looks each 250 ms, with answers in between but for what `is_lost` says.
    fn run(&mut self, span_ms: u64, mut is_lost: impl FnMut() -> bool) {
        let end = self.now_ms + span_ms;
        while self.now_ms < end {
            let fare = Fare {
                now_ms: self.now_ms,
                rtt_ms: self.rtt_ms,
                heard_ms: self.now_ms,
                last_data_tx_ms: if self.is_sending { self.now_ms } else { 0 },
                most: self.most,
            };
            for length in self.mtu.look(&fare) {
                self.n_probes += 1;
                assert!(length <= self.most && length % 16 == 0, "{length}");
                if length <= self.passes && !is_lost() {
                    self.mtu.on_answer(length, self.now_ms + self.rtt_ms);
                }
            }
            self.now_ms += 250;
        }
    }
}

#[test]
fn a_path_of_ethernet_is_known_after_one_round_trip() {
    let mut net = Net::new(1440, 1440);
    net.run(250, || false);
    assert_eq!(net.mtu.confirmed(), 1440);
    net.run(250, || false);
    assert!(net.mtu.is_settled());
    assert!(net.n_probes <= 4, "{}", net.n_probes);
}

#[test]
fn each_length_is_found_within_seconds() {
    for passes in (MTU_MIN..=9000).step_by(7) {
        let mut net = Net::new(passes, 8928);
        net.run(12_000, || false);
        let best = lengths().filter(|length| *length <= passes).max().unwrap();
        assert_eq!(net.mtu.confirmed(), best, "of {passes}");
        assert!(net.mtu.is_settled(), "of {passes}");
        assert!(net.n_probes < 80, "{} for {passes}", net.n_probes);
    }
}

#[test]
fn a_black_hole_is_left_within_three_seconds() {
    let mut net = Net::new(1440, 1440);
    net.run(10_000, || false);
    net.passes = 1300;
    net.run(2500, || false);
    assert!(net.mtu.confirmed() <= 1300, "{}", net.mtu.confirmed());
    net.run(3000, || false);
    assert_eq!(net.mtu.confirmed(), 1296);
}

#[test]
fn a_black_hole_below_the_base_is_left_as_soon() {
    let mut net = Net::new(1440, 1440);
    net.run(10_000, || false);
    net.passes = 900;
    net.run(2500, || false);
    assert!(net.mtu.confirmed() <= 900, "{}", net.mtu.confirmed());
    net.run(3000, || false);
    assert_eq!(net.mtu.confirmed(), 768);
}

#[test]
fn interfaces_that_take_less_are_followed_at_once() {
    let mut net = Net::new(8928, 8928);
    net.run(10_000, || false);
    assert_eq!(net.mtu.confirmed(), 8928);
    (net.most, net.passes) = (1440, 1440);
    net.run(250, || false);
    assert_eq!(net.mtu.confirmed(), 1440);
    (net.most, net.passes) = (1280, 1280);
    net.run(5000, || false);
    assert_eq!(net.mtu.confirmed(), 1280);
}

#[test]
fn a_path_that_takes_more_is_found_out_later() {
    let mut net = Net::new(1300, 1440);
    net.run(10_000, || false);
    assert_eq!(net.mtu.confirmed(), 1296);
    net.passes = 1440;
    net.run(130_000, || false);
    assert_eq!(net.mtu.confirmed(), 1440);
}

#[test]
fn a_path_without_data_is_not_checked_and_a_dead_one_keeps_its_length() {
    let mut net = Net::new(1440, 1440);
    net.is_sending = false;
    net.run(5000, || false);
    let n_probes = net.n_probes;
    net.run(20_000, || false);
    assert_eq!(net.n_probes, n_probes);

    let mut mtu = net.mtu;
    for now_ms in (30_000..60_000).step_by(250) {
        let fare = Fare {
            now_ms,
            rtt_ms: 20,
            heard_ms: 26_000,
            last_data_tx_ms: now_ms,
            most: 1440,
        };
        let _ = mtu.look(&fare);
    }
    assert_eq!(mtu.confirmed(), 1440);
}

proptest! {
    #[test]
    fn loss_costs_time_alone(seed in any::<u64>(), passes in MTU_MIN..=1500_u16) {
        let mut net = Net::new(passes, 1440);
        let mut state = seed | 1;
        let mut is_lost = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.is_multiple_of(5)
        };
        for _ in 0..40 {
            net.run(1000, &mut is_lost);
            // What is used passes, or is found out soon: the base is not proven before it is used.
            prop_assert!(net.mtu.tries.len() <= 20);
        }
        net.run(1_500_000, || false);
        let best = lengths().filter(|length| *length <= passes.min(1440)).max().unwrap();
        prop_assert_eq!(net.mtu.confirmed(), best);
    }
}
