//! `usage`: what was used of this machine's models.

use std::collections::BTreeMap;

use mesh_proto::local::PATH_USAGE;
use mesh_proto::usage::{UsageReport, UsageRow, UsageSum};

use crate::args::{UsageArgs, UsageBy};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, bytes, plural};

pub(super) async fn run(
    args: &UsageArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    let path = format!("{PATH_USAGE}?days={}", args.days);
    let report: UsageReport = client.get(&path).await?;
    if report.rows.is_empty() && !output.is_json() {
        output.note(&format!(
            "Nobody used a model of this machine in the last {}.",
            plural(u64::from(args.days), "day")
        ));
        return Ok(Exit::Done);
    }
    output.answer(&report, |report| describe(report, args.by))?;
    if report.n_unwritten > 0 {
        output.note(&format!(
            "warning: {} could not be written to disk yet; is it full?",
            plural(report.n_unwritten, "record")
        ));
    }
    Ok(Exit::Done)
}

fn describe(report: &UsageReport, by: Option<UsageBy>) -> String {
    let mut sums: BTreeMap<Vec<String>, UsageSum> = BTreeMap::new();
    for row in &report.rows {
        sums.entry(key(row, by)).or_default().add(&row.sum);
    }
    let names: &[&str] = match by {
        None => &["GUEST", "MODEL"],
        Some(UsageBy::Guest) => &["GUEST"],
        Some(UsageBy::Model) => &["MODEL"],
        Some(UsageBy::Day) => &["DAY"],
    };
    let figures = [
        "REQUESTS",
        "BROKEN",
        "PROMPT TOKENS",
        "OUTPUT TOKENS",
        "REPLIES",
        "WORK",
    ];
    let mut sums: Vec<(Vec<String>, UsageSum)> = sums.into_iter().collect();
    if by != Some(UsageBy::Day) {
        let tokens = |sum: &UsageSum| sum.prompt_tokens.saturating_add(sum.output_tokens);
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(tokens(sum)));
    }
    let mut all = UsageSum::default();
    let has_doubts = report.rows.iter().any(|row| row.sum.n_doubtful > 0);
    let mut lines: Vec<Vec<String>> = Vec::with_capacity(sums.len() + 1);
    for (key, sum) in sums {
        all.add(&sum);
        lines.push(line(key, &sum));
    }
    if lines.len() > 1 {
        let mut key = vec![String::new(); names.len()];
        key[0] = "together".to_owned();
        lines.push(line(key, &all));
    }
    let legend = if has_doubts {
        format!(
            "\nIn {} the model server's count of tokens does not agree with what was delivered.\n",
            plural(all.n_doubtful, "answer")
        )
    } else {
        String::new()
    };
    let mut table = Table::with_header(names.iter().copied().chain(figures).collect());
    for line in lines {
        table.cells(line);
    }
    format!("{table}{legend}")
}

fn key(row: &UsageRow, by: Option<UsageBy>) -> Vec<String> {
    let guest = || {
        let own = if row.is_owner { " (you)" } else { "" };
        format!("{}{own}", row.guest)
    };
    match by {
        None => vec![guest(), row.model.clone()],
        Some(UsageBy::Guest) => vec![guest()],
        Some(UsageBy::Model) => vec![row.model.clone()],
        Some(UsageBy::Day) => vec![row.day.clone()],
    }
}

fn line(mut key: Vec<String>, sum: &UsageSum) -> Vec<String> {
    let minutes = sum.work_ms / 60_000;
    let work = if minutes < 1 {
        format!("{} s", sum.work_ms.div_ceil(1_000))
    } else if minutes < 120 {
        format!("{minutes} min")
    } else {
        format!("{} h", minutes / 60)
    };
    key.extend([
        sum.n_requests.to_string(),
        sum.n_broken.to_string(),
        sum.prompt_tokens.to_string(),
        sum.output_tokens.to_string(),
        bytes(sum.n_bytes),
        work,
    ]);
    key
}
