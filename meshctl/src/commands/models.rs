//! `models`: the catalogue as this node sees it.

use mesh_proto::local::{ModelHost, ModelStatus, Models, PATH_MODELS};

use crate::args::ModelsArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::{Output, Table, bytes};

pub(super) async fn run(
    args: ModelsArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    let Models { models } = client.get(PATH_MODELS).await?;
    let shown = match &args.filter {
        None => Models { models },
        Some(filter) => {
            let (fitting, others): (Vec<_>, Vec<_>) = models
                .into_iter()
                .partition(|model| fits(filter, &model.model));
            if fitting.is_empty() {
                return Err(none_fits(filter, &others));
            }
            Models { models: fitting }
        }
    };
    if shown.models.is_empty() && !output.is_json() {
        output.note("Nobody shares a model with this node yet.");
        output.hint("share your own: meshctl share on");
        return Ok(Exit::Done);
    }
    output.answer(&shown, describe)?;
    Ok(Exit::Done)
}

fn none_fits(filter: &str, models: &[ModelStatus]) -> Failure {
    let names = near(filter, models.iter().map(|model| model.model.as_str()));
    let words = did_you_mean(&names)
        .map(|words| format!("; {words}"))
        .unwrap_or_default();
    Failure::not_found(format!("no model fits `{filter}`{words}"))
        .with_fix_note("meshctl models", "lists all of them")
}

fn describe(shown: &Models) -> String {
    let mut table = Table::new([
        "MODEL",
        "PARAMETERS",
        "QUANTIZATION",
        "CONTEXT",
        "SIZE",
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
