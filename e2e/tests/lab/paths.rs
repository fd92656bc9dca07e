//! Nodes behind NATs of every kind find each other, and keep talking when a path dies.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::net::nat::Nat;
use e2e::net::{Lab, scenario};
use e2e::process::{Process, ensure_success};
use e2e::tool;
use e2e::wait::{time_until, wait_until};
use mesh_proto::local::PathStatus;

/// From the first packet to its answer, when two nodes have never talked.
const FIRST_DATA: Duration = Duration::from_secs(1);
/// And where UDP is blocked.
const FIRST_DATA_WITHOUT_UDP: Duration = Duration::from_secs(3);
/// Until a direct path is found where there is one.
const DIRECT: Duration = Duration::from_secs(5);
/// A TCP stream may stand still for so long when its path dies.
const STALL_MAX: Duration = Duration::from_secs(3);
/// Until data passes again after the one relay was killed and started again.
const DATA_AGAIN: Duration = Duration::from_secs(5);

/// What a host sits behind: its name in the lab, and the NAT if there is one.
const SITES: [(&str, Option<Nat>); 7] = [
    ("open", None),
    ("cone", Some(Nat::FullCone)),
    ("restricted", Some(Nat::Restricted)),
    ("home", Some(Nat::PortRestricted)),
    ("symmetric", Some(Nat::Symmetric)),
    ("carrier", Some(Nat::Carrier)),
    ("noudp", Some(Nat::NoUdp)),
];

/// Whether two such hosts can have a direct path without luck.
fn can_be_direct(a: Option<Nat>, b: Option<Nat>) -> bool {
    let is_strict = |nat| {
        matches!(
            nat,
            Some(Nat::PortRestricted | Nat::Symmetric | Nat::Carrier)
        )
    };
    let is_hard = |a, b| a == Some(Nat::Symmetric) && is_strict(b);
    let has_udp = a != Some(Nat::NoUdp) && b != Some(Nat::NoUdp);
    has_udp && !is_hard(a, b) && !is_hard(b, a)
}

/// Joins nodes on hosts with NATs to a coordinator on `control`.
fn mesh<'lab>(
    lab: &'lab Lab,
    sites: &[(&str, Option<Nat>)],
) -> Result<(Coordinator<'lab>, Vec<Node<'lab>>)> {
    for (name, nat) in sites {
        if let Some(nat) = nat {
            lab.put_behind(lab.host(name)?, *nat)?;
        }
    }
    let names: Vec<&str> = sites.iter().map(|(name, _)| *name).collect();
    crate::mesh(lab, &names)
}

fn path(from: &Node<'_>, to: Ipv4Addr) -> Result<PathStatus> {
    let status = from.status()?;
    let peer = status.peers.iter().find(|peer| peer.ipv4 == to);
    Ok(peer.context("no such peer")?.path.clone())
}

/// Whether the way there is direct.
fn is_direct(from: &Node<'_>, to: Ipv4Addr) -> Result<bool> {
    Ok(matches!(path(from, to)?, PathStatus::Direct { .. }))
}

/// Probes each 20 ms until the first answer, and says when that was.
fn first_answer(from: &Node<'_>, to: Ipv4Addr, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    let target = to.to_string();
    let seconds = limit.as_secs().max(1).to_string();
    let args = ["-n", "-q", "-i", "0.02", "-c", "1", "-w", &seconds, &target];
    let output = from.host.run("ping", &args)?;
    ensure_success(&format!("{}: ping {target}", from.host.name()), &output)?;
    Ok(start.elapsed())
}

#[test]
fn every_pair_of_nats_talks_within_a_second_and_directly_where_it_can() -> Result<()> {
    let mut hosts = vec!["control"];
    hosts.extend(SITES.map(|(name, _)| name));
    scenario(&hosts, |lab| {
        let (_coordinator, nodes) = mesh(lab, &SITES)?;
        let mut lines = Vec::new();
        for (a, (name_a, nat_a)) in nodes.iter().zip(SITES) {
            for (b, (name_b, nat_b)) in nodes.iter().zip(SITES).filter(|(_, (b, _))| *b > name_a) {
                let to = b.ipv4()?;
                let is_udp_blocked = [nat_a, nat_b].contains(&Some(Nat::NoUdp));
                let limit = if is_udp_blocked {
                    FIRST_DATA_WITHOUT_UDP
                } else {
                    FIRST_DATA
                };
                let took = first_answer(a, to, DATA_AGAIN)?;
                lines.push(format!("{name_a} - {name_b}: {took:?}"));
                ensure!(
                    took <= limit,
                    "{name_a} to {name_b}: first answer after {took:?}"
                );
                let wanted = can_be_direct(nat_a, nat_b);
                if wanted {
                    wait_until("the path is direct", DIRECT, || {
                        first_answer(a, to, FIRST_DATA)?;
                        ensure!(is_direct(a, to)?, "{:?}", path(a, to)?);
                        ensure!(is_direct(b, a.ipv4()?)?, "back: {:?}", path(b, a.ipv4()?)?);
                        Ok(())
                    })
                    .with_context(|| format!("{name_a} to {name_b}"))?;
                } else {
                    ensure!(!is_direct(a, to)?, "{name_a} to {name_b} is direct");
                }
            }
        }
        ensure!(
            lines.len() == SITES.len() * (SITES.len() - 1) / 2,
            "{lines:?}"
        );
        Ok(())
    })
}

#[test]
fn two_nodes_behind_the_same_kind_of_nat_talk_within_a_second() -> Result<()> {
    for nat in [Nat::PortRestricted, Nat::Symmetric] {
        scenario(&["control", "beta", "gamma"], |lab| {
            let sites = [("beta", Some(nat)), ("gamma", Some(nat))];
            let (_coordinator, nodes) = mesh(lab, &sites)?;
            let [beta, gamma] = nodes.as_slice() else {
                unreachable!("two hosts were named")
            };
            let took = first_answer(beta, gamma.ipv4()?, DATA_AGAIN)?;
            ensure!(took <= FIRST_DATA, "{nat:?}: first answer after {took:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A TCP stream between two nodes.
struct Stream {
    watch: Process,
    _serve: Process,
}

impl Stream {
    fn start(from: &Node<'_>, to: &Node<'_>) -> Result<Self> {
        let address = format!("{}:5000", from.ipv4()?);
        let mut command = from.host.command(tool::program("ticker")?);
        command.args(["serve", &address]);
        let serve = from.host.spawn("ticker-serve", command)?;
        wait_until("it serves", Duration::from_secs(5), || {
            from.host
                .sh("ss -Hltn 'sport = 5000' | grep -q 5000")
                .map(drop)
        })?;
        let mut command = to.host.command(tool::program("ticker")?);
        command.args(["watch", &address]);
        let watch = to.host.spawn("ticker-watch", command)?;
        let stream = Self {
            watch,
            _serve: serve,
        };
        wait_until("the stream flows", Duration::from_secs(10), || {
            ensure!(stream.ticks().len() > 20, "{:?}", stream.ticks());
            Ok(())
        })?;
        Ok(stream)
    }

    /// When something came, milliseconds since its start.
    fn ticks(&self) -> Vec<u64> {
        let log = self.watch.log();
        let numbers = log.lines().filter_map(|line| line.strip_prefix("tick "));
        numbers.filter_map(|number| number.parse().ok()).collect()
    }

    /// Does something, waits until the stream has moved for `span` thereafter, and gives its longest stall meanwhile.
    fn longest_stall(
        &mut self,
        span: Duration,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        let before = self.ticks();
        let began = before.last().copied().context("no tick")?;
        act()?;
        let end = began + u64::try_from(span.as_millis())?;
        wait_until("the stream goes on", span + STALL_MAX * 4, || {
            self.watch.ensure_runs()?;
            let last = self.ticks().last().copied();
            ensure!(
                last >= Some(end),
                "the last tick came at {last:?} ms, {end} is wanted"
            );
            Ok(())
        })?;
        let ticks = self.ticks();
        let pairs = ticks.windows(2).filter(|pair| pair[1] > began);
        let longest = pairs.map(|pair| pair[1] - pair[0]).max();
        Ok(Duration::from_millis(longest.context("no tick")?))
    }
}

#[test]
fn a_tcp_stream_moves_to_the_relay_when_its_direct_path_dies_and_back() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let home = Some(Nat::PortRestricted);
        let (_coordinator, nodes) = mesh(lab, &[("beta", home), ("gamma", home)])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let mut stream = Stream::start(beta, gamma)?;
        let to = gamma.ipv4()?;
        wait_until("the path is direct", DIRECT, || {
            ensure!(is_direct(beta, to)?, "{:?}", path(beta, to)?);
            Ok(())
        })?;
        let stall = stream.longest_stall(Duration::from_secs(5), || lab.block_udp())?;
        ensure!(stall <= STALL_MAX, "nothing came for {stall:?}");
        ensure!(!is_direct(beta, to)?, "the dead path is in use");
        let stall = stream.longest_stall(Duration::from_secs(5), || lab.pass_udp())?;
        ensure!(stall <= FIRST_DATA, "the way back took {stall:?}");
        wait_until("the path is direct again", DIRECT, || {
            ensure!(is_direct(beta, to)?, "{:?}", path(beta, to)?);
            Ok(())
        })
    })
}

#[test]
fn data_passes_again_after_the_relay_was_killed_and_started() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let nat = Some(Nat::Symmetric);
        let (mut coordinator, nodes) = mesh(lab, &[("beta", nat), ("gamma", nat)])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let to = gamma.ipv4()?;
        first_answer(beta, to, DATA_AGAIN)?;
        ensure!(
            !is_direct(beta, to)?,
            "two symmetric NATs have a direct path"
        );
        coordinator.kill();
        let down = first_answer(beta, to, FIRST_DATA);
        ensure!(
            down.is_err(),
            "data passes without a relay: {:?}",
            path(beta, to)?
        );
        coordinator.start_again()?;
        coordinator.wait_ready()?;
        let (_, took) = time_until("data passes again", DATA_AGAIN, || {
            first_answer(beta, to, FIRST_DATA)
        })?;
        ensure!(took <= DATA_AGAIN, "after {took:?}");
        Ok(())
    })
}

#[test]
fn a_port_that_the_gateway_maps_makes_a_direct_path_between_strict_nats() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let host = lab.host("beta")?;
        for name in ["beta", "gamma"] {
            lab.put_behind(lab.host(name)?, Nat::Symmetric)?;
        }
        let mut command = lab.on_nat(host, tool::program("natpmp")?);
        command.args(lab.nat_addresses(host));
        let _router = host.spawn("natpmp", command)?;
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        wait_until("the port is mapped", DIRECT, || {
            let said = beta.ctl_ok(&["netcheck"])?;
            ensure!(said.contains("by NAT-PMP"), "{said}");
            ensure!(said.contains("another port for each destination"), "{said}");
            Ok(())
        })?;
        for (from, to) in [(beta, gamma), (gamma, beta)] {
            wait_until("the path is direct", DIRECT, || {
                first_answer(from, to.ipv4()?, FIRST_DATA)?;
                ensure!(
                    is_direct(from, to.ipv4()?)?,
                    "{:?}",
                    path(from, to.ipv4()?)?
                );
                Ok(())
            })?;
        }
        Ok(())
    })
}
