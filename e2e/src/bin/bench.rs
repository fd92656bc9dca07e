//! `make bench`: the data plane, names and gateways beside others; writes `docs/benchmarks.md`. `bench [--quick] [PART]…`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::bench::{Outcome, bar, crowd, dns, gateway, loss, start, tunnels};
use e2e::net::is_root;
use e2e::tool;

/// One thing to measure, with its block in the guide.
struct Part {
    name: &'static str,
    about: &'static str,
    run: fn(Effort) -> Result<Outcome>,
}

/// How long to measure.
#[derive(Clone, Copy)]
struct Effort {
    n_rounds: u32,
    seconds: u32,
    is_quick: bool,
}

const FULL: Effort = Effort {
    n_rounds: 3,
    seconds: 4,
    is_quick: false,
};
const QUICK: Effort = Effort {
    n_rounds: 2,
    seconds: 2,
    is_quick: true,
};

const PARTS: &[Part] = &[
    Part {
        name: "tunnels",
        about: "Two namespaces joined by a veth pair of 1500 bytes; iperf3 with cubic through each tunnel in turn. CPU and switches count the daemons \
                of both ends; both ends, both iperf3 and the kernel share the machine's cores, so a throughput is a cost too.",
        run: |effort| {
            tunnels::run(tunnels::Effort {
                n_rounds: effort.n_rounds,
                seconds: effort.seconds,
            })
        },
    },
    Part {
        name: "start",
        about: "meshd is ended and started again with the state that it left, the coordinator away all the time; a ping each 2 ms to a \
                peer that runs on.",
        run: |effort| start::run(effort.n_rounds),
    },
    Part {
        name: "crowd",
        about: "The same two nodes twice: alone in their mesh, and in one of 1,001 registered nodes, 50 of which have a session with the \
                first and exchange packets steadily. iperf3, one stream.",
        run: |effort| crowd::run(effort.n_rounds, effort.seconds),
    },
    Part {
        name: "loss",
        about: "meshd and the newest wireguard-go send each other numbered datagrams of 64 bytes; every byte of each is checked on receipt.",
        run: |effort| {
            loss::run(if effort.is_quick {
                loss::Effort::QUICK
            } else {
                loss::Effort::FULL
            })
        },
    },
    Part {
        name: "dns",
        about: "1,000 model names, asked by dnsperf on the same machine. The service address is what users ask: each packet passes the \
                tunnel device twice each way.",
        run: |effort| dns::run(effort.n_rounds).map(Outcome::from),
    },
    Part {
        name: "gateway",
        about: "A stand-in model server that answers at once, or streams 64 chunks, one each 2 ms. Added times are against the direct way \
                of the same block.",
        run: |effort| gateway::run(effort.n_rounds).map(Outcome::from),
    },
];

fn main() -> Result<()> {
    ensure!(
        is_root(),
        "the benchmarks make network namespaces: run them as root"
    );
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let n_args = wanted.len();
    wanted.retain(|arg| arg != "--quick");
    let effort = if wanted.len() < n_args { QUICK } else { FULL };
    let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
    if let Some(other) = wanted.iter().find(|word| !names.contains(&word.as_str())) {
        bail!("no part {other}; there are {}", names.join(", "));
    }
    let path = tool::root().join("docs/benchmarks.md");
    let mut bars = Vec::new();
    for part in PARTS {
        if !wanted.is_empty() && !wanted.iter().any(|one| one == part.name) {
            continue;
        }
        let outcome = (part.run)(effort).with_context(|| part.name)?;
        let verdicts = bar::table(&outcome.bars);
        println!("{}\n\n{}\n{verdicts}", part.name, outcome.text);
        let option = if effort.is_quick { "--quick " } else { "" };
        let block = format!(
            "{}\n\nMeasured {} by `target/release/bench {option}{}`, {} rounds.\n\n{}\n{verdicts}",
            part.about,
            machine()?,
            part.name,
            effort.n_rounds,
            outcome.text
        );
        // Read anew: a part takes minutes, and somebody may have written meanwhile.
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        std::fs::write(&path, replace_block(&text, part.name, &block)?)?;
        bars.extend(outcome.bars);
    }
    let n_met = bars.iter().filter(|bar| bar.is_met()).count();
    println!(
        "{}\n{n_met} of {} bars are met",
        bar::table(&bars),
        bars.len()
    );
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
