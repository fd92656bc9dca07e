//! Measurements against others, for `make bench`: each in turn within one run, because only ratios of one run hold.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::ensure_success;
use crate::tool;

pub mod dns;
pub mod gateway;

/// The release of the day, built with Go where there is one.
const NEWEST: &str = "wireguard-go (newest)";
const PACKAGED: &str = "wireguard-go (Debian)";

/// The median of some values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Tunnels side by side, by `e2e/bench/vpnbench.py`.
///
/// # Errors
/// When a tunnel does not come up.
pub fn tunnels(n_rounds: u32, seconds: u32) -> Result<String> {
    let root = tool::root();
    let out = root.join("e2e/out/tunnels.json");
    std::fs::create_dir_all(root.join("e2e/out"))?;
    let bin: PathBuf = tool::program("meshd")?
        .parent()
        .context("no folder")?
        .to_owned();
    let mut command = std::process::Command::new(tool::python()?);
    command.arg(root.join("e2e/bench/vpnbench.py")).arg("--raw");
    let newest = root.join(".tools/bin/wireguard");
    if newest.exists() {
        command.args(["--wg", &format!("{NEWEST}={} -f {{if}}", newest.display())]);
    }
    let boringtun = root.join(".tools/bin/boringtun-cli");
    command
        .args(["--wg", &format!("{PACKAGED}=wireguard-go -f {{if}}")])
        .args([
            "--wg",
            &format!(
                "boringtun-cli={} --disable-drop-privileges -f {{if}}",
                boringtun.display()
            ),
        ])
        .arg("--hook")
        .arg(format!(
            "meshd={}",
            root.join("e2e/bench/proxima-hook.sh").display()
        ))
        .args([
            "--coord",
            "meshd",
            "--own-addr",
            "meshd",
            "--quiet-wait",
            "20",
        ])
        .args([
            "--rounds",
            &n_rounds.to_string(),
            "--secs",
            &seconds.to_string(),
        ])
        .arg("--out")
        .arg(&out)
        .env("PROXIMA_BIN", bin)
        .stderr(std::process::Stdio::inherit());
    let output = command.output()?;
    ensure_success("vpnbench.py", &output)?;
    let results: Value = serde_json::from_slice(&std::fs::read(&out)?)?;
    let table = crate::process::stdout(&output);
    let ratios = tunnel_ratios(&results);
    ensure!(
        !ratios.contains("NaN"),
        "a tunnel did not come up:\n{table}"
    );
    Ok(format!("{table}\n{ratios}"))
}

/// Throughput and CPU as ratios to wireguard-go, round by round, so that a drifting machine does not show. Rounds that ran beside
/// other work count only where all did.
fn tunnel_ratios(results: &Value) -> String {
    let rounds = |name: &str| {
        let rounds = results["results"][name].as_array();
        rounds.cloned().unwrap_or_default()
    };
    let other = if rounds(NEWEST).is_empty() {
        PACKAGED
    } else {
        NEWEST
    };
    let mut text = format!(
        "| ratio to {other}, median of rounds | rounds | throughput, 1 stream | throughput, 4 streams | CPU s/GB |\n| --- | --- | --- | --- | --- |\n"
    );
    for name in ["meshd", "boringtun-cli", PACKAGED] {
        if name == other {
            continue;
        }
        let pairs: Vec<_> = rounds(name).into_iter().zip(rounds(other)).collect();
        let is_quiet = |pair: &&(Value, Value)| pair.0["noisy"] != true && pair.1["noisy"] != true;
        let mut counted: Vec<_> = pairs.iter().filter(is_quiet).collect();
        let n_quiet = counted.len();
        if n_quiet == 0 {
            counted = pairs.iter().collect();
        }
        let ratio = |cell: &str, key: &str| {
            let ratios = counted.iter().filter_map(|(own, other)| {
                Some(own[cell][key].as_f64()? / other[cell][key].as_f64()?)
            });
            median(&ratios.collect::<Vec<_>>())
        };
        text += &format!(
            "| {name} | {n_quiet} quiet of {} | {:.2} | {:.2} | {:.2} |\n",
            pairs.len(),
            ratio("tcp1f", "gbps"),
            ratio("tcp4f", "gbps"),
            ratio("tcp1f", "cpu_gb")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{median, tunnel_ratios};

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let round = |gbps: f64| json!({ "tcp1f": { "gbps": gbps, "cpu_gb": 1.0 }, "tcp4f": { "gbps": gbps } });
        let results = json!({ "results": {
            "wireguard-go (Debian)": [round(1.0), round(10.0), round(2.0)],
            "meshd": [round(2.0), round(20.0), round(4.0)],
            "boringtun-cli": [round(0.5), round(5.0), round(1.0)],
        }});
        let text = tunnel_ratios(&results);
        assert!(
            text.contains("| meshd | 3 quiet of 3 | 2.00 | 2.00 | 1.00 |"),
            "{text}"
        );
        assert!(
            text.contains("| boringtun-cli | 3 quiet of 3 | 0.50 | 0.50 | 1.00 |"),
            "{text}"
        );
    }
}
