//! Chooses among proven direct paths: a function from measurements to a choice. Pure.

use std::time::Duration;

use crate::event::Destination;

/// What is known of a proven path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) endpoint: Destination,
    pub(crate) is_lan: bool,
    /// Smoothed.
    pub(crate) rtt: Duration,
    /// The part of probes without an answer, 0 to 1.
    pub(crate) loss: f32,
}

/// An IPv6 path is as good as an IPv4 path that is so much faster: no NAT mapping of it can end.
const IPV6_BONUS: f64 = 0.85;
/// A LAN path is as good as any that is so much faster, unless it is really bad.
const LAN_BONUS: f64 = 0.3;
/// A lost probe costs a retransmission, which takes several round trips.
const LOSS_COST: f64 = 4.0;
/// Below this, differences are noise.
const FLOOR_S: f64 = 0.001;
/// A path in use gives way only to one that is better by this factor.
const HYSTERESIS: f64 = 0.75;

impl Measured {
    /// Seconds, in effect.
    fn cost(&self) -> f64 {
        let bonus = match (self.is_lan, self.endpoint.is_ipv6()) {
            (true, true) => LAN_BONUS * IPV6_BONUS,
            (true, false) => LAN_BONUS,
            (false, true) => IPV6_BONUS,
            (false, false) => 1.0,
        };
        let loss = f64::from(self.loss.clamp(0.0, 1.0));
        self.rtt.as_secs_f64().max(FLOOR_S) * (1.0 + LOSS_COST * loss) * bonus
    }
}

/// The best path; the current one unless another is clearly better.
pub(crate) fn select(
    current: Option<&Measured>,
    others: impl IntoIterator<Item = Measured>,
) -> Option<Destination> {
    let best = others
        .into_iter()
        .map(|path| (path.cost(), path.endpoint))
        // Endpoints break ties, so that one input has one output.
        .min_by(|(a, at_a), (b, at_b)| a.total_cmp(b).then(at_a.cmp(at_b)));
    match (current, best) {
        (Some(current), Some((cost, endpoint))) if cost < current.cost() * HYSTERESIS => {
            Some(endpoint)
        }
        (Some(current), _) => Some(current.endpoint),
        (None, best) => best.map(|(_, endpoint)| endpoint),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(endpoint: &str, is_lan: bool, rtt_ms: u64, loss: f32) -> Measured {
        Measured {
            endpoint: Destination::Udp(endpoint.parse().unwrap()),
            is_lan,
            rtt: Duration::from_millis(rtt_ms),
            loss,
        }
    }

    #[test]
    fn the_choice_in_each_case() {
        let v4 = |rtt_ms, loss| path("203.0.113.1:1", false, rtt_ms, loss);
        let v6 = |rtt_ms, loss| path("[2001:db8::1]:1", false, rtt_ms, loss);
        let lan = |rtt_ms, loss| path("192.168.1.2:1", true, rtt_ms, loss);
        let rows = [
            (
                "as good, IPv6 wins",
                None,
                vec![v4(20, 0.0), v6(20, 0.0)],
                v6(0, 0.0),
            ),
            (
                "far slower IPv6 does not",
                None,
                vec![v4(20, 0.0), v6(40, 0.0)],
                v4(0, 0.0),
            ),
            (
                "the LAN wins",
                None,
                vec![v4(5, 0.0), lan(5, 0.0)],
                lan(0, 0.0),
            ),
            (
                "a LAN that loses does not",
                None,
                vec![v4(5, 0.0), lan(8, 0.9)],
                v4(0, 0.0),
            ),
            (
                "loss counts",
                None,
                vec![v4(20, 0.0), v6(15, 0.5)],
                v4(0, 0.0),
            ),
            (
                "little is gained: stay",
                Some(v4(20, 0.0)),
                vec![v6(20, 0.0)],
                v4(0, 0.0),
            ),
            (
                "much is gained: go",
                Some(v4(20, 0.0)),
                vec![lan(2, 0.0)],
                lan(0, 0.0),
            ),
        ];
        for (name, current, others, expected) in rows {
            let chosen = select(current.as_ref(), others);
            assert_eq!(chosen, Some(expected.endpoint), "{name}");
        }
        assert_eq!(select(None, []), None);
    }

    proptest! {
        #[test]
        fn two_paths_never_take_turns(rtts in (1..500u64, 1..500u64), losses in (0..100u8, 0..100u8), lans: (bool, bool)) {
            let a = path("203.0.113.1:1", lans.0, rtts.0, f32::from(losses.0) / 100.0);
            let b = path("[2001:db8::1]:1", lans.1, rtts.1, f32::from(losses.1) / 100.0);
            let leaves_a = select(Some(&a), [b]) == Some(b.endpoint);
            let leaves_b = select(Some(&b), [a]) == Some(a.endpoint);
            prop_assert!(!(leaves_a && leaves_b));
        }
    }
}
