//! `netcheck`: what the network around this node lets through.

use std::fmt::Write as _;

use mesh_proto::disco::Mapping;
use mesh_proto::local::{NetCheck, NoIpv6, PATH_NETCHECK, RelayCheck};

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, milliseconds, relay_words};

pub(super) async fn run(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let asking = client.get(PATH_NETCHECK);
    let check: NetCheck = output.during("asking the servers", asking).await?;
    output.answer(&check, describe)?;
    Ok(exit_of(&check))
}

/// Degraded when not even a relay is reached.
fn exit_of(check: &NetCheck) -> Exit {
    let has_udp = check.has_udp_ipv4 || check.has_udp_ipv6;
    if has_udp || check.relays.iter().any(|relay| relay.is_connected) {
        Exit::Done
    } else {
        Exit::Degraded
    }
}

fn describe(check: &NetCheck) -> String {
    let mut text = String::new();
    let udp = match (check.has_udp_ipv4, check.has_udp_ipv6) {
        (true, true) => "passes by IPv4 and IPv6",
        (true, false) => "passes by IPv4; not by IPv6",
        (false, true) => "passes by IPv6; not by IPv4",
        (false, false) => "blocked, or no server answers; peers are reached by relays alone",
    };
    let _ = writeln!(text, "UDP:       {udp}");
    if let Some(why) = check.no_ipv6 {
        let why = match why {
            NoIpv6::NoAddress => "this machine has no address of it",
            NoIpv6::NoServer => "no server of the mesh has an address of it to ask at",
            NoIpv6::NoAnswer => "this machine has an address of it, but no server answers there",
        };
        let _ = writeln!(text, "IPv6:      {why}");
    }
    let seen: Vec<String> = check.reflexive.iter().map(ToString::to_string).collect();
    let seen = if seen.is_empty() {
        "nowhere".to_owned()
    } else {
        seen.join(", ")
    };
    let _ = writeln!(text, "Seen at:   {seen}");
    let nat = match check.mapping {
        Mapping::EndpointIndependent => "no NAT, or one with which direct paths are easy",
        Mapping::EndpointDependent => {
            "another port for each destination; direct paths only to peers that are easy to reach"
        }
        Mapping::Unknown => "not known",
    };
    let _ = writeln!(text, "NAT:       {nat}");
    let mapped = check.port_mapping.as_ref().map_or_else(
        || "none".to_owned(),
        |mapping| format!("{} by {}", mapping.endpoint, mapping.protocol),
    );
    let _ = writeln!(text, "Port map:  {mapped}");
    if check.relays.is_empty() {
        text.push_str("Relays:    none in this mesh\n");
        return text;
    }
    let mut relays: Vec<_> = check.relays.iter().collect();
    relays.sort_by(|a, b| {
        let key = |relay: &RelayCheck| relay.rtt_ms.unwrap_or(f64::INFINITY);
        key(a).total_cmp(&key(b))
    });
    if let Some((relay, rtt_ms)) = relays
        .first()
        .and_then(|first| Some((first, first.rtt_ms?)))
    {
        let name = relay_words(&relay.id, &relay.name);
        let _ = writeln!(text, "Nearest:   relay {name}, {}", milliseconds(rtt_ms));
    }
    let mut table = Table::new(["RELAY", "LATENCY", "LINK"]);
    for relay in relays {
        let latency = relay
            .rtt_ms
            .map_or_else(|| "no answer".to_owned(), milliseconds);
        let link = match (relay.is_connected, relay.is_home) {
            (true, true) => "connected; home",
            (false, true) => "not connected; home",
            (true, false) => "connected",
            (false, false) => "not needed",
        };
        table.row([
            relay_words(&relay.id, &relay.name),
            latency,
            link.to_owned(),
        ]);
    }
    let _ = write!(text, "\n{table}");
    text
}
