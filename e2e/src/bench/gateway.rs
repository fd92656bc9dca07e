//! What a gateway adds to a request, beside nginx, HAProxy and LiteLLM in front of the same model server, and what it makes of faults.
//!
//! Everything runs on one core, so that a request costs no wake-up of another one and each peer has as much of the machine.

mod faults;
mod stage;
mod ways;

use anyhow::{Result, ensure};

use super::Outcome;
use stage::Pinned;

/// One measurement that can be asked for alone.
struct Case {
    name: &'static str,
    run: fn(Effort) -> Result<Outcome>,
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How often each way has its turn.
    pub n_rounds: u32,
    /// Seconds of load for each figure.
    pub seconds: u32,
}

const CASES: &[Case] = &[
    Case {
        name: "machine",
        run: ways::on_one_machine,
    },
    Case {
        name: "tunnel",
        run: ways::by_tunnel,
    },
    Case {
        name: "leave",
        run: faults::leave,
    },
    Case {
        name: "slow",
        run: |_| faults::slow(),
    },
    Case {
        name: "hosts",
        run: faults::hosts,
    },
];

/// The names of the cases.
#[must_use]
pub fn names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.name).collect()
}

/// Measures the cases that are named; all when none is.
///
/// # Errors
/// When a server does not come up.
pub fn run(effort: Effort, only: &[String]) -> Result<Outcome> {
    let _pinned = Pinned::to_one_core()?;
    let mut outcome = Outcome::default();
    for case in CASES {
        if !only.is_empty() && !only.iter().any(|name| name == case.name) {
            continue;
        }
        let one = (case.run)(effort)?;
        outcome.text += &one.text;
        outcome.bars.extend(one.bars);
    }
    ensure!(
        !outcome.text.is_empty() || !outcome.bars.is_empty(),
        "no case of the gateway was asked for"
    );
    Ok(outcome)
}
