//! `status`: this node, its peers, the coordinator's last word, and what is wrong.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::local::{
    CoordinatorStatus, NodeStatus, PATH_STATUS, PathStatus, PeerStatus, Problem, RunState, Status,
    UserspaceStatus,
};

use crate::args::{Check, StatusArgs};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, ago, bytes, clean, milliseconds, plural, relay_words};

pub(super) async fn run(
    args: &StatusArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    let status: Status = client.get(PATH_STATUS).await?;
    match args.check {
        None => {
            let now_ms = unix_ms();
            output.answer(&status, |status| describe(status, now_ms))?;
            if let Some(hint) = next(&status) {
                output.hint(hint);
            }
            Ok(exit_of(&status))
        }
        Some(Check::Live) => {
            output.answer(&status, |_| "live\n".to_owned())?;
            Ok(Exit::Done)
        }
        Some(Check::Ready) => {
            let exit = readiness(&status);
            output.answer(&status, |status| {
                if exit == Exit::Done {
                    "ready\n".to_owned()
                } else if status.state == RunState::Running {
                    "works from the last known map; the coordinator is not heard\n".to_owned()
                } else {
                    state_line(status.state)
                }
            })?;
            Ok(exit)
        }
    }
}

/// How a command that shows the state ends.
pub(super) const fn exit_of(status: &Status) -> Exit {
    match status.state {
        RunState::Running => Exit::Done,
        RunState::NeedsLogin | RunState::Refused => Exit::NeedsLogin,
        RunState::Stopped | RunState::Starting => Exit::Degraded,
    }
}

fn readiness(status: &Status) -> Exit {
    let is_heard = status
        .coordinator
        .as_ref()
        .is_some_and(|it| it.is_connected);
    let exit = exit_of(status);
    if exit == Exit::Done && !is_heard {
        Exit::Degraded
    } else {
        exit
    }
}

/// The state as part of a sentence.
pub(super) const fn state_words(state: RunState) -> &'static str {
    match state {
        RunState::NeedsLogin => "this machine is in no mesh yet",
        RunState::Stopped => "the node is switched off",
        RunState::Starting => "the node is starting: it has heard nothing from its coordinator yet",
        RunState::Refused => {
            "the coordinator does not accept this node any more: it was removed or its key expired"
        }
        RunState::Running => "the mesh is up",
    }
}

/// The state as a line of its own.
pub(super) fn state_line(state: RunState) -> String {
    let words = state_words(state);
    let (first, rest) = words.split_at(1);
    format!("{}{rest}.\n", first.to_ascii_uppercase())
}

fn next(status: &Status) -> Option<&'static str> {
    match status.state {
        RunState::NeedsLogin | RunState::Refused => {
            Some("join with an auth key of the coordinator's owner: meshctl up --auth-key pxk_…")
        }
        RunState::Stopped => Some("switch it on: meshctl up"),
        RunState::Starting => Some("wait for it: meshctl wait"),
        RunState::Running => None,
    }
}

/// A problem and its cure on one line.
pub(super) fn problem_line(problem: &Problem) -> String {
    let fix = problem
        .fix
        .as_deref()
        .map(|fix| format!(" (to mend it: {fix})"))
        .unwrap_or_default();
    clean(&format!("{}{fix}", problem.message))
}

fn describe(status: &Status, now_ms: u64) -> String {
    let mut text = String::new();
    if status.state != RunState::Running {
        text.push_str(&state_line(status.state));
    }
    if let Some(node) = &status.node {
        let mut table = Table::new(["NAME", "ADDRESS", "OWNER", "STATUS"]);
        table.row([
            node.name.to_string(),
            node.ipv4.to_string(),
            owner(&node.user, &node.tags),
            own_words(node, now_ms),
        ]);
        for peer in &status.peers {
            table.row([
                peer.name.to_string(),
                peer.ipv4.to_string(),
                owner(&peer.user, &peer.tags),
                peer_words(peer, now_ms),
            ]);
        }
        let _ = write!(text, "{table}");
    }
    if let Some(userspace) = status
        .node
        .as_ref()
        .and_then(|node| node.userspace.as_ref())
    {
        text.push_str(&userspace_words(userspace));
    }
    if let Some(coordinator) = &status.coordinator {
        let _ = writeln!(
            text,
            "\nCoordinator {}: {}",
            clean(&coordinator.url),
            coordinator_words(coordinator)
        );
    }
    if !status.problems.is_empty() {
        text.push_str("\nProblems:\n");
        for problem in &status.problems {
            let _ = writeln!(text, "  - {}", clean(&problem.message));
            if let Some(fix) = &problem.fix {
                let _ = writeln!(text, "    to mend it: {}", clean(fix));
            }
        }
    }
    text
}

/// Where programs find the mesh without an interface.
fn userspace_words(userspace: &UserspaceStatus) -> String {
    let mut text = "\nUserspace mode: programs reach the mesh by\n".to_owned();
    let _ = writeln!(
        text,
        "  models       OLLAMA_HOST={0} or http://{0}/v1",
        userspace.gateway
    );
    if let Some(addr) = userspace.socks5 {
        let _ = writeln!(text, "  SOCKS5       ALL_PROXY=socks5h://{addr}");
    }
    if let Some(addr) = userspace.http_proxy {
        let _ = writeln!(text, "  HTTP proxy   HTTP_PROXY=http://{addr}");
    }
    text
}

fn owner(user: &mesh_proto::id::UserName, tags: &[mesh_proto::id::Tag]) -> String {
    if tags.is_empty() {
        return user.to_string();
    }
    tags.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn own_words(node: &NodeStatus, now_ms: u64) -> String {
    let mut words = "this node".to_owned();
    if node.is_sharing {
        words.push_str("; sharing");
    }
    if let Some(expires) = node.expires_at_ms {
        match expires.checked_sub(now_ms) {
            None => words.push_str("; key expired"),
            Some(left) if left < 7 * 86_400_000 => {
                let hours = left / 3_600_000;
                let _ = write!(words, "; key expires in {}", plural(hours, "hour"));
            }
            Some(_) => {}
        }
    }
    words
}

/// The grammar that the field knows: how it is reached, what it offers, how much went by.
fn peer_words(peer: &PeerStatus, now_ms: u64) -> String {
    if !peer.is_online {
        let seen = peer
            .last_seen_ms
            .map(|seen| Duration::from_millis(now_ms.saturating_sub(seen)));
        return seen.map_or_else(
            || "offline".to_owned(),
            |age| format!("offline, last seen {}", ago(age)),
        );
    }
    let mut words = match &peer.path {
        PathStatus::Idle => "idle".to_owned(),
        PathStatus::Connecting => "connecting".to_owned(),
        PathStatus::Direct { endpoint } => format!("active; direct {endpoint}"),
        PathStatus::Relayed { relay, name } => {
            format!("active; relay {}", relay_words(relay, name))
        }
    };
    if let Some(rtt_ms) = peer.rtt_ms {
        let _ = write!(words, ", {}", milliseconds(rtt_ms));
    }
    // Less is within what a single lost probe makes of it.
    if let Some(percent) = peer.loss_percent.filter(|percent| *percent >= 1.0) {
        let _ = write!(words, ", {percent:.0} % lost");
    }
    if let Some(mtu) = peer.path_mtu {
        let _ = write!(words, ", MTU {mtu}");
    }
    if peer.n_models > 0 {
        let n_models = u64::try_from(peer.n_models).unwrap_or(u64::MAX);
        let _ = write!(words, "; shares {}", plural(n_models, "model"));
    }
    if peer.tx_bytes > 0 || peer.rx_bytes > 0 {
        let _ = write!(
            words,
            ", tx {} rx {}",
            bytes(peer.tx_bytes),
            bytes(peer.rx_bytes)
        );
    }
    words
}

fn coordinator_words(coordinator: &CoordinatorStatus) -> String {
    let mut words = if coordinator.is_connected {
        "connected".to_owned()
    } else {
        "not connected".to_owned()
    };
    match coordinator.last_heard_ms_ago {
        Some(age) => {
            let _ = write!(words, ", last word {}", ago(Duration::from_millis(age)));
        }
        None => words.push_str(", not heard since meshd started"),
    }
    if let Some(error) = &coordinator.error {
        let _ = write!(words, "\n  reason: {}", clean(error));
    }
    words
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
