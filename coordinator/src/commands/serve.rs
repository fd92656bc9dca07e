//! `coordinator serve`.

use std::future::pending;
use std::path::Path;

use coordinator::config::{ConfigFile, STATE_DIR};
use coordinator::serve::Server;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::ServeArgs;
use crate::client::Failure;
use crate::output::{line, note};

pub(crate) async fn run(mut args: ServeArgs) -> Result<(), Failure> {
    let wrong = |err: anyhow::Error| Failure::Other(format!("{err:#}"));
    let file = match args.config.take() {
        Some(path) => ConfigFile::read(&path).map_err(wrong)?,
        None => ConfigFile::default(),
    };
    let settings = args.into_file().over(file).into_settings().map_err(wrong)?;
    let state_dir = settings.state_dir.clone();
    let server = Server::start(settings).await.map_err(wrong)?;
    for address in server.addresses() {
        tracing::info!(%address, "listening");
    }
    for address in server.stun() {
        tracing::info!(%address, "answering STUN");
    }
    tracing::info!(urls = server.urls().join(" "), key = %server.coordinator_key(), "the coordinator runs");
    if let Some(first) = server.first_key() {
        note("A new mesh. On the machine that joins first (one use, one hour):");
        line(&format!("meshctl up --auth-key {}", first.key));
        let elsewhere = if state_dir == Path::new(STATE_DIR) {
            String::new()
        } else {
            format!(" --state-dir {}", state_dir.display())
        };
        note(&format!("More keys: coordinator key create{elsewhere}"));
    }
    wait_for_signal().await;
    tracing::info!("stopping");
    server.stop().await;
    Ok(())
}

pub(crate) async fn wait_for_signal() {
    let term = async {
        match signal(SignalKind::terminate()) {
            Ok(mut term) => drop(term.recv().await),
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        () = term => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
