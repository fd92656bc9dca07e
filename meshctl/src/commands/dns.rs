//! `dns`: how names are wired into this system, and what this node itself answers.

use std::fmt::Write as _;

use mesh_proto::local::{DnsAnswer, DnsRecord, DnsStatus, PATH_DNS, PATH_DNS_QUERY};

use crate::args::{DnsArgs, DnsCommand, DnsQueryArgs};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, clean, plural};

pub(super) async fn run(args: &DnsArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    match &args.command {
        None | Some(DnsCommand::Status) => status(client, output).await,
        Some(DnsCommand::Query(args)) => query(args, client, output).await,
    }
}

async fn query(args: &DnsQueryArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let is_plain = |text: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
        !text.is_empty() && text.bytes().all(is_plain)
    };
    if !is_plain(&args.name) || !is_plain(&args.kind) {
        return Err(Failure::usage(format!(
            "`{} {}` is no DNS name and type",
            args.name, args.kind
        ))
        .with_fix("meshctl dns query ollama.proxima"));
    }
    let path = format!("{PATH_DNS_QUERY}?name={}&type={}", args.name, args.kind);
    let answer: DnsAnswer = client.get(&path).await?;
    output.answer(&answer, records)?;
    if answer.answers.is_empty() {
        let what = if answer.code == "NXDOMAIN" {
            "no such name"
        } else {
            "no record of that type"
        };
        output.note(&format!("{}: {what}", clean(&answer.name)));
        return Ok(Exit::NotFound);
    }
    Ok(Exit::Done)
}

fn records(answer: &DnsAnswer) -> String {
    let records = answer.answers.iter().chain(&answer.additionals);
    let lines = records.map(|record| {
        let DnsRecord {
            name,
            ttl,
            kind,
            data,
        } = record;
        clean(&format!("{name} {ttl} {kind} {data}")) + "\n"
    });
    lines.collect()
}

async fn status(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let status: DnsStatus = client.get(PATH_DNS).await?;
    output.answer(&status, describe)?;
    Ok(if status.is_wired {
        Exit::Done
    } else {
        Exit::Degraded
    })
}

fn describe(status: &DnsStatus) -> String {
    let list = |items: Vec<String>| {
        if items.is_empty() {
            "none".to_owned()
        } else {
            items.join(", ")
        }
    };
    let servers = list(status.servers.iter().map(ToString::to_string).collect());
    let upstreams = list(status.upstreams.iter().map(ToString::to_string).collect());
    let n_models = u64::try_from(status.n_models).unwrap_or(u64::MAX);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Names:     *.{} and *.{}; {}",
        status.suffix,
        status.alias,
        plural(n_models, "model name")
    );
    let _ = writeln!(text, "Resolver:  {servers}");
    if status.is_wired && status.manager == "none" {
        let _ = writeln!(
            text,
            "System:    set up by hand; programs resolve these names"
        );
    } else if status.is_wired {
        let _ = writeln!(
            text,
            "System:    set up through {}; programs resolve these names",
            status.manager
        );
        let _ = writeln!(text, "           to undo it: meshctl set dns=off");
    } else {
        let _ = writeln!(
            text,
            "System:    not set up; programs do not resolve these names"
        );
        if let Some(hint) = &status.hint {
            for line in clean(hint).lines() {
                let _ = writeln!(text, "           {line}");
            }
        }
    }
    let _ = writeln!(text, "Others:    forwarded to {upstreams}");
    text
}
