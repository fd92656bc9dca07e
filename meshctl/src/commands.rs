//! One file a verb; this one chooses.

mod bugreport;
mod completions;
mod dns;
mod down;
mod metrics;
mod models;
mod netcheck;
mod ping;
mod rotate;
mod run;
mod set;
mod share;
mod status;
mod top;
mod up;
mod usage;
mod version;
mod wait;
mod why;

use mesh_proto::control::code;
use mesh_proto::local::{PATH_STATUS, RunState, Status};
use serde::Serialize;

use crate::args::Command;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Does one command.
pub(crate) async fn run(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    match choose(command, client, output).await {
        Err(failure) if failure.code == code::NEEDS_LOGIN => Err(why_down(failure, client).await),
        done => done,
    }
}

/// A node that is only switched off, or still starting, needs no auth key.
async fn why_down(failure: Failure, client: &Client) -> Failure {
    let Ok(status) = client.get::<Status>(PATH_STATUS).await else {
        return failure;
    };
    let words = status::state_words(status.state);
    match status.state {
        RunState::Stopped => Failure::new(Exit::Degraded, "stopped", words).with_fix("meshctl up"),
        RunState::Starting => {
            Failure::new(Exit::Degraded, "starting", words).with_fix("meshctl wait")
        }
        RunState::NeedsLogin | RunState::Refused | RunState::Running => failure,
    }
}

async fn choose(command: Command, client: &Client, output: &Output) -> Result<Exit, Failure> {
    match command {
        Command::Up(args) => up::run(args, client, output).await,
        Command::Down => down::run(client, output).await,
        Command::Logout => down::logout(client, output).await,
        Command::Wait(args) => wait::run(args, client, output).await,
        Command::Status(args) => status::run(&args, client, output).await,
        Command::Ping(args) => ping::run(args, client, output).await,
        Command::Why(args) => why::run(args, client, output).await,
        Command::Models(args) => models::run(args, client, output).await,
        Command::Top(args) => top::run(&args, client, output).await,
        Command::Run(args) => run::run(args, client, output).await,
        Command::Share(args) => share::run(args, client, output).await,
        Command::Usage(args) => usage::run(&args, client, output).await,
        Command::Set(args) => set::run(args, client, output).await,
        Command::Dns(args) => dns::run(&args, client, output).await,
        Command::Netcheck => netcheck::run(client, output).await,
        Command::Metrics => metrics::run(client, output).await,
        Command::Bugreport(args) => bugreport::run(args, client, output).await,
        Command::Rotate => rotate::run(client, output).await,
        Command::Completions(args) => completions::run(&args, output),
        Command::Version => version::run(client, output).await,
        Command::Man(args) => completions::man(&args, output),
    }
}

/// The answer of a verb that has nothing to tell but that it is done.
#[derive(Debug, Serialize)]
struct Done {
    done: bool,
}

const DONE: Done = Done { done: true };
