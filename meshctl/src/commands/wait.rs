//! `wait`: blocks until the mesh can be used, also through a start of the daemon.

use std::time::Duration;

use mesh_proto::control::code;
use mesh_proto::local::{PATH_STATUS, RunState, Status};
use tokio::time::Instant;

use crate::args::{WaitArgs, WaitState};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

const POLL: Duration = Duration::from_secs(30);
/// Between two tries at a daemon that is not there, or that answers before its time.
const RETRY: Duration = Duration::from_millis(250);

pub(super) async fn run(args: WaitArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let waiting = wait(args.state, deadline, client);
    let words = match args.state {
        WaitState::Running => "waiting for the mesh",
        WaitState::Ready => "waiting for the mesh, its coordinator and its names",
    };
    let status = output.during(words, waiting).await?;
    output.answer(&status, |status| super::status::state_line(status.state))?;
    Ok(Exit::Done)
}

async fn wait(
    state: WaitState,
    deadline: Option<Instant>,
    client: &Client,
) -> Result<Status, Failure> {
    let word = match state {
        WaitState::Running => "running",
        WaitState::Ready => "ready",
    };
    loop {
        let left = deadline.map_or(POLL, |deadline| {
            deadline.saturating_duration_since(Instant::now()).min(POLL)
        });
        let path = format!("{PATH_STATUS}?wait={word}&timeout_ms={}", left.as_millis());
        match client.get_within::<Status>(&path, left).await {
            Ok(status) if is_reached(state, &status) => return Ok(status),
            Ok(_) => {}
            Err(failure) if failure.exit == Exit::NotRunning || failure.code == code::TIMEOUT => {}
            // A daemon that stops drops the call; the next try meets its successor.
            Err(failure) if failure.code == "failed" => {}
            Err(failure) => return Err(failure),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(gave_up(state, client).await);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn is_reached(state: WaitState, status: &Status) -> bool {
    let is_running = status.state == RunState::Running;
    match state {
        WaitState::Running => is_running,
        WaitState::Ready => {
            is_running
                && status
                    .coordinator
                    .as_ref()
                    .is_some_and(|it| it.is_connected)
        }
    }
}

async fn gave_up(state: WaitState, client: &Client) -> Failure {
    let status = match client.get::<Status>(PATH_STATUS).await {
        Ok(status) => status,
        Err(failure) => return failure,
    };
    match status.state {
        RunState::NeedsLogin | RunState::Refused => Failure::new(
            Exit::NeedsLogin,
            code::NEEDS_LOGIN,
            format!(
                "waited in vain: {}",
                super::status::state_words(status.state)
            ),
        )
        .with_login_fix(),
        RunState::Stopped => Failure::new(
            Exit::Degraded,
            code::TIMEOUT,
            "waited in vain: the node is switched off",
        )
        .with_fix("meshctl up"),
        RunState::Starting => Failure::new(
            Exit::Degraded,
            code::TIMEOUT,
            "waited in vain: the node has heard nothing from its coordinator yet",
        )
        .with_fix("meshctl status"),
        RunState::Running => match state {
            WaitState::Ready => Failure::new(
                Exit::Degraded,
                code::TIMEOUT,
                "the mesh works from the last known map, but not everything is ready",
            )
            .with_fix("meshctl status"),
            WaitState::Running => Failure::new(
                Exit::NotFound,
                code::TIMEOUT,
                "the mesh came up only just after the wait",
            ),
        },
    }
}
