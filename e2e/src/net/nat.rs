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
        let link = format!("h{n}");
        let namespace = format!("{}-nat", host.namespace);
        ip(&["netns", "add", &namespace])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        ip(&[
            "-n",
            &self.router,
            "link",
            "set",
            &link,
            "netns",
            &namespace,
        ])?;
        let inside = format!("192.168.{n}.1/24");
        ip(&["-n", &namespace, "address", "add", &inside, "dev", &link])?;
        ip(&["-n", &namespace, "link", "set", &link, "up"])?;
        let (outer, far) = (format!("203.0.{n}.2"), format!("203.0.{n}.1"));
        match nat {
            Nat::Carrier => {
                let carrier = format!("{}-cgn", host.namespace);
                ip(&["netns", "add", &carrier])?;
                ip(&["-n", &carrier, "link", "set", "lo", "up"])?;
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

    /// A command that will run on the router that [`Lab::put_behind`] made, to which arguments can be added.
    #[must_use]
    pub fn on_nat(&self, host: &Host, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        let namespace = format!("{}-nat", host.namespace);
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
