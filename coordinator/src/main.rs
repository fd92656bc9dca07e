//! The coordinator's command line: `serve`, and the operator's commands that talk to it.
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod output;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{Cli, Command};
use crate::client::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let words = std::env::var("PROXIMA_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter: Targets = match words.parse() {
        Ok(filter) => filter,
        Err(err) => {
            let problem = format!(
                "PROXIMA_LOG={words} is no filter ({err}): write `debug`, or `info,coordinator::relay=debug`"
            );
            return output::fail(&Failure::other(problem));
        }
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(log).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => return output::fail(&Failure::other(err)),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => commands::serve::run(args).await,
            Command::Key { command } => commands::key::run(command).await,
            Command::Node { command } => commands::node::run(command).await,
            Command::User { command } => commands::user::run(command).await,
            Command::Relay(args) => commands::relay::run(args).await,
            Command::Health(access) => commands::health::run(access).await,
            Command::Completions { shell } => commands::manual::completions(shell),
            Command::Man => commands::manual::man(),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::fail(&failure),
    }
}
