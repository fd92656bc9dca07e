//! What breaks while traffic flows, and who disturbs it. Bounds are loose here, where debug builds share a busy machine:
//! `target/release/bench faults weather strangers idle` holds the figures.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::bench::{strangers, weather};
use e2e::interop::{Traffic, wait_both_ways};
use e2e::mesh::Node;
use e2e::net::{Host, Lab, scenario};
use e2e::probe::first_answer;
use e2e::process::{ensure_success, stdout};
use e2e::stream::Stream;
use e2e::wait::wait_until;

use crate::mesh;

const READY: Duration = Duration::from_secs(10);
/// A busy machine gets its time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a host is without its link.
const AWAY: Duration = Duration::from_secs(3);
/// Longer than meshd's look for sleep, twice.
const ASLEEP: Duration = Duration::from_secs(12);

/// Two nodes with a stream from the first to the second, whose way `cut` breaks and `mend` mends 3 s later.
fn stream_after(
    cut: impl FnOnce(&Lab, &Host, &Host) -> Result<()>,
    mend: impl FnOnce(&Lab, &Host, &Host) -> Result<()>,
) -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let mut stream = Stream::start(beta.host, beta.ipv4()?, gamma.host)?;
        beta.wait_direct(gamma.ipv4()?, READY)?;
        cut(lab, beta.host, gamma.host)?;
        // The outage itself, not a wait for something.
        std::thread::sleep(AWAY);
        let took = stream.next_move(Duration::from_secs(2), || mend(lab, beta.host, gamma.host))?;
        ensure!(took <= PATIENCE, "it moved after {took:?}");
        Ok(())
    })
}

fn unplug(host: &Host) -> Result<()> {
    host.sh("ip link set eth0 down").map(drop)
}

/// Gives a host another link, with another address.
fn move_on(lab: &Lab, host: &Host) -> Result<()> {
    let gateway = lab.add_link(host)?;
    host.sh(&format!("ip route replace default via {gateway} dev eth1"))
        .map(drop)
}

#[test]
fn a_tcp_stream_follows_its_receiver_to_another_address() -> Result<()> {
    stream_after(
        |_, _, gamma| unplug(gamma),
        |lab, _, gamma| move_on(lab, gamma),
    )
}

#[test]
fn a_tcp_stream_follows_its_sender_to_another_address() -> Result<()> {
    stream_after(|_, beta, _| unplug(beta), |lab, beta, _| move_on(lab, beta))
}

#[test]
fn a_tcp_stream_goes_on_when_a_cable_is_plugged_in_again() -> Result<()> {
    stream_after(
        |lab, beta, _| lab.set_link(beta, false),
        |lab, beta, _| lab.set_link(beta, true),
    )
}

/// How many of so many pings, one each 20 ms, are answered.
fn n_answered(from: &Node<'_>, to: &Node<'_>, n_pings: u32) -> Result<u32> {
    let ping = format!("ping -q -i 0.02 -c {n_pings} {}", to.ipv4()?);
    let said = from.host.sh(&format!("{ping} || true"))?;
    // 400 packets transmitted, 369 received, ...
    let before = said.split(" received").next().unwrap_or_default();
    let count = before.rsplit(' ').next().unwrap_or_default();
    count.parse().with_context(|| said.clone())
}

#[test]
fn sparse_packets_pass_a_path_that_loses_every_fifth() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        n_answered(beta, gamma, 5)?;
        beta.wait_direct(gamma.ipv4()?, READY)?;
        lab.lose(gamma.host, 20)?;
        wait_until("both ends know", Duration::from_secs(30), || {
            n_answered(beta, gamma, 20)?;
            for node in [beta, gamma] {
                let n_repeated = node.metric("meshd_datagrams_repeated_total")?;
                ensure!(n_repeated > 0.0, "nothing went twice");
            }
            Ok(())
        })?;
        // Sent once, 64 of 100 are answered; sent twice, 92.
        let n = n_answered(beta, gamma, 400)?;
        ensure!(n >= 320, "{n} of 400 pings were answered");
        Ok(())
    })
}

#[test]
fn a_node_that_stood_still_knows_it_and_is_back_at_once() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
        wait_both_ways((beta.host, own), (gamma.host, target))?;
        beta.process()?.signal("STOP")?;
        std::thread::sleep(ASLEEP);
        beta.process()?.signal("CONT")?;
        let took = first_answer(gamma.host, own, PATIENCE)?;
        ensure!(took <= PATIENCE, "back after {took:?}");
        let process = beta.process()?;
        wait_until("it noticed", PATIENCE, || {
            ensure!(process.log().contains("awake again"), "nothing was noticed");
            Ok(())
        })
    })
}

#[test]
fn packets_that_come_twice_and_in_any_order_are_delivered_once() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let ends = weather::shuffled(lab, (beta, gamma), 1_000, 5)?;
        for (sent, received) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            ensure!(
                received["twice"] == 0 && received["wrong"] == 0,
                "{received}"
            );
            ensure!(
                sent["sent"] == received["received"],
                "sent {sent}, received {received}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_flood_of_handshakes_keeps_neither_traffic_nor_new_peers_out() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta", "stranger"], |lab| {
        let (coordinator, nodes) = mesh(lab, &["beta", "gamma", "delta"])?;
        let [beta, gamma, delta] = nodes.as_slice() else {
            unreachable!("three hosts were named")
        };
        let own = beta.ipv4()?;
        wait_both_ways((beta.host, own), (gamma.host, gamma.ipv4()?))?;
        let known = coordinator.nodes()?;
        let entry = known.iter().find(|node| node.ipv4 == own);
        let key = entry.context("not known")?.node_key.to_string();
        let traffic = Traffic::start(gamma.host, own)?;
        let flood = strangers::start_flood(lab, beta, &key, 10, 50)?;
        let took = first_answer(delta.host, own, READY)?;
        ensure!(took <= READY, "a new peer is answered after {took:?}");
        wait_until("the flood ends", Duration::from_secs(60), || {
            ensure!(flood.log().contains("n_sent"), "{}", flood.log());
            Ok(())
        })?;
        let gaps = traffic.finish()?;
        ensure!(gaps.longest < PATIENCE, "{gaps:?}");
        Ok(())
    })
}

#[test]
fn why_tells_what_stands_in_the_way() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta"], |lab| {
        let (mut coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        ensure_success("user", &coordinator.admin(&["user", "create", "bob"])?)?;
        let key = coordinator.key(&["--user", "bob"])?;
        let delta = Node::join(lab.host("delta")?, &key)?;
        wait_both_ways((beta.host, beta.ipv4()?), (gamma.host, gamma.ipv4()?))?;
        wait_both_ways((beta.host, beta.ipv4()?), (delta.host, delta.ipv4()?))?;
        beta.wait_direct(gamma.ipv4()?, READY)?;
        beta.wait_direct(delta.ipv4()?, READY)?;
        let why = |from: &str, to: &str, exit: i32, said: &str| -> Result<()> {
            let output = beta.ctl(&["why", from, to])?;
            let text = stdout(&output);
            ensure!(
                output.status.code() == Some(exit) && text.contains(said),
                "{from} {to}: {output:?}"
            );
            Ok(())
        };
        let own = gamma.ipv4()?;
        why("self", "gamma:22", 0, "Nothing stands in the way")?;
        why("self", &format!("{own}:22"), 0, "direct by")?;
        // Another user's node may be pinged, and asked for models.
        why("self", "delta:22", 6, "not open TCP port 22 on delta")?;
        why("self", "delta:11434", 5, "shares no model")?;
        why("delta", "self:22", 6, "not open TCP port 22 on beta")?;
        why("gamma", "delta:22", 6, "not open TCP port 22 on delta")?;
        // What another user's node may do elsewhere is not told.
        why("delta", "gamma:22", 7, "does not tell")?;
        why("self", "nobody:22", 5, "neither a node nor a shared model")?;
        gamma.ctl_ok(&["down"])?;
        why("self", "gamma:22", 5, "does not answer")?;
        gamma.ctl_ok(&["up"])?;
        wait_both_ways((beta.host, beta.ipv4()?), (gamma.host, own))?;
        coordinator.kill();
        let start = Instant::now();
        why("self", "gamma:22", 7, "only the coordinator knows")?;
        ensure!(start.elapsed() < READY, "it took {:?}", start.elapsed());
        Ok(())
    })
}
