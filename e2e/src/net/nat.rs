//! Routers that translate addresses, as stand in front of most machines; behaviours are named as in RFC 4787.
//!
//! ```text
//!   host 1  eth0 192.168.1.2/24 ── h1 192.168.1.1 (NAT) out 203.0.1.2/24 ── h1 203.0.1.1 (router)
//! ```
//! Whatever comes from outside and was not asked for is dropped there before it is remembered: else a ping of a peer that
//! came too early would take the mapping that the host's own needs.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Host, Lab, ip};
use crate::process::ensure_success;

/// What a router does with UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Endpoint-independent mapping, address-and-port-dependent filtering: most homes.
    PortRestricted,
    /// Address-and-port-dependent mapping and filtering.
    Symmetric,
    /// A port-restricted one at home behind another of the carrier.
    Carrier,
    /// Passes TCP alone.
    NoUdp,
}

/// Whether only a guessed port makes a direct path between two hosts behind such routers.
#[must_use]
pub fn needs_luck(a: Option<Nat>, b: Option<Nat>) -> bool {
    let is_strict = |nat| {
        matches!(
            nat,
            Some(Nat::PortRestricted | Nat::Symmetric | Nat::Carrier)
        )
    };
    let is_hard = |a, b| a == Some(Nat::Symmetric) && is_strict(b);
    is_hard(a, b) || is_hard(b, a)
}

/// How two hosts behind one router reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lan {
    /// By a switch between them.
    Shared,
    /// Only by the router's outer address, which it translates for them: hairpinning, RFC 4787 section 6.
    Apart,
}

/// The tunnel's port, which maps to itself where mapping is endpoint-independent.
const PORT: u16 = 41_820;

impl Nat {
    /// What the router does beside dropping what was not asked for.
    fn rules(self, inside: &str) -> String {
        let masquerade = match self {
            Self::Symmetric => "masquerade fully-random",
            Self::FullCone
            | Self::Restricted
            | Self::PortRestricted
            | Self::Carrier
            | Self::NoUdp => "masquerade",
        };
        let forward = match self {
            Self::Restricted => {
                "oifname \"out\" meta l4proto udp update @asked { ip daddr timeout 120s }"
                    .to_owned()
            }
            Self::NoUdp => "meta l4proto udp drop".to_owned(),
            Self::FullCone | Self::PortRestricted | Self::Symmetric | Self::Carrier => {
                String::new()
            }
        };
        let inward = match self {
            Self::FullCone => format!("iifname \"out\" udp dport {PORT} dnat to {inside}"),
            Self::Restricted => {
                format!("iifname \"out\" ip saddr @asked udp dport {PORT} dnat to {inside}")
            }
            Self::PortRestricted | Self::Symmetric | Self::Carrier | Self::NoUdp => String::new(),
        };
        format!(
            "table ip nat {{
    set asked {{ type ipv4_addr; flags dynamic,timeout; size 1024; }}
    chain inward {{ type nat hook prerouting priority dstnat; {inward}; }}
    chain outward {{ type nat hook postrouting priority srcnat; oifname \"out\" {masquerade}; }}
    chain forward {{ type filter hook forward priority 0; {forward}; }}
    chain input {{ type filter hook input priority 0; iifname \"out\" ct state new drop; }}
}}"
        )
        .replace("; ; }", "; }")
    }
}

impl Lab {
    /// Puts a router with a NAT between a host and the rest of the lab. The host loses IPv6 there.
    ///
    /// # Errors
    /// When a command is refused, or the host has one already.
    pub fn put_behind(&self, host: &Host, nat: Nat) -> Result<()> {
        let n = self.number(host);
        let namespace = format!("{}-nat", host.namespace()?);
        add_router(&namespace)?;
        let link = self.lead_to(host, &namespace)?;
        add_gateway(&namespace, n, &link)?;
        let (outer, far) = (format!("203.0.{n}.2"), format!("203.0.{n}.1"));
        match nat {
            Nat::Carrier => {
                let carrier = format!("{}-cgn", host.namespace()?);
                add_router(&carrier)?;
                let (own, gateway) = (format!("100.64.{n}.2"), format!("100.64.{n}.1"));
                join(&namespace, &own, &carrier, "in", &gateway)?;
                join(&carrier, &outer, &self.router, &link, &far)?;
                filter(&carrier, &nat.rules(&own))?;
            }
            Nat::FullCone | Nat::Restricted | Nat::PortRestricted | Nat::Symmetric | Nat::NoUdp => {
                join(&namespace, &outer, &self.router, &link, &far)?
            }
        }
        filter(&namespace, &nat.rules(&host.ipv4.to_string()))
    }

    /// Puts two hosts behind one router, which maps each of their tunnel ports to one that it keeps, and passes from outside
    /// what was asked for alone. The hosts lose IPv6 there.
    ///
    /// # Errors
    /// When a command is refused, or one of them is behind a router already.
    pub fn put_both_behind(&self, (one, other): (&Host, &Host), lan: Lan) -> Result<()> {
        let n = self.number(one);
        let namespace = format!("{}-nat", one.namespace()?);
        add_router(&namespace)?;
        if lan == Lan::Shared {
            ip(&["-n", &namespace, "link", "add", "lan", "type", "bridge"])?;
            ip(&["-n", &namespace, "link", "set", "lan", "up"])?;
        }
        let outer = format!("203.0.{n}.2");
        let mut rules = String::new();
        for host in [one, other] {
            let m = self.number(host);
            let link = self.lead_to(host, &namespace)?;
            let on = match lan {
                Lan::Shared => {
                    ip(&["-n", &namespace, "link", "set", &link, "master", "lan"])?;
                    let near = format!("{}/24", near(host.ipv4));
                    ip(&[
                        "-n",
                        host.namespace()?,
                        "address",
                        "add",
                        &near,
                        "dev",
                        "eth0",
                    ])?;
                    "lan"
                }
                Lan::Apart => &link,
            };
            add_gateway(&namespace, m, on)?;
            let port = usize::from(PORT) + m;
            rules += &keep_port(host.ipv4, &outer, port);
        }
        join(
            &namespace,
            &outer,
            &self.router,
            &format!("h{n}"),
            &format!("203.0.{n}.1"),
        )?;
        // What a bridge carries may pass the filter of forwarding too, as with br_netfilter.
        rules += "table ip nat {
    chain outward { type nat hook postrouting priority 100; oifname \"out\" masquerade; }
    chain forward {
        type filter hook forward priority 0;
        iifname \"out\" ct state new drop;
        iifname \"out\" accept; oifname \"out\" accept; ct status dnat accept;
        iifname \"lan\" oifname \"lan\" accept;
        drop;
    }
    chain input { type filter hook input priority 0; iifname \"out\" ct state new drop; }
}";
        filter(&namespace, &rules)
    }

    /// Moves the router's end of a host's link into a namespace, and gives its name.
    fn lead_to(&self, host: &Host, namespace: &str) -> Result<String> {
        let link = format!("h{}", self.number(host));
        ip(&["-n", &self.router, "link", "set", &link, "netns", namespace])?;
        ip(&["-n", namespace, "link", "set", &link, "up"])?;
        Ok(link)
    }

    /// A command that will run on the router that [`Lab::put_behind`] made, to which arguments can be added.
    #[must_use]
    pub fn on_nat(&self, host: &Host, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        let namespace = format!("{}-nat", host.namespace.as_deref().unwrap_or_default());
        command.args(["netns", "exec", &namespace]).arg(program);
        command
    }

    /// The inner and the outer address of that router.
    #[must_use]
    pub fn nat_addresses(&self, host: &Host) -> [String; 2] {
        let n = self.number(host);
        [format!("192.168.{n}.1"), format!("203.0.{n}.2")]
    }
}

/// A host's address in the network that it shares with its neighbour, [`Lan::Shared`].
#[must_use]
pub fn near(host: std::net::Ipv4Addr) -> std::net::Ipv4Addr {
    let [_, _, number, _] = host.octets();
    [192, 168, 200, number].into()
}

/// The rules by which a host's tunnel port is that port outside, for hosts inside too.
fn keep_port(inside: std::net::Ipv4Addr, outer: &str, port: usize) -> String {
    format!(
        "table ip port{port} {{
    chain inward {{ type nat hook prerouting priority dstnat; ip daddr {outer} udp dport {port} dnat to {inside}:{PORT}; }}
    chain outward {{ type nat hook postrouting priority 90; ip saddr {inside} udp sport {PORT} snat to {outer}:{port}; }}
}}
"
    )
}

/// Makes an empty namespace.
fn add_router(namespace: &str) -> Result<()> {
    ip(&["netns", "add", namespace])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])
}

/// Gives a link the address that the host of that number takes for its gateway.
fn add_gateway(namespace: &str, number: usize, link: &str) -> Result<()> {
    let inside = format!("192.168.{number}.1/24");
    ip(&["-n", namespace, "address", "add", &inside, "dev", link])
}

/// Links `out` of a NAT with what is beyond it, and sends everything there.
fn join(inner: &str, own: &str, outer: &str, link: &str, far: &str) -> Result<()> {
    ip(&[
        "link", "add", "out", "netns", inner, "type", "veth", "peer", "name", link, "netns", outer,
    ])?;
    ip(&[
        "-n",
        inner,
        "address",
        "add",
        &format!("{own}/24"),
        "dev",
        "out",
    ])?;
    ip(&[
        "-n",
        outer,
        "address",
        "add",
        &format!("{far}/24"),
        "dev",
        link,
    ])?;
    ip(&["-n", inner, "link", "set", "out", "up"])?;
    ip(&["-n", outer, "link", "set", link, "up"])?;
    ip(&["-n", inner, "route", "add", "default", "via", far])
}

fn filter(namespace: &str, rules: &str) -> Result<()> {
    let script = format!("echo 1 >/proc/sys/net/ipv4/ip_forward; nft -f - <<END\n{rules}\nEND");
    let output = Command::new("ip")
        .args(["netns", "exec", namespace, "sh", "-ec", &script])
        .output()
        .context("ip")?;
    ensure_success(&script, &output)
}
