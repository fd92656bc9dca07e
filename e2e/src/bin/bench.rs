//! `make bench`: the data plane, names and gateways beside others; writes `docs/benchmarks.md`. `bench [--quick]
//! [--rounds N] [PART]…`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::bench::{
    Outcome, bar, catalogue, crowd, dns, faults, gateway, idle, loss, nats, relay, start,
    strangers, streams, tunnels, userspace, weather,
};
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
        name: "userspace",
        about: "A node in userspace mode sends to one with an interface, and receives, one stream through its SOCKS5 proxy on loopback, over \
                two veth pairs and a router; beside it, in each round, the newest wireguard-go with an interface at both ends, as in the part \
                above.",
        run: |effort| {
            userspace::run(tunnels::Effort {
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
        name: "nats",
        about: "Two hosts, each behind a router of the named kind (RFC 4787: independent, address and port are what its filter looks at, with \
                endpoint-independent mapping; carrier is a second router behind a home one), that never talked before. Times are from the \
                first packet, the start of the asking program included.",
        run: |_| nats::run(),
    },
    Part {
        name: "faults",
        about: "Each round in a lab of its own, made anew. A ping each 20 ms, or a TCP stream with a byte each 20 ms; times are those \
                that a user would see, the start of the asking program included.",
        run: |effort| faults::run(effort.n_rounds, &cases()),
    },
    Part {
        name: "weather",
        about: "A router that loses packets at random, in both directions alike, and has each take 5 ms; the link carries packets of wire \
                size alone. Cubic at both ends, with the tunnel and without it in turn; at 20 % half a minute of each, for all would take \
                an hour. Then a router that gives each packet twice and in another order.",
        run: |effort| {
            weather::run(if effort.is_quick {
                weather::Effort::QUICK
            } else {
                weather::Effort::FULL
            })
        },
    },
    Part {
        name: "strangers",
        about: "A stranger on the same machine, with a core of the two to himself, against one of two nodes that talk to each other.",
        run: |effort| {
            let (n_garbage, flood) = if effort.is_quick {
                (1_000_000, 10)
            } else {
                (10_000_000, 30)
            };
            strangers::run(strangers::Effort { n_garbage, flood })
        },
    },
    Part {
        name: "idle",
        about: "A node of a mesh of 1,001, of whose peers none talks to it; CPU time is that of all its threads, as the scheduler counts it. \
                Then two nodes, one of which is stopped (SIGSTOP) and goes on.",
        run: |effort| {
            let (watch, stop) = if effort.is_quick {
                (40, 20)
            } else {
                (120, 600)
            };
            idle::run(idle::Effort {
                watch: Duration::from_secs(watch),
                stop: Duration::from_secs(stop),
            })
        },
    },
    Part {
        name: "relay",
        about: "Two nodes and a coordinator in three namespaces behind a router, once for each way: one TCP stream by iperf3 and beside it 300 \
                pings, one each fiftieth of a second. CPU counts both daemons and the coordinator, whose relay it is; all of them, both iperf3 \
                and the kernel share the machine's cores.",
        run: |effort| relay::run(effort.n_rounds, effort.seconds),
    },
    Part {
        name: "streams",
        about: "Four hosts: two with an Ollama, one with a llama-server and one that speaks OpenAI's first calls alone, each with a model that \
                counts; three guests ask for the streams by Ollama's and OpenAI's API, twelve at once. All the while one of the hosts, or its \
                model server, is killed (SIGKILL) and started again.",
        run: |effort| streams::run(if effort.is_quick { 600 } else { 10_000 }),
    },
    Part {
        name: "catalogue",
        about: "A real coordinator and two real guests; the hosts are members that report their models as meshd does. Times are from the \
                moment at which a host begins to tell the coordinator.",
        run: |effort| catalogue::run(effort.n_rounds),
    },
    Part {
        name: "dns",
        about: "1,000 model names, asked by dnsperf on the same machine. The service address is what users ask: each packet passes the \
                tunnel device twice each way.",
        run: |effort| dns::run(effort.n_rounds).map(Outcome::from),
    },
    Part {
        name: "gateway",
        about: "A stand-in model server that answers at once, or streams 64 chunks, one each 2 ms. Clients, model server and gateways share \
                one core; clients are closed loops over kept connections. Added times and CPU are against the direct way of the same \
                block, in the same round. The threads of meshd's gateway have the priority that they give themselves and the packages \
                let them have (batch, nice -4); all else has the usual one.",
        run: |effort| {
            gateway::run(
                gateway::Effort {
                    n_rounds: effort.n_rounds,
                    seconds: effort.seconds.div_ceil(2),
                },
                &cases(),
            )
        },
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
    let mut effort = if wanted.len() < n_args { QUICK } else { FULL };
    let mut option = if effort.is_quick { "--quick " } else { "" }.to_owned();
    if let Some(at) = wanted.iter().position(|arg| arg == "--rounds") {
        let told = wanted.drain(at..(at + 2).min(wanted.len())).nth(1);
        let n_rounds = told.as_deref().and_then(|n| n.parse().ok());
        effort.n_rounds = n_rounds
            .filter(|n| *n > 0)
            .context("--rounds takes a number from 1 on, as in: bench --rounds 5 gateway")?;
        option += &format!("--rounds {} ", effort.n_rounds);
    }
    let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
    if let Some(other) = wanted.iter().find(|word| !names.contains(&word.as_str())) {
        bail!("no part {other}; there are {}", names.join(", "));
    }
    let known = [faults::names(), gateway::names()].concat();
    if let Some(other) = cases().iter().find(|case| !known.contains(&case.as_str())) {
        bail!("no case {other}; there are {}", known.join(", "));
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
        let block = format!(
            "{}\n\nMeasured {} by `target/release/bench {option}{}`, {} rounds.\n\n{}\n{verdicts}",
            part.about,
            machine()?,
            part.name,
            effort.n_rounds,
            outcome.text
        );
        if !cases().is_empty() {
            // A part of a part is for the one who looks for a fault, not for the guide.
            bars.extend(outcome.bars);
            continue;
        }
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

/// The cases of the faults or of the gateway that are asked for, comma-separated in `CASES`; all when there are none.
fn cases() -> Vec<String> {
    let named = std::env::var("CASES").unwrap_or_default();
    let names = named.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
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
