//! Running a scenario under valgrind.
//!
//! Two runs that differ in their steps alone: what start and setup cost, random keys among it, drops out of the difference.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::scenario::{N_STEPS_MAX, Scenario};

const N_STEPS_MIN: u32 = 8;
const LABEL: &str = "I   refs:";

/// Instructions for each packet of a scenario.
///
/// # Errors
/// When there is no valgrind, or the scenario fails.
pub(crate) fn per_packet(scenario: &Scenario) -> Result<f64> {
    let many = instructions(scenario.name, N_STEPS_MAX)?;
    let few = instructions(scenario.name, N_STEPS_MIN)?;
    let n_packets = (N_STEPS_MAX - N_STEPS_MIN) * scenario.n_packets;
    Ok((many - few) / f64::from(n_packets))
}

fn instructions(name: &str, n_steps: u32) -> Result<f64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=cachegrind", "--cache-sim=no"])
        .arg("--cachegrind-out-file=/dev/null")
        .arg(std::env::current_exe().context("the own program")?)
        .args(["run", name, &n_steps.to_string()]);
    let output = command
        .output()
        .context("valgrind: install it with `make tools`")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} under valgrind:\n{text}");
    parse(&text).with_context(|| format!("no `{LABEL}` in valgrind's words:\n{text}"))
}

/// The count in a line such as `==12== I   refs:      1,234,567`.
fn parse(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once(LABEL)?;
    let digits: String = rest
        .lines()
        .next()?
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn valgrinds_count_is_read() {
        let text = "==12== \n==12== I   refs:      1,234,567\n==12== more\n";
        assert_eq!(parse(text), Some(1_234_567.0));
        assert_eq!(parse("==12== Illegal instruction\n"), None);
    }
}
