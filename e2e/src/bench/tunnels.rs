//! Tunnels side by side, by `e2e/bench/vpnbench.py`: on a plain link, and on one that cuts super-packets.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome, chart, median};
use crate::process::{ensure_success, stdout};
use crate::tool;

/// The release of the day, built with Go.
pub(super) const NEWEST: &str = "wireguard-go (newest)";
const PACKAGED: &str = "wireguard-go (Debian)";
const BORINGTUN: &str = "boringtun-cli";
const GOTATUN: &str = "gotatun";
const NEBULA: &str = "nebula";
const MESHD: &str = "meshd";
const PEERS: [&str; 5] = [NEWEST, PACKAGED, BORINGTUN, GOTATUN, NEBULA];

/// Where the chart goes, from the root of the repository.
pub const CHART: &str = "docs/benchmarks/tunnels.svg";

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How often each tunnel has its turn.
    pub n_rounds: u32,
    /// Of each TCP cell.
    pub seconds: u32,
}

/// All rounds of one pass over the tunnels.
pub(super) struct Pass(Value);

impl Pass {
    /// Values of a cell by round; `path` is such as `["tcp1f", "gbps"]`.
    fn rounds(&self, tunnel: &str, path: &[&str]) -> Vec<Option<f64>> {
        let rounds = self.0["results"][tunnel].as_array();
        rounds.map_or_else(Vec::new, |rounds| {
            rounds
                .iter()
                .map(|round| {
                    let cell = path.iter().fold(round, |value, key| &value[*key]);
                    cell.as_f64()
                })
                .collect()
        })
    }

    pub(super) fn median(&self, tunnel: &str, path: &[&str]) -> Option<f64> {
        let values: Vec<f64> = self.rounds(tunnel, path).into_iter().flatten().collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// meshd's value over another's, round by round, so that a drifting machine does not show.
    fn ratios(&self, other: &str, path: &[&str]) -> Vec<Option<f64>> {
        let pairs = self
            .rounds(MESHD, path)
            .into_iter()
            .zip(self.rounds(other, path));
        pairs.map(|(own, other)| Some(own? / other?)).collect()
    }

    /// The peer with the best median.
    fn best(&self, path: &[&str], is_more_better: bool) -> Option<&'static str> {
        let of = |peer: &&str| self.median(peer, path);
        let measured = PEERS.into_iter().filter(|peer| of(peer).is_some());
        let by_median = |a: &&str, b: &&str| of(a).unwrap_or(0.0).total_cmp(&of(b).unwrap_or(0.0));
        if is_more_better {
            measured.max_by(by_median)
        } else {
            measured.min_by(by_median)
        }
    }
}

/// Measures both links and draws the chart.
///
/// # Errors
/// When a tool is missing or a tunnel never comes up.
pub fn run(effort: Effort) -> Result<Outcome> {
    let (plain_table, plain) = pass("tunnels", &PEERS, effort, &["--raw"])?;
    let (cut_table, cut) = pass(
        "tunnels-segmented",
        &[NEWEST, BORINGTUN, GOTATUN, NEBULA],
        effort,
        &["--segmented", "--cells", "tcp"],
    )?;
    draw(&plain, &cut)?;
    Ok(Outcome {
        text: format!(
            "![throughput and CPU of the tunnels](benchmarks/tunnels.svg)\n\nOn a plain link:\n\n{plain_table}\nOn a link that cuts super-packets into wire-size ones, as a plain network card does:\n\n{cut_table}"
        ),
        bars: bars(&plain, &cut),
    })
}

pub(super) fn pass(
    name: &str,
    peers: &[&str],
    effort: Effort,
    more: &[&str],
) -> Result<(String, Pass)> {
    let root = tool::root();
    let out = root.join(format!("e2e/out/{name}.json"));
    std::fs::create_dir_all(root.join("e2e/out"))?;
    let meshd = tool::program("meshd")?;
    let bin = meshd.parent().context("no folder")?;
    let hook = |name: &str| root.join("e2e/bench").join(name).display().to_string();
    let mut command = Command::new(tool::python()?);
    command.arg(root.join("e2e/bench/vpnbench.py")).args(more);
    for peer in peers {
        let (option, what) = match *peer {
            NEBULA => ("--hook", hook("nebula-hook.sh")),
            peer => ("--wg", wireguard(&root, peer)?),
        };
        command.args([option, &format!("{peer}={what}")]);
    }
    command
        .args(["--hook", &format!("{MESHD}={}", hook("proxima-hook.sh"))])
        .args(["--coord", MESHD, "--own-addr", MESHD])
        .args(["--rounds", &effort.n_rounds.to_string()])
        .args(["--secs", &effort.seconds.to_string()])
        .args(["--pings", "600", "--chats", "150"])
        .arg("--out")
        .arg(&out)
        .env("PROXIMA_BIN", bin)
        .stderr(Stdio::inherit());
    let output = command.output()?;
    ensure_success("vpnbench.py", &output)?;
    let pass = Pass(serde_json::from_slice(&std::fs::read(&out)?)?);
    let table = stdout(&output);
    for tunnel in peers.iter().chain([&MESHD]) {
        ensure!(
            pass.median(tunnel, &["tcp1f", "gbps"]).is_some(),
            "{tunnel} never came up:\n{table}"
        );
    }
    Ok((table, pass))
}

/// The command of a WireGuard program.
fn wireguard(root: &Path, peer: &str) -> Result<String> {
    let program = match peer {
        NEWEST => "wireguard",
        PACKAGED => return Ok("wireguard-go -f {if}".to_owned()),
        peer => peer,
    };
    let path = root.join(".tools/bin").join(program);
    ensure!(
        path.exists(),
        "{} is missing: run `make bench-tools`",
        path.display()
    );
    let option = if peer == NEWEST {
        "-f"
    } else {
        "--disable-drop-privileges -f"
    };
    Ok(format!("{} {option} {{if}}", path.display()))
}

fn bars(plain: &Pass, cut: &Pass) -> Vec<Bar> {
    let ways = [("f", "A to B"), ("r", "B to A")];
    let mut bars = Vec::new();
    let mut faster = |pass: &Pass, bound, other: &str, n_streams: u32, link: &str| {
        let streams = if n_streams == 1 {
            "one stream"
        } else {
            "four streams"
        };
        for (letter, way) in ways {
            let cell = format!("tcp{n_streams}{letter}");
            bars.push(Bar::at_least(
                bound,
                &format!("× {other}"),
                &format!("TCP, {streams}, {way}{link}"),
                pass.ratios(other, &[&cell, "gbps"]),
            ));
        }
    };
    faster(plain, 1.8, NEWEST, 1, "");
    faster(plain, 3.5, GOTATUN, 1, "");
    faster(plain, 3.5, BORINGTUN, 1, "");
    faster(plain, 1.7, NEWEST, 4, "");
    faster(cut, 1.6, NEWEST, 1, ", link that cuts");
    faster(cut, 1.6, NEWEST, 4, ", link that cuts");

    let ratio = |other: Option<&str>, path: &[&str]| {
        let unit = format!("× {}", other.unwrap_or("nobody"));
        (
            unit,
            other.map_or_else(Vec::new, |other| plain.ratios(other, path)),
        )
    };
    let (unit, ratios) = ratio(Some(NEWEST), &["tcp1f", "cpu_gb"]);
    bars.push(Bar::at_most(
        0.5,
        &unit,
        "CPU seconds per GB, both ends",
        ratios,
    ));
    let cell = ["udp0", "recv_pps"];
    let (unit, ratios) = ratio(plain.best(&cell, true), &cell);
    bars.push(Bar::at_least(
        1.2,
        &unit,
        "UDP of 200 bytes, delivered when saturated",
        ratios,
    ));
    bars.push(Bar::at_most(
        0.5,
        "%",
        "UDP of 200 bytes, lost at 50,000/s",
        plain.rounds(MESHD, &["udp80", "loss"]),
    ));
    for quantile in ["p50", "p99"] {
        let cell = ["ping", quantile];
        let (unit, ratios) = ratio(plain.best(&cell, false), &cell);
        bars.push(Bar::at_most(
            1.0,
            &unit,
            &format!("ping {quantile}, idle"),
            ratios,
        ));
    }
    let (unit, ratios) = ratio(Some(NEWEST), &["ping_load", "p99"]);
    bars.push(Bar::at_most(0.5, &unit, "ping p99, beside TCP", ratios));
    bars.push(Bar::at_most(
        5.0,
        "ms",
        "chat stream beside a download of the same peer, p99 added",
        plain.rounds(MESHD, &["stream_added"]),
    ));
    for (bound, key, when) in [(16.0, "rss_idle", "idle"), (40.0, "rss_peak", "under load")] {
        bars.push(Bar::at_most(
            bound,
            "MiB",
            &format!("memory (RSS), {when}"),
            plain.rounds(MESHD, &[key]),
        ));
    }
    bars
}

fn draw(plain: &Pass, cut: &Pass) -> Result<()> {
    let both_ways = |pass: &Pass, n_streams: u32, tunnel: &str| -> Option<f64> {
        let there = pass.median(tunnel, &[&format!("tcp{n_streams}f"), "gbps"])?;
        let back = pass.median(tunnel, &[&format!("tcp{n_streams}r"), "gbps"])?;
        Some(f64::midpoint(there, back))
    };
    let tunnels = [MESHD, NEWEST, GOTATUN, BORINGTUN, NEBULA, PACKAGED];
    let panels = [
        chart::Panel {
            title: "TCP, Gbit/s (mean of both directions; more is better)",
            series: vec![
                (
                    "one stream",
                    tunnels.map(|name| both_ways(plain, 1, name)).to_vec(),
                ),
                (
                    "four streams",
                    tunnels.map(|name| both_ways(plain, 4, name)).to_vec(),
                ),
                (
                    "one stream, link that cuts super-packets",
                    tunnels.map(|name| both_ways(cut, 1, name)).to_vec(),
                ),
            ],
        },
        chart::Panel {
            title: "CPU seconds of both daemons per GB, one stream (less is better)",
            series: vec![(
                "plain link",
                tunnels
                    .map(|name| plain.median(name, &["tcp1f", "cpu_gb"]))
                    .to_vec(),
            )],
        },
    ];
    let path = tool::root().join(CHART);
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    std::fs::write(&path, chart::svg(&tunnels, &panels)).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{MESHD, Pass, bars};
    use crate::bench::bar::Bound;

    fn round(gbps: f64, recv_pps: f64) -> Value {
        let tcp = json!({ "gbps": gbps, "cpu_gb": 1.0 });
        json!({ "tcp1f": tcp, "tcp1r": tcp, "tcp4f": tcp, "tcp4r": tcp, "udp0": { "recv_pps": recv_pps } })
    }

    fn pass(own: f64) -> Pass {
        Pass(json!({ "results": {
            "wireguard-go (newest)": [round(1.0, 10.0), round(10.0, 10.0), round(2.0, 10.0)],
            "boringtun-cli": [round(0.5, 20.0), json!({ "error": "no" }), round(1.0, 20.0)],
            "meshd": [round(own, 30.0), round(10.0 * own, 30.0), round(2.0 * own, 30.0)],
        }}))
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let pass = pass(2.0);
        let ratios = pass.ratios("wireguard-go (newest)", &["tcp1f", "gbps"]);
        assert_eq!(ratios, [Some(2.0); 3]);
        let ratios = pass.ratios("boringtun-cli", &["tcp1f", "gbps"]);
        assert_eq!(ratios, [Some(4.0), None, Some(4.0)]);
    }

    #[test]
    fn the_best_peer_is_not_meshd() {
        let best = pass(2.0).best(&["udp0", "recv_pps"], true);
        assert_eq!(best, Some("boringtun-cli"));
        assert_ne!(best, Some(MESHD));
        let slowest = pass(2.0).best(&["udp0", "recv_pps"], false);
        assert_eq!(slowest, Some("wireguard-go (newest)"));
    }

    #[test]
    fn a_bar_fails_when_its_ratio_is_missed_or_missing() {
        let verdict = |own: f64, what: &str| {
            let bars = bars(&pass(own), &pass(own));
            let bar = bars.iter().find(|bar| bar.what == what).unwrap().clone();
            bar.is_met()
        };
        assert!(verdict(1.9, "TCP, one stream, A to B"));
        assert!(!verdict(1.75, "TCP, one stream, A to B"));
        assert!(verdict(1.75, "TCP, four streams, B to A"));
        assert!(!verdict(1.5, "TCP, four streams, B to A, link that cuts"));
        assert!(!verdict(9.0, "ping p50, idle"), "nothing was measured");
        let bars = bars(&pass(2.0), &pass(2.0));
        assert!(bars.iter().any(|bar| bar.bound == Bound::AtMost(0.5)));
    }
}
