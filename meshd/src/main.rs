//! The `meshd` program: arguments, log, signals.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use meshd::config::Config;
use meshd::daemon;
use meshd::os::linux::names::System;
use meshd::os::linux::order;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The node daemon of Proxima Network. `meshctl` controls it.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Configuration file [default: /etc/proxima/meshd.toml, when it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of keys, membership and the last map
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Name of the overlay interface
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// UDP port of tunnels; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    listen_port: Option<u16>,
    /// Leave the system's resolver alone
    #[arg(long)]
    no_dns: bool,
    /// Ask the gateway for no port mapping
    #[arg(long)]
    no_port_mapping: bool,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
    #[command(subcommand)]
    errand: Option<Errand>,
}

/// What its units run the program for beside the daemon.
#[derive(Debug, Clone, Copy, Subcommand)]
enum Errand {
    /// Take back what a meshd that was killed left in the system
    Undo,
    /// Carry out one order for the system's resolver, from standard input, with root's rights
    #[command(hide = true)]
    Names,
}

/// What is logged: by default nothing below `info`, and nothing of boringtun, which logs what peers send.
fn log_filter() -> anyhow::Result<Targets> {
    let words = std::env::var("MESHD_LOG").unwrap_or_else(|_| "info,boringtun=off".to_owned());
    words.parse().with_context(|| {
        format!("MESHD_LOG={words} is no filter: write `debug`, or `info,meshd::dns=debug`")
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = match log_filter() {
        Ok(filter) => filter,
        Err(err) => {
            drop(writeln!(std::io::stderr(), "meshd: {err:#}"));
            return ExitCode::FAILURE;
        }
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    if args.log_json {
        registry.with(log.json()).init();
    } else {
        registry.with(log.with_ansi(false)).init();
    }
    let is_json = args.log_json;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            if is_json {
                tracing::error!(err = format!("{err:#}"), "meshd ends");
            } else {
                // The log would write the lines of a configuration's error as one.
                drop(writeln!(std::io::stderr(), "meshd: {err:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    mesh_io::heap::give_back();
    let mut config = Config::load(args.config.as_deref())?;
    config.state_dir = args.state_dir.unwrap_or(config.state_dir);
    config.socket = args.socket.unwrap_or(config.socket);
    config.interface = args.interface.unwrap_or(config.interface);
    config.listen_port = args.listen_port.unwrap_or(config.listen_port);
    config.dns = config.dns && !args.no_dns;
    config.port_mapping = config.port_mapping && !args.no_port_mapping;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?;
    match args.errand {
        None => runtime.block_on(run_daemon(config)),
        Some(Errand::Undo) => runtime.block_on(daemon::undo(&config)),
        Some(Errand::Names) => runtime.block_on(async {
            let system = System::host(&config.state_dir);
            Ok(order::answer(&system, tokio::io::stdin(), tokio::io::stdout()).await?)
        }),
    }
}

async fn run_daemon(config: Config) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let on_signal = cancel.clone();
    let signals = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    });
    let outcome = daemon::run(config, cancel).await;
    signals.abort();
    outcome
}
