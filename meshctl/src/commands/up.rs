//! `up`: joins a mesh, or switches the node on again.

use std::io::Read as _;
use std::time::Duration;

use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::code;
use mesh_proto::local::{PATH_UP, RunState, Status, UpRequest};

use crate::args::UpArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::start;

/// An auth key is far shorter; what is longer is another file.
const KEY_LEN_MAX: u64 = 16 * 1024;

pub(super) async fn run(args: UpArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let auth_key = args.auth_key.as_deref().map(read_auth_key).transpose()?;
    start::ensure_running(client, output).await?;
    let request = UpRequest {
        auth_key: auth_key.as_ref().map(AuthKey::reveal),
        hostname: args.hostname,
        userspace: args.userspace,
        timeout_ms: Some(u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX)),
    };
    if let Some(key) = &auth_key {
        output.detail(&format!(
            "joining with auth key pxk_{}… at {}",
            key.prefix(),
            key.urls().join(", ")
        ));
    }
    let joining = client.post::<_, Status>(PATH_UP, &request, args.timeout);
    let status = output
        .during("joining the mesh", joining)
        .await
        .map_err(|failure| explain(failure, args.timeout))?;
    output.answer(&status, summary)?;
    // Right after a start the resolver is still being told: that is work, not trouble.
    let problems = status.problems.iter();
    for problem in problems.filter(|problem| problem.code != "names_pending") {
        output.note(&format!(
            "warning: {}",
            super::status::problem_line(problem)
        ));
    }
    if status.state == RunState::Running {
        next_steps(&status, output);
        return Ok(Exit::Done);
    }
    Ok(super::status::exit_of(&status))
}

/// Takes the key itself, `file:PATH` or `-`, and finds mistakes before anything is sent anywhere.
fn read_auth_key(argument: &str) -> Result<AuthKey, Failure> {
    let text = if argument == "-" {
        read_limited(std::io::stdin().lock(), "standard input")?
    } else if let Some(path) = argument.strip_prefix("file:") {
        let file = std::fs::File::open(path).map_err(|err| {
            Failure::usage(format!("cannot read the auth key from {path}: {err}"))
                .with_fix(format!("ls -l {path}"))
        })?;
        read_limited(file, path)?
    } else {
        argument.to_owned()
    };
    if text.trim().is_empty() {
        return Err(Failure::usage("there is no auth key in what was given")
            .with_fix("meshctl up --auth-key file:PATH"));
    }
    text.trim()
        .parse()
        .map_err(|err: mesh_proto::auth_key::AuthKeyError| {
            Failure::usage(err.to_string()).with_fix_note(
                "meshctl up --auth-key file:PATH",
                "a file keeps it whole, and out of the shell's history",
            )
        })
}

fn read_limited(source: impl std::io::Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    source
        .take(KEY_LEN_MAX)
        .read_to_string(&mut text)
        .map_err(|err| Failure::usage(format!("cannot read the auth key from {name}: {err}")))?;
    Ok(text)
}

fn explain(failure: Failure, timeout: Duration) -> Failure {
    match failure.code.as_str() {
        code::TIMEOUT => Failure {
            message: format!(
                "{} (waited {} s; meshd goes on trying)",
                failure.message,
                timeout.as_secs()
            ),
            ..failure
        }
        .with_fix_note("meshctl status", "what it waits for")
        .with_fix("meshctl wait"),
        _ => failure,
    }
}

fn summary(status: &Status) -> String {
    match &status.node {
        Some(node) if status.state == RunState::Running => {
            format!(
                "{} is up: {}, {} ({})\n",
                node.name, node.ipv4, node.ipv6, node.dns_name
            )
        }
        Some(_) | None => super::status::state_line(status.state),
    }
}

fn next_steps(status: &Status, output: &Output) {
    let Some(node) = &status.node else { return };
    output.hint("what next:");
    output.hint("  meshctl models       the models you can use");
    output.hint("  meshctl run MODEL    chat with one");
    if !node.is_sharing {
        output.hint("  meshctl share on     share this machine's own models");
    }
    output.hint(&format!(
        "  any Ollama or OpenAI client: {}",
        node.gateway_url
    ));
    let Some(userspace) = &node.userspace else {
        return;
    };
    if let Some(addr) = userspace.socks5 {
        output.hint(&format!("  anything else: ALL_PROXY=socks5h://{addr}"));
    }
    if let Some(addr) = userspace.http_proxy {
        output.hint(&format!("                 HTTP_PROXY=http://{addr}"));
    }
}
