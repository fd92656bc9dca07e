//! `ping`: probes the way to a node.

use mesh_proto::control::code;
use mesh_proto::local::{PATH_PING, PATH_STATUS, PathStatus, PingReply, PingRequest, Status};
use serde::Serialize;
use tokio::time::Instant;

use crate::args::PingArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::{Output, milliseconds, relay_words};

/// Probes without a direct answer after which a direct path is not waited for any longer.
const N_PROBES: u32 = 10;

#[derive(Debug, Serialize)]
struct Pings {
    target: String,
    n_sent: u32,
    replies: Vec<PingReply>,
}

pub(super) async fn run(args: PingArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let mut pings = Pings {
        target: args.target,
        n_sent: 0,
        replies: Vec::new(),
    };
    let request = PingRequest {
        target: pings.target.clone(),
        timeout_ms: Some(u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX)),
    };
    // What meshd said of a probe that could not even be sent.
    let mut unsent = None;
    // A path begins by a relay and becomes direct within seconds, as a rule.
    let is_until_direct = args.count.is_none();
    let count = args.count.unwrap_or(N_PROBES);
    for n in 0..count {
        let next = Instant::now() + args.interval;
        pings.n_sent += 1;
        let probe = client.post::<_, PingReply>(PATH_PING, &request, args.timeout);
        match output.during("waiting for the answer", probe).await {
            Ok(reply) => {
                if !output.is_json() {
                    output.print(&describe(&reply))?;
                }
                let is_direct = is_direct(&reply);
                pings.replies.push(reply);
                if is_until_direct && is_direct {
                    break;
                }
            }
            Err(failure) if failure.code == code::TIMEOUT => {
                // Whoever never answered will not by another way either.
                if is_until_direct && pings.replies.is_empty() {
                    break;
                }
                if count > 1 {
                    output.note(&format!("no reply from {}", pings.target));
                }
            }
            Err(failure) if failure.code == code::UNAVAILABLE => {
                if count > 1 {
                    output.note(&failure.message);
                }
                unsent = Some(failure.message);
            }
            Err(failure) if failure.code == code::NOT_FOUND => {
                return Err(with_near_names(failure, &pings.target, client).await);
            }
            Err(failure) => return Err(failure),
        }
        if n + 1 < count {
            tokio::time::sleep_until(next).await;
        }
    }
    if pings.replies.is_empty() {
        let (error_code, why) = match unsent {
            Some(why) => (
                code::UNAVAILABLE,
                format!("no reply from {}: {why}", pings.target),
            ),
            None => (
                code::TIMEOUT,
                format!(
                    "no reply from {} within {} s: it is off, or its network lets nothing through",
                    pings.target,
                    args.timeout.as_secs_f64()
                ),
            ),
        };
        return Err(Failure::new(Exit::NotFound, error_code, why).with_fix_note(
            "meshctl status",
            "whether it is online, and how it was reached",
        ));
    }
    if output.is_json() {
        output.json(&pings)?;
    }
    if pings.replies.iter().any(is_direct) {
        return Ok(Exit::Done);
    }
    output.note("direct connection not established");
    output.hint("what stands in its way: meshctl netcheck");
    Ok(Exit::Degraded)
}

fn is_direct(reply: &PingReply) -> bool {
    matches!(reply.path, PathStatus::Direct { .. })
}

fn describe(reply: &PingReply) -> String {
    let way = match &reply.path {
        PathStatus::Direct { endpoint } => format!(" via {endpoint}"),
        PathStatus::Relayed { relay, name } => format!(" via relay {}", relay_words(relay, name)),
        PathStatus::Idle | PathStatus::Connecting => String::new(),
    };
    let mtu = reply
        .path_mtu
        .map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
    format!(
        "pong from {} ({}){way} in {}{mtu}\n",
        reply.name,
        reply.ip,
        milliseconds(reply.rtt_ms)
    )
}

async fn with_near_names(failure: Failure, asked: &str, client: &Client) -> Failure {
    let Ok(status) = client.get::<Status>(PATH_STATUS).await else {
        return failure;
    };
    let names = near(asked, status.peers.iter().map(|peer| peer.name.as_str()));
    let message = match did_you_mean(&names) {
        Some(words) => format!("{}; {words}", failure.message),
        None => failure.message,
    };
    Failure { message, ..failure }.with_fix_note("meshctl status", "lists the nodes")
}
