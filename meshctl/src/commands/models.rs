//! `models`: the catalogue as this node sees it.

use std::time::Duration;

use mesh_proto::control::WantRequest;
use mesh_proto::local::{
    ModelHost, ModelStatus, Models, PATH_MODELS, PATH_PULL, PATH_WANTS, PullRequest, PullState,
    PullStatus,
};

use crate::args::{ModelsArgs, ModelsCommand, PullArgs, WantArgs};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::{Output, Table, bytes, clean};

pub(super) async fn run(
    args: ModelsArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    match args.command {
        Some(ModelsCommand::Want(args)) => return want(args, client, output).await,
        Some(ModelsCommand::Pull(args)) => return pull(args, client, output).await,
        None => {}
    }
    let Models { models } = client.get(PATH_MODELS).await?;
    let (fitting, others): (Vec<_>, Vec<_>) = models
        .into_iter()
        .partition(|model| is_wanted(&args, model));
    let is_filtered =
        args.filter.is_some() || args.host.is_some() || !args.can.is_empty() || args.loaded;
    if fitting.is_empty() && is_filtered {
        return Err(none_fits(&args, &others));
    }
    let shown = Models { models: fitting };
    if shown.models.is_empty() && !output.is_json() {
        output.note("Nobody shares a model with this node yet.");
        output.hint("share your own: meshctl share on");
        return Ok(Exit::Done);
    }
    output.answer(&shown, describe)?;
    Ok(Exit::Done)
}

/// The coordinator is asked for it.
const WANT_TIMEOUT: Duration = Duration::from_secs(15);

async fn want(args: WantArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let request = WantRequest {
        model: args.model,
        is_over: args.is_over,
    };
    client
        .post::<_, ()>(PATH_WANTS, &request, WANT_TIMEOUT)
        .await?;
    let model = clean(&request.model);
    output.answer(&super::DONE, |_| {
        if request.is_over {
            format!("You no longer want {model}.\n")
        } else {
            format!("Hosts see for 14 days that somebody wants {model}; who it is, they do not.\n")
        }
    })?;
    Ok(Exit::Done)
}

/// How often it is asked how a pull stands.
const PULL_POLL: Duration = Duration::from_secs(1);
const PULL_TIMEOUT: Duration = Duration::from_secs(40);

async fn pull(args: PullArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let request = PullRequest {
        model: args.model,
        host: args.on,
    };
    let mut shown = None;
    loop {
        let status: PullStatus = client.post(PATH_PULL, &request, PULL_TIMEOUT).await?;
        match status.state {
            PullState::Pulling => {
                let done = status.completed_bytes.saturating_mul(100);
                let percent = done.checked_div(status.total_bytes).unwrap_or(0);
                if shown != Some(percent) && !output.is_json() {
                    output.note(&format!(
                        "{} pulls {}: {percent} % of {}",
                        clean(&request.host),
                        clean(&status.model),
                        bytes(status.total_bytes)
                    ));
                    shown = Some(percent);
                }
            }
            PullState::Done => {
                output.answer(&status, |status| {
                    format!("{} has {}.\n", clean(&request.host), clean(&status.model))
                })?;
                return Ok(Exit::Done);
            }
            PullState::Failed => {
                let why = status
                    .message
                    .unwrap_or_else(|| "it gave no reason".to_owned());
                return Err(Failure::failed(format!(
                    "{} did not pull {}: {why}",
                    request.host, status.model
                )));
            }
        }
        tokio::time::sleep(PULL_POLL).await;
    }
}

fn is_wanted(args: &ModelsArgs, model: &ModelStatus) -> bool {
    let mut hosts = model.hosts.iter();
    args.filter
        .as_ref()
        .is_none_or(|filter| fits(filter, &model.model))
        && args.host.as_ref().is_none_or(|name| {
            let mut hosts = model.hosts.iter();
            hosts.any(|host| host.name.as_str().eq_ignore_ascii_case(name))
        })
        && args.can.iter().all(|wanted| {
            let mut known = model.capabilities.iter();
            known.any(|known| known.eq_ignore_ascii_case(wanted))
        })
        && (!args.loaded || hosts.any(|host| host.is_loaded))
}

fn none_fits(args: &ModelsArgs, models: &[ModelStatus]) -> Failure {
    let asked = match &args.filter {
        Some(filter) => format!("no model fits `{filter}`"),
        None => "no model fits".to_owned(),
    };
    let is_more = args.host.is_some() || !args.can.is_empty() || args.loaded;
    let words = match &args.filter {
        Some(filter) if is_more => {
            let n = models.iter().filter(|it| fits(filter, &it.model)).count();
            (n > 0).then(|| " and the other conditions".to_owned())
        }
        Some(filter) => {
            let names = near(filter, models.iter().map(|model| model.model.as_str()));
            did_you_mean(&names).map(|words| format!("; {words}"))
        }
        None => Some(" these conditions".to_owned()),
    };
    Failure::not_found(format!("{asked}{}", words.unwrap_or_default()))
        .with_fix_note("meshctl models", "lists all of them")
}

fn describe(shown: &Models) -> String {
    let mut table = Table::new([
        "MODEL",
        "PARAMETERS",
        "QUANTIZATION",
        "CONTEXT",
        "SIZE",
        "CLASS",
        "TOKENS/S",
        "HOSTS",
        "ADDRESS",
    ]);
    let mut has_loaded = false;
    for model in &shown.models {
        has_loaded |= model.hosts.iter().any(|host| host.is_loaded);
        table.row([
            model.model.clone(),
            or_dash(&model.parameter_size),
            or_dash(&model.quantization),
            if model.context_length == 0 {
                "-".to_owned()
            } else {
                model.context_length.to_string()
            },
            if model.size_bytes == 0 {
                "-".to_owned()
            } else {
                bytes(model.size_bytes)
            },
            price_class(model.price_class_milli),
            pace(&model.hosts),
            hosts(&model.hosts),
            model.dns_name.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let legend = if has_loaded {
        "\n* in memory there: answers at once\n"
    } else {
        ""
    };
    format!("{table}{legend}")
}

/// Credits for 1,000 output tokens.
fn price_class(milli: Option<u64>) -> String {
    milli.map_or_else(
        || "-".to_owned(),
        |milli| {
            let tenths = milli.saturating_add(50) / 100;
            format!("{}.{}", tenths / 10, tenths % 10)
        },
    )
}

/// The fastest host's.
fn pace(hosts: &[ModelHost]) -> String {
    let paces = hosts.iter().filter_map(|host| host.speed);
    let best = paces.map(|speed| speed.tokens_per_second).reduce(f64::max);
    best.map_or_else(
        || "-".to_owned(),
        |best| {
            if best < 10.0 {
                format!("{best:.1}")
            } else {
                format!("{best:.0}")
            }
        },
    )
}

fn hosts(hosts: &[ModelHost]) -> String {
    let words: Vec<String> = hosts
        .iter()
        .map(|host| {
            let loaded = if host.is_loaded { "*" } else { "" };
            let own = if host.is_self { " (this node)" } else { "" };
            let away = if host.is_healthy { "" } else { " (away)" };
            format!("{}{loaded}{own}{away}", host.name)
        })
        .collect();
    words.join(", ")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

/// Whether a model's name holds the text, or fits the pattern when the filter has a `*` or `?`.
fn fits(filter: &str, model: &str) -> bool {
    let (filter, model) = (filter.to_ascii_lowercase(), model.to_ascii_lowercase());
    if filter.contains(['*', '?']) {
        glob(filter.as_bytes(), model.as_bytes())
    } else {
        model.contains(&filter)
    }
}

/// Linear in the product of both lengths at worst: on a mismatch only the last `*` is tried again.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((after_star, from)) = retry else {
                    return false;
                };
                retry = Some((after_star, from + 1));
                p = after_star;
                t = from + 1;
            }
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_find_by_text_and_by_pattern() {
        let cases = [
            ("llama", "llama3.2:1b", true),
            ("LLAMA", "llama3.2:1b", true),
            ("llama3*", "llama3.2:1b", true),
            ("*:1b", "llama3.2:1b", true),
            ("llama?.2*", "llama3.2:1b", true),
            ("llama", "qwen3:8b", false),
            ("l*a", "llama3.2", false),
            ("*", "", true),
            ("a*b*c", "aXbXbXc", true),
            ("?", "", false),
        ];
        for (filter, model, expected) in cases {
            assert_eq!(fits(filter, model), expected, "{filter} {model}");
        }
    }
}
