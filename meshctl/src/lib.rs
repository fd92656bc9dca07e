//! The command line of Proxima Network: reads arguments, asks `meshd` over its control socket, prints the answer.
#![forbid(unsafe_code)]

mod anonymous;
mod args;
mod chat;
mod client;
mod commands;
mod exit;
mod near;
mod output;
mod start;
mod tui;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Args;
use crate::client::Client;
use crate::exit::Failure;
use crate::output::Output;

/// Does what the command line says and returns its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) if err.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            let text = err.to_string();
            let message = text.lines().next().unwrap_or_default();
            let message = message.strip_prefix("error: ").unwrap_or(message);
            Output::new(true, false).failure(&Failure::usage(message).with_fix("meshctl --help"));
            return exit::Exit::Usage.into();
        }
        Err(err) => {
            // Printing fails only on a closed pipe, and then nobody reads.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    let output = Output::new(args.json, args.verbose);
    match dispatch(args, &output) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let exit = failure.exit;
            output.failure(&failure);
            exit.into()
        }
    }
}

fn dispatch(args: Args, output: &Output) -> Result<exit::Exit, Failure> {
    let client = Client::new(args.socket.unwrap_or_else(start::default_socket));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::failed(format!("cannot start: {err}")))?;
    let done = runtime.block_on(commands::run(args.command, &client, output));
    // A thread that still waits for standard input must not keep the program from ending.
    runtime.shutdown_background();
    done
}
