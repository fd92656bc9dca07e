//! Nodes behind NATs of every kind find each other, and keep talking when a path dies.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::net::nat::{Lan, Nat, near, needs_luck};
use e2e::net::{Lab, scenario};
use e2e::probe;
use e2e::stream::Stream;
use e2e::tool;
use e2e::wait::{time_until, wait_until};
use mesh_proto::local::PathStatus;

/// From the first packet to its answer, when two nodes have never talked.
const FIRST_DATA: Duration = Duration::from_secs(1);
/// And where UDP is blocked.
const FIRST_DATA_WITHOUT_UDP: Duration = Duration::from_secs(3);
/// Until a direct path is found where there is one.
const DIRECT: Duration = Duration::from_secs(3);
/// Until one is guessed where only luck finds one: more than 19 of 20 times.
const GUESSED: Duration = Duration::from_secs(15);
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
    let has_udp = a != Some(Nat::NoUdp) && b != Some(Nat::NoUdp);
    has_udp && !needs_luck(a, b)
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

/// Probes each 20 ms until the first answer, and says when that was.
fn first_answer(from: &Node<'_>, to: Ipv4Addr, limit: Duration) -> Result<Duration> {
    probe::first_answer(from.host, to, limit)
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
                        ensure!(a.is_direct(to)?, "{:?}", a.path(to)?);
                        ensure!(b.is_direct(a.ipv4()?)?, "back: {:?}", b.path(a.ipv4()?)?);
                        Ok(())
                    })
                    .with_context(|| format!("{name_a} to {name_b}"))?;
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
fn guessed_ports_make_a_way_between_a_symmetric_nat_and_a_home_router() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta"], |lab| {
        let sites = [
            ("beta", Some(Nat::Symmetric)),
            ("gamma", Some(Nat::PortRestricted)),
            ("delta", Some(Nat::Carrier)),
        ];
        let (_coordinator, nodes) = mesh(lab, &sites)?;
        let [beta, gamma, delta] = nodes.as_slice() else {
            unreachable!("three hosts were named")
        };
        for (from, to) in [(beta, gamma), (delta, beta)] {
            let way = format!("{} to {}", from.host.name(), to.host.name());
            let took = first_answer(from, to.ipv4()?, DATA_AGAIN)?;
            ensure!(took <= FIRST_DATA, "{way}: first answer after {took:?}");
            let (_, took) = time_until("the path is direct", GUESSED * 2, || {
                first_answer(from, to.ipv4()?, FIRST_DATA)?;
                let (there, back) = (from.is_direct(to.ipv4()?)?, to.is_direct(from.ipv4()?)?);
                ensure!(there && back, "{:?}", from.path(to.ipv4()?)?);
                Ok(())
            })
            .with_context(|| way.clone())?;
            ensure!(took <= GUESSED, "{way}: direct after {took:?}");
        }
        // Of 256 spare sockets those that are paths are left.
        let n_open = || -> Result<usize> {
            let said = beta
                .host
                .sh("ss -Hlun | wc -l; ss -Hlunp | grep -c meshd || true")?;
            let number = said.lines().last().context("nothing was said")?;
            Ok(number.trim().parse()?)
        };
        wait_until("spare sockets are closed", GUESSED * 2, || {
            first_answer(beta, gamma.ipv4()?, FIRST_DATA)?;
            first_answer(beta, delta.ipv4()?, FIRST_DATA)?;
            let n_open = n_open()?;
            ensure!(n_open < 40, "{n_open} sockets");
            Ok(())
        })
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

#[test]
fn neighbours_behind_one_router_talk_by_their_lan_or_by_the_routers_outer_address() -> Result<()> {
    for lan in [Lan::Shared, Lan::Apart] {
        scenario(&["control", "beta", "gamma"], |lab| {
            let (beta, gamma) = (lab.host("beta")?, lab.host("gamma")?);
            lab.put_both_behind((beta, gamma), lan)?;
            let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
            let [beta, gamma] = nodes.as_slice() else {
                unreachable!("two hosts were named")
            };
            let took = first_answer(beta, gamma.ipv4()?, DATA_AGAIN)?;
            ensure!(took <= FIRST_DATA, "{lan:?}: first answer after {took:?}");
            for (from, to) in [(beta, gamma), (gamma, beta)] {
                wait_until("the path is direct", DIRECT, || {
                    first_answer(from, to.ipv4()?, FIRST_DATA)?;
                    let path = from.path(to.ipv4()?)?;
                    let PathStatus::Direct { endpoint } = path else {
                        bail!("{lan:?}: {path:?}");
                    };
                    let is_near = endpoint.ip() == IpAddr::V4(near(to.host.ipv4));
                    ensure!(is_near == (lan == Lan::Shared), "{lan:?}: {endpoint}");
                    Ok(())
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_tcp_stream_moves_to_the_relay_when_its_direct_path_dies_and_back() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let home = Some(Nat::PortRestricted);
        let (_coordinator, nodes) = mesh(lab, &[("beta", home), ("gamma", home)])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let mut stream = Stream::start(beta.host, beta.ipv4()?, gamma.host)?;
        let to = gamma.ipv4()?;
        wait_until("the path is direct", DIRECT, || {
            ensure!(beta.is_direct(to)?, "{:?}", beta.path(to)?);
            Ok(())
        })?;
        let stall = stream.longest_stall(Duration::from_secs(5), || lab.block_udp())?;
        ensure!(stall <= STALL_MAX, "nothing came for {stall:?}");
        ensure!(!beta.is_direct(to)?, "the dead path is in use");
        let stall = stream.longest_stall(Duration::from_secs(5), || lab.pass_udp())?;
        ensure!(stall <= FIRST_DATA, "the way back took {stall:?}");
        wait_until("the path is direct again", DIRECT, || {
            ensure!(beta.is_direct(to)?, "{:?}", beta.path(to)?);
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
            !beta.is_direct(to)?,
            "two symmetric NATs have a direct path"
        );
        coordinator.kill();
        let down = first_answer(beta, to, FIRST_DATA);
        ensure!(
            down.is_err(),
            "data passes without a relay: {:?}",
            beta.path(to)?
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
                ensure!(from.is_direct(to.ipv4()?)?, "{:?}", from.path(to.ipv4()?)?);
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_port_that_upnp_maps_makes_a_direct_path_between_strict_nats_and_is_given_back() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let host = lab.host("beta")?;
        for name in ["beta", "gamma"] {
            lab.put_behind(lab.host(name)?, Nat::Symmetric)?;
        }
        let _router = lab.serve_upnp(host)?;
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        // It is asked after PCP and NAT-PMP, to which nobody answers.
        wait_until("the port is mapped", 5 * DIRECT, || {
            let said = beta.ctl_ok(&["netcheck"])?;
            ensure!(said.contains("by UPnP"), "{said}");
            Ok(())
        })?;
        let rules = lab.upnp_mappings(host)?;
        ensure!(rules.contains(&host.ipv4.to_string()), "{rules}");
        for (from, to) in [(beta, gamma), (gamma, beta)] {
            wait_until("the path is direct", DIRECT, || {
                first_answer(from, to.ipv4()?, FIRST_DATA)?;
                ensure!(from.is_direct(to.ipv4()?)?, "{:?}", from.path(to.ipv4()?)?);
                Ok(())
            })?;
        }
        beta.ctl_ok(&["down"])?;
        wait_until("the port is given back", DIRECT, || {
            let rules = lab.upnp_mappings(host)?;
            ensure!(!rules.contains(&host.ipv4.to_string()), "{rules}");
            Ok(())
        })
    })
}
