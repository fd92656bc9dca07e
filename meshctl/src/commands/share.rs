//! `share`: what this machine offers to its mesh, with whom, and how much.

mod door;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::local::{
    BackendStatus, PATH_SHARE, PATH_WANTS, PullChange, ShareRequest, ShareStatus, Suggestions,
};
use mesh_proto::share::{Audience, BackendApi, Gpu};

use crate::args::{ShareArgs, ShareCommand, ShareOptions};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, ago, bytes, clean, plural};

/// The daemon looks for model servers before it answers.
const SHARE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(
    args: ShareArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    let status = match args.command.unwrap_or(ShareCommand::Status) {
        ShareCommand::Suggestions => return suggestions(client, output).await,
        ShareCommand::Status => client.get::<ShareStatus>(PATH_SHARE).await?,
        ShareCommand::On(options) => {
            let request = ShareRequest {
                is_on: Some(true),
                ..request(options)?
            };
            change(&request, client, output).await?
        }
        ShareCommand::Off => {
            let request = ShareRequest {
                is_on: Some(false),
                ..ShareRequest::default()
            };
            change(&request, client, output).await?
        }
        ShareCommand::Set(options) => {
            let request = request(options)?;
            if request == ShareRequest::default() {
                return Err(Failure::usage("nothing to change was named")
                    .with_fix("meshctl share set --models 'llama3*' --audience mine --slots 2")
                    .with_fix_note("meshctl share status", "shows what is set"));
            }
            change(&request, client, output).await?
        }
        ShareCommand::Limit(args) => {
            let request = ShareRequest {
                door: Some(door::limit(args)?),
                ..ShareRequest::default()
            };
            change(&request, client, output).await?
        }
    };
    output.answer(&status, describe)?;
    for backend in &status.backends {
        if let Some(warning) = &backend.warning {
            output.note(&format!("warning: {}", clean(warning)));
        }
    }
    if status.is_on && status.backends.is_empty() {
        output.note("warning: no model server was found on this machine, so nothing is shared yet");
        output.hint(
            "start Ollama, or name a server: meshctl share set --backend http://127.0.0.1:8080",
        );
    }
    Ok(Exit::Done)
}

async fn suggestions(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let wanted: Suggestions = client.get(PATH_WANTS).await?;
    if wanted.models.is_empty() && !output.is_json() {
        output.note("Nobody asks for a model at the moment.");
        output.hint("who would like one: meshctl models want NAME");
        return Ok(Exit::Done);
    }
    output.answer(&wanted, |wanted| {
        let now = unix_ms();
        let mut table = Table::new(["MODEL", "WANTED BY", "LAST ASKED", "HOSTS", "THIS MACHINE"]);
        for model in &wanted.models {
            let age = Duration::from_millis(now.saturating_sub(model.asked_at_ms));
            table.row([
                model.model.clone(),
                plural(model.n_users.into(), "user"),
                ago(age),
                model.n_hosts.to_string(),
                match (model.is_shared, model.is_here) {
                    (true, _) => "shares it",
                    (false, true) => "has it, does not share it",
                    (false, false) => "does not have it",
                }
                .to_owned(),
            ]);
        }
        table.to_string()
    })?;
    Ok(Exit::Done)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn pulls(who: Option<&str>, budget_bytes: Option<u64>) -> Result<Option<PullChange>, Failure> {
    let users = match who {
        None => None,
        Some("none") => Some(Vec::new()),
        Some(who) => match parse_audience(who) {
            Ok(Audience::Users(users)) => Some(users),
            Ok(Audience::Everyone | Audience::Mine) | Err(_) => {
                return Err(Failure::usage(format!("`{who}` names no users"))
                    .with_fix("meshctl share set --pulls users:anna,bob --pull-budget 50GiB")
                    .with_fix_note("meshctl share set --pulls none", "lets nobody"));
            }
        },
    };
    let change = PullChange {
        users,
        budget_bytes,
    };
    Ok((change != PullChange::default()).then_some(change))
}

async fn change(
    request: &ShareRequest,
    client: &Client,
    output: &Output,
) -> Result<ShareStatus, Failure> {
    output
        .during(
            "looking at the models of this machine",
            client.post(PATH_SHARE, request, SHARE_TIMEOUT),
        )
        .await
}

fn request(options: ShareOptions) -> Result<ShareRequest, Failure> {
    let door = door::change(&options)?;
    let models = options.models.map(|models| {
        let is_all = models
            .iter()
            .any(|model| matches!(model.trim(), "all" | "*"));
        if is_all {
            Vec::new()
        } else {
            models
                .iter()
                .map(|model| model.trim().to_owned())
                .filter(|it| !it.is_empty())
                .collect()
        }
    });
    let backends = match options.backend.as_slice() {
        [] => None,
        [only] if only == "auto" => Some(Vec::new()),
        urls => Some(
            urls.iter()
                .map(|url| parse_backend(url))
                .collect::<Result<Vec<_>, _>>()?,
        ),
    };
    Ok(ShareRequest {
        is_on: None,
        models,
        audience: options
            .audience
            .as_deref()
            .map(parse_audience)
            .transpose()?,
        n_slots: options.slots,
        backends,
        door,
        pulls: pulls(options.pulls.as_deref(), options.pull_budget)?,
    })
}

fn parse_audience(text: &str) -> Result<Audience, Failure> {
    match text {
        "everyone" => return Ok(Audience::Everyone),
        "mine" => return Ok(Audience::Mine),
        _ => {}
    }
    let Some(names) = text.strip_prefix("users:") else {
        return Err(Failure::usage(format!(
            "`{text}` is no audience: it is everyone, mine, or users:NAME,NAME"
        ))
        .with_fix("meshctl share set --audience users:anna,bob"));
    };
    let names = names
        .split(',')
        .map(|name| {
            name.trim()
                .parse()
                .map_err(|err: mesh_proto::id::IdError| Failure::usage(format!("`{name}`: {err}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Audience::Users(names))
}

fn parse_backend(text: &str) -> Result<String, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "`{text}` is no URL of a model server: it looks like http://127.0.0.1:11434"
        ))
        .with_fix("meshctl share set --backend http://127.0.0.1:8080")
    };
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_http && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

fn describe(status: &ShareStatus) -> String {
    let mut text = String::new();
    if !status.is_on {
        text.push_str("Sharing is off: nobody can use the models of this machine.\n");
    } else if status.offers.models.is_empty() {
        text.push_str("Sharing is on, and there is no model to share.\n");
    } else {
        let n = u64::try_from(status.offers.models.len()).unwrap_or(u64::MAX);
        let _ = writeln!(
            text,
            "Sharing {} with {}.",
            plural(n, "model"),
            audience_words(&status.offers.audience)
        );
    }
    if !status.offers.models.is_empty() {
        text.push('\n');
        let mut table = Table::new(["MODEL", "PARAMETERS", "QUANTIZATION", "SIZE", "IN MEMORY"]);
        for offer in &status.offers.models {
            table.row([
                offer.model.clone(),
                offer.parameter_size.clone(),
                offer.quantization.clone(),
                if offer.size_bytes == 0 {
                    "-".to_owned()
                } else {
                    bytes(offer.size_bytes)
                },
                if offer.is_loaded {
                    "yes".to_owned()
                } else {
                    "no".to_owned()
                },
            ]);
        }
        let _ = write!(text, "{table}");
    }
    text.push('\n');
    let models = if status.models.is_empty() {
        "all".to_owned()
    } else {
        status.models.join(", ")
    };
    let _ = writeln!(text, "Models:    {}", clean(&models));
    let _ = writeln!(
        text,
        "Audience:  {}",
        audience_words(&status.offers.audience)
    );
    if status.is_on {
        let _ = writeln!(
            text,
            "Requests:  {} at once; {} running, {} waiting",
            status.offers.n_slots, status.n_active, status.n_queued
        );
    }
    door::describe(&status.door, &mut text);
    if !status.pulls.users.is_empty() {
        let names: Vec<&str> = status
            .pulls
            .users
            .iter()
            .map(mesh_proto::id::UserName::as_str)
            .collect();
        let _ = writeln!(
            text,
            "Pulls:     by {}, {} of models at most",
            names.join(", "),
            bytes(status.pulls.budget_bytes)
        );
    }
    for backend in &status.backends {
        let _ = writeln!(text, "Server:    {}", backend_words(backend));
    }
    for gpu in &status.gpus {
        let _ = writeln!(text, "GPU:       {}", gpu_words(gpu));
    }
    text
}

fn audience_words(audience: &Audience) -> String {
    match audience {
        Audience::Everyone => "everyone in the mesh".to_owned(),
        Audience::Mine => "your own nodes".to_owned(),
        Audience::Users(names) => {
            let names: Vec<&str> = names.iter().map(mesh_proto::id::UserName::as_str).collect();
            format!("your own nodes and those of {}", names.join(", "))
        }
    }
}

fn backend_words(backend: &BackendStatus) -> String {
    let api = match backend.api {
        BackendApi::Ollama => "Ollama",
        BackendApi::OpenAi => "OpenAI-compatible",
    };
    let n = u64::try_from(backend.n_models).unwrap_or(u64::MAX);
    let state = backend.error.as_ref().map_or_else(
        || plural(n, "model"),
        |error| format!("cannot be used: {error}"),
    );
    clean(&format!("{} ({api}), {state}", backend.url))
}

fn gpu_words(gpu: &Gpu) -> String {
    let mut words = gpu.name.clone();
    if let (Some(used), Some(total)) = (gpu.memory_used_bytes, gpu.memory_total_bytes) {
        let _ = write!(words, ", {} of {} used", bytes(used), bytes(total));
    }
    if let Some(busy) = gpu.utilization_percent {
        let _ = write!(words, ", {busy} % busy");
    }
    clean(&words)
}
