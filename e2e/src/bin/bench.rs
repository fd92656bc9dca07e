//! `make bench`: tunnels, names and gateways beside others; writes `docs/benchmarks.md`. `bench [--quick] [tunnels|dns|gateway]…`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::net::is_root;
use e2e::{bench, tool};

const N_ROUNDS: u32 = 3;
const SECONDS: u32 = 5;
/// Rounds and seconds of `--quick`.
const QUICK: (u32, u32) = (2, 3);
const PARTS: [(&str, &str); 3] = [
    (
        "tunnels",
        "Two namespaces joined by a veth pair of 1500 bytes; iperf3 through each tunnel in turn. CPU counts the daemons of both ends; \
         both ends, both iperf3 and the kernel share the machine's cores, so a throughput is a cost too.",
    ),
    (
        "dns",
        "1,000 model names, asked by dnsperf on the same machine. The service address is what users ask: each packet passes the \
         tunnel device twice each way.",
    ),
    (
        "gateway",
        "A stand-in model server that answers at once, or streams 64 chunks, one each 2 ms. Added times are against the direct way \
         of the same block.",
    ),
];

fn main() -> Result<()> {
    ensure!(
        is_root(),
        "the benchmarks make network namespaces: run them as root"
    );
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let n_args = wanted.len();
    wanted.retain(|arg| arg != "--quick");
    let is_quick = wanted.len() < n_args;
    let (n_rounds, seconds) = if is_quick { QUICK } else { (N_ROUNDS, SECONDS) };
    let path = tool::root().join("docs/benchmarks.md");
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (part, about) in PARTS {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == part) {
            continue;
        }
        let table = match part {
            "tunnels" => bench::tunnels(n_rounds, seconds)?,
            "dns" => bench::dns::run(n_rounds)?,
            _ => bench::gateway::run(n_rounds)?,
        };
        println!("{part}\n\n{table}");
        let option = if is_quick { "--quick " } else { "" };
        let block = format!(
            "{about}\n\nMeasured {} by `target/release/bench {option}{part}`: medians of {n_rounds} rounds.\n\n{table}",
            machine()?
        );
        text = replace_block(&text, part, &block)?;
        std::fs::write(&path, &text)?;
    }
    Ok(())
}

/// The day and the machine, without which a figure says nothing.
fn machine() -> Result<String> {
    let word = |program: &str, args: &[&str]| -> Result<String> {
        let output = Command::new(program).args(args).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpu = cpu.map_or("unknown CPU", |(_, name)| name);
    Ok(format!(
        "{} at {}, {} cores of {cpu}, Linux {}",
        word("date", &["-u", "+%Y-%m-%d"])?,
        word("git", &["describe", "--always"])?,
        word("nproc", &[])?,
        word("uname", &["-r"])?
    ))
}

/// Puts a block between its marks.
fn replace_block(text: &str, part: &str, block: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- begin {part} -->"),
        format!("<!-- end {part} -->"),
    );
    let Some((head, rest)) = text.split_once(&begin) else {
        bail!("docs/benchmarks.md has no `{begin}`");
    };
    let (_, tail) = rest
        .split_once(&end)
        .with_context(|| format!("no `{end}`"))?;
    Ok(format!("{head}{begin}\n{block}\n{end}{tail}"))
}
