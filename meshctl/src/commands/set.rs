//! `set`: settings that stay, each by its own key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use mesh_proto::local::{NameMode, PATH_SETTINGS, SetRequest, Settings, UserspaceMode};

use crate::args::SetArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::Output;

const KEYS: [&str; 8] = [
    "names",
    "dns",
    "operator",
    "userspace",
    "socks5",
    "http-proxy",
    "gateway",
    "relay",
];
const SOCKET_GROUP: &str = "proxima";

pub(super) async fn run(args: SetArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    if args.values.is_empty() {
        let settings: Settings = client.get(PATH_SETTINGS).await?;
        output.answer(&settings, describe)?;
        return Ok(Exit::Done);
    }
    let mut request = SetRequest::default();
    let mut operator = None;
    for pair in &args.values {
        let (key, value) = parse_pair(pair)?;
        if key == "operator" {
            let uid = parse_operator(value)?;
            operator = uid.is_some().then(|| value.to_owned());
            let uid = uid.map_or_else(|| "none".to_owned(), |uid| uid.to_string());
            request.values.insert("operator_uid".to_owned(), uid);
        } else {
            request.values.insert(key.to_owned(), value.to_owned());
        }
    }
    let settings: Settings = client
        .post(PATH_SETTINGS, &request, std::time::Duration::ZERO)
        .await?;
    output.answer(&settings, describe)?;
    if let Some(user) = operator
        && !is_in_socket_group(&user)
    {
        output.hint(&format!(
            "{user} also needs to reach the control socket: sudo usermod -aG {SOCKET_GROUP} {user}     (then log in again)"
        ));
    }
    Ok(Exit::Done)
}

fn parse_pair(pair: &str) -> Result<(&str, &str), Failure> {
    let Some((key, value)) = pair.split_once('=') else {
        return Err(
            Failure::usage(format!("`{pair}` sets nothing: write KEY=VALUE"))
                .with_fix("meshctl set names=gateway"),
        );
    };
    let allowed: &[&str] = match key {
        "names" => &["direct", "gateway"],
        "dns" | "relay" => &["on", "off"],
        "userspace" => &["on", "off", "auto"],
        // The daemon knows what makes an address.
        "operator" | "socks5" | "http-proxy" | "gateway" => return Ok((key, value)),
        _ => {
            let words = did_you_mean(&near(key, KEYS))
                .map(|words| format!("; {words}"))
                .unwrap_or_default();
            return Err(
                Failure::usage(format!("there is no setting `{key}`{words}"))
                    .with_fix_note("meshctl set", "shows all settings"),
            );
        }
    };
    if !allowed.contains(&value) {
        return Err(Failure::usage(format!(
            "`{key}` is {}, not `{value}`",
            allowed.join(" or ")
        ))
        .with_fix(format!("meshctl set {key}={}", allowed[0])));
    }
    Ok((key, value))
}

/// A uid, or the uid of a user; `None` takes the right back.
fn parse_operator(value: &str) -> Result<Option<u32>, Failure> {
    if value.is_empty() || value == "none" {
        return Ok(None);
    }
    if let Ok(uid) = value.parse() {
        return Ok(Some(uid));
    }
    uid_of(value).map(Some).ok_or_else(|| {
        Failure::usage(format!("there is no user `{value}` on this machine"))
            .with_fix_note("id -un", "your own user's name")
    })
}

/// Asks `getent`, so that users of a directory service are found too.
fn uid_of(user: &str) -> Option<u32> {
    let by_getent = Command::new("getent")
        .args(["passwd", "--", user])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok();
    let text = match by_getent {
        Some(output) if output.status.success() => String::from_utf8(output.stdout).ok()?,
        _ => std::fs::read_to_string("/etc/passwd").ok()?,
    };
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(user))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

fn is_in_socket_group(user: &str) -> bool {
    let Ok(groups) = std::fs::read_to_string("/etc/group") else {
        return false;
    };
    user == "root"
        || groups.lines().any(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(SOCKET_GROUP)
                && fields
                    .nth(2)
                    .is_some_and(|members| members.split(',').any(|member| member == user))
        })
}

fn describe(settings: &Settings) -> String {
    let names = match settings.names {
        NameMode::Direct => "direct     (model names answer with the addresses of hosts)",
        NameMode::Gateway => "gateway    (model names answer with this node's own gateway)",
    };
    let dns = if settings.dns {
        "on         (this system's resolver is pointed at the mesh's names)"
    } else {
        "off        (names are served, and nothing on this system points at them)"
    };
    let operator = settings.operator_uid.map_or_else(
        || "none       (only root may change anything)".to_owned(),
        |uid| format!("{uid:<10} (the user with this uid may control meshd beside root)"),
    );
    let userspace = match settings.userspace {
        UserspaceMode::Auto => {
            "auto       (without a network interface where the machine gives none)"
        }
        UserspaceMode::On => "on         (without a network interface, by proxies)",
        UserspaceMode::Off => "off        (with a network interface, or not at all)",
    };
    let listener = |addr: Option<SocketAddr>| {
        let addr = addr.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        format!("{addr:<10} (in userspace mode)")
    };
    let (socks5, http_proxy) = (listener(settings.socks5), listener(settings.http_proxy));
    let gateway = listener(Some(settings.gateway));
    let relay = if settings.relay {
        "on         (other nodes may use this one as a relay; meshctl status tells when it is not reached)"
    } else {
        "off        (this node carries nothing for others)"
    };
    let lines = BTreeMap::from([
        ("names", names),
        ("dns", dns),
        ("operator", operator.as_str()),
        ("userspace", userspace),
        ("socks5", &socks5),
        ("http-proxy", &http_proxy),
        ("gateway", &gateway),
        ("relay", relay),
    ]);
    lines
        .iter()
        .map(|(key, value)| format!("{key:<10} {value}\n"))
        .collect()
}
