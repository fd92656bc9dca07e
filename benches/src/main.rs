//! Instructions per packet, counted by valgrind: the same on each machine, however busy it is.
//!
//! `benches check` counts every scenario and fails when one has risen over the committed baseline, `benches renew` writes
//! a new baseline, `benches run SCENARIO STEPS` is what valgrind runs.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

mod baseline;
mod count;
mod pair;
mod scenario;

use anyhow::{Context as _, Result, bail};

use crate::scenario::SCENARIOS;

const USAGE: &str = "usage: benches check | renew | run SCENARIO STEPS";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", name, n_steps] => scenario::run(name, n_steps.parse().context("STEPS")?),
        ["check"] => {
            let report = baseline::compare(&baseline::read()?, &count_all()?)?;
            println!("{}", report.text);
            if report.has_risen {
                bail!(
                    "a packet costs more instructions than before; if that is meant, renew the baseline: make count-renew"
                );
            }
            Ok(())
        }
        ["renew"] => {
            let counts = count_all()?;
            baseline::write(&counts)?;
            println!("{}", baseline::table(&counts));
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

fn count_all() -> Result<Vec<(String, f64)>> {
    let counts = SCENARIOS.iter().map(|scenario| {
        let count = count::per_packet(scenario)?;
        Ok((scenario.name.to_owned(), count))
    });
    counts.collect()
}
