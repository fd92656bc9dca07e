//! Faults of the network, of the coordinator, of relays and of meshd itself: how long until traffic passes again.

mod outage;
mod start;

use std::fmt::Write as _;

use anyhow::Result;

use super::{Bar, Outcome, ms};

/// What one round of a case gave, in the order of its bars.
type Round = Vec<f64>;

/// One thing that goes wrong, and what is asked then.
struct Case {
    name: &'static str,
    bars: &'static [(f64, &'static str, &'static str)],
    round: fn() -> Result<Round>,
}

const CASES: &[Case] = &[
    Case {
        name: "join",
        bars: &[(
            1_000.0,
            "ms",
            "join a mesh: `meshctl up` to the first ping answered",
        )],
        round: start::join,
    },
    Case {
        name: "no-udp",
        bars: &[(
            3_000.0,
            "ms",
            "UDP blocked: first ping answered, by the relay",
        )],
        round: start::without_udp,
    },
    Case {
        name: "proxy",
        bars: &[(
            3_000.0,
            "ms",
            "behind an HTTP proxy alone: first ping answered",
        )],
        round: start::behind_proxy,
    },
    Case {
        name: "dead-path",
        bars: &[
            (
                3_000.0,
                "ms",
                "direct path dead in mid-transfer: TCP stands still",
            ),
            (1_000.0, "ms", "it heals: direct again"),
        ],
        round: outage::dead_path,
    },
    Case {
        name: "relay",
        bars: &[
            (5_000.0, "ms", "relay killed and started: data again"),
            (0.0, "of 1,000 pings", "lost meanwhile by a direct path"),
        ],
        round: outage::relay,
    },
    Case {
        name: "home-relay",
        bars: &[(
            5_000.0,
            "ms",
            "home relay dead, another one alive: data again",
        )],
        round: outage::home_relay,
    },
    Case {
        name: "roam-client",
        bars: &[(
            1_000.0,
            "ms",
            "address of the receiver changes, 3 s outage: TCP moves after",
        )],
        round: outage::receiver_roams,
    },
    Case {
        name: "roam-server",
        bars: &[(
            1_000.0,
            "ms",
            "address of the sender changes, 3 s outage: TCP moves after",
        )],
        round: outage::sender_roams,
    },
    Case {
        name: "coordinator",
        bars: &[(
            2_000.0,
            "ms",
            "coordinator away, all nodes restarted: peers and names",
        )],
        round: start::without_coordinator,
    },
    Case {
        name: "kill",
        bars: &[(
            800.0,
            "ms",
            "meshd killed with -9 and started: first ping answered",
        )],
        round: start::killed,
    },
];

/// The names of the cases.
#[must_use]
pub fn names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.name).collect()
}

/// Measures all cases, or the named ones.
///
/// # Errors
/// None: a case that breaks has no value, and its reason stands below the table.
pub fn run(n_rounds: u32, only: &[String]) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let wanted = |case: &&Case| only.is_empty() || only.iter().any(|name| name == case.name);
    for case in CASES.iter().filter(wanted) {
        let mut values = vec![Vec::new(); case.bars.len()];
        for number in 1..=n_rounds {
            let round = (case.round)();
            if let Err(err) = &round {
                let _ = writeln!(outcome.text, "{}, round {number}: {err:#}\n", case.name);
            }
            let round = round.unwrap_or_default();
            for (index, values) in values.iter_mut().enumerate() {
                values.push(round.get(index).copied());
            }
        }
        for ((bound, unit, what), values) in case.bars.iter().zip(values) {
            outcome.bars.push(Bar::at_most(*bound, unit, what, values));
        }
    }
    Ok(outcome)
}
