//! `dns`: how names are wired into this system.

use std::fmt::Write as _;

use mesh_proto::local::{DnsStatus, PATH_DNS};

use crate::args::{DnsArgs, DnsCommand};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, clean, plural};

pub(super) async fn run(args: &DnsArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    match &args.command {
        None | Some(DnsCommand::Status) => {}
    }
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
