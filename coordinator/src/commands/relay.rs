//! `coordinator relay`: runs a relay alone, and lets relays into a mesh.

use coordinator::config::{BYTES_PER_MEGABIT, check_urls, default_listen};
use coordinator::serve::now_ms;
use coordinator::{RelayServer, RelaySettings};
use hyper::Method;
use mesh_proto::admin::{CreatedRelay, NewRelay, RelayInfo};
use mesh_proto::auth_key::AuthKeyError;

use super::segment;
use super::serve::wait_for_signal;
use crate::args::{Access, RelayArgs, RelayCommand, RelayRunArgs};
use crate::client::{Client, Failure};
use crate::output::{done, json, json_list, line, note, table, when};

const PATH: &str = "/api/v1/relays";

pub(crate) async fn run(args: RelayArgs) -> Result<(), Failure> {
    match args.command {
        None => serve(args.run).await,
        Some(RelayCommand::Add { name, ttl, access }) => {
            let asked = NewRelay {
                name,
                ttl_seconds: ttl,
            };
            add(&access, &asked).await
        }
        Some(RelayCommand::List(access)) => list(&access).await,
        Some(RelayCommand::Remove { name, access }) => {
            Client::new(&access)?
                .delete(&format!("{PATH}/{}", segment(name.as_str())))
                .await?;
            done(access.json, "Removed.")
        }
    }
}

async fn serve(args: RelayRunArgs) -> Result<(), Failure> {
    let wrong = |err: anyhow::Error| Failure::Other(format!("{err:#}"));
    check_urls(&args.url).map_err(wrong)?;
    let auth_key = args
        .auth_key
        .map(|key| key.parse())
        .transpose()
        .map_err(|err: AuthKeyError| Failure::other(err))?;
    let is_listen_default = args.listen.is_empty();
    let settings = RelaySettings {
        auth_key,
        listen: if is_listen_default {
            default_listen()
        } else {
            args.listen
        },
        is_listen_default,
        stun: (!args.stun.is_empty()).then_some(args.stun),
        urls: args.url,
        state_dir: args.state_dir,
        bytes_per_second: args.rate_mbit.saturating_mul(BYTES_PER_MEGABIT),
    };
    let server = RelayServer::start(settings).await.map_err(wrong)?;
    for address in server.addresses() {
        tracing::info!(%address, "listening");
    }
    tracing::info!(urls = server.urls().join(" "), "the relay runs");
    wait_for_signal().await;
    tracing::info!("stopping");
    server.stop().await;
    Ok(())
}

async fn add(access: &Access, asked: &NewRelay) -> Result<(), Failure> {
    let created: CreatedRelay = Client::new(access)?.send(Method::POST, PATH, asked).await?;
    if access.json {
        return json(&created);
    }
    line(&created.key);
    let ends = created
        .info
        .key_expires_at_ms
        .map_or_else(String::new, |at| format!(", ends {}", when(at, now_ms())));
    note(&format!(
        "For one relay{ends}. It is shown this once. On the machine of the relay:"
    ));
    note("  coordinator relay --auth-key KEY --url https://HOST:PORT");
    Ok(())
}

async fn list(access: &Access) -> Result<(), Failure> {
    let relays: Vec<RelayInfo> = Client::new(access)?.get(PATH).await?;
    if access.json {
        return json_list(&relays);
    }
    let now_ms = now_ms();
    let rows = relays.iter().map(|relay| {
        let id = relay
            .id
            .map_or_else(|| "waits for it".to_owned(), |id| id.to_string());
        vec![
            relay.name.to_string(),
            id,
            relay.urls.join(" "),
            when(relay.created_at_ms, now_ms),
        ]
    });
    table(&["NAME", "ID", "URLS", "ADDED"], rows);
    Ok(())
}
