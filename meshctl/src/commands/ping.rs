//! `ping`: probes the way to a node.

use std::time::Duration;

use mesh_proto::control::code;
use mesh_proto::local::{PATH_PING, PATH_STATUS, PathStatus, PingReply, PingRequest, Status};
use serde::Serialize;
use tokio::time::Instant;

use crate::args::PingArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::{Output, milliseconds, relay_words};

const INTERVAL: Duration = Duration::from_secs(1);

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
    for n in 0..args.count {
        let next = Instant::now() + INTERVAL;
        pings.n_sent += 1;
        let probe = client.post::<_, PingReply>(PATH_PING, &request, args.timeout);
        match output.during("waiting for the answer", probe).await {
            Ok(reply) => {
                if !output.is_json() {
                    output.print(&describe(&reply))?;
                }
                pings.replies.push(reply);
            }
            Err(failure) if failure.code == code::TIMEOUT => {
                if args.count > 1 {
                    output.note(&format!("no reply from {}", pings.target));
                }
            }
            Err(failure) if failure.code == code::UNAVAILABLE => {
                if args.count > 1 {
                    output.note(&failure.message);
                }
                unsent = Some(failure.message);
            }
            Err(failure) if failure.code == code::NOT_FOUND => {
                return Err(with_near_names(failure, &pings.target, client).await);
            }
            Err(failure) => return Err(failure),
        }
        if n + 1 < args.count {
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
    Ok(Exit::Done)
}

fn describe(reply: &PingReply) -> String {
    let way = match &reply.path {
        PathStatus::Direct { endpoint } => format!(" via {endpoint}"),
        PathStatus::Relayed { relay, name } => format!(" via relay {}", relay_words(relay, name)),
        PathStatus::Idle | PathStatus::Connecting => String::new(),
    };
    format!(
        "pong from {} ({}){way} in {}\n",
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
