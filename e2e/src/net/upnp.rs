//! The part of a home router that maps ports when asked by UPnP: the real miniupnpd, on a router that [`super::nat`] made.

use anyhow::Result;

use super::{Host, Lab};
use crate::process::{Process, ensure_success, stdout};

/// Where miniupnpd writes what it maps.
const TABLE: &str = "table inet upnp {
    chain mapped {}
    chain inward {}
    chain outward {}
    chain forward { type filter hook forward priority 0; jump mapped; }
    chain prerouting { type nat hook prerouting priority dstnat; jump inward; }
    chain postrouting { type nat hook postrouting priority srcnat - 1; jump outward; }
}";

impl Lab {
    /// Has the router of a host map ports by UPnP alone, as long as the process is kept.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn serve_upnp(&self, host: &Host) -> Result<Process> {
        let n = self.number(host);
        let dir = host.dir();
        let conf = dir.join("miniupnpd.conf");
        std::fs::write(
            &conf,
            format!(
                "ext_ifname=out\nlistening_ip=h{n}\nhttp_port=0\nenable_natpmp=no\nenable_upnp=yes\nsecure_mode=yes\n\
                 uuid=27b43072-7498-4cfa-911d-c5d90b2479{n:02}\n\
                 upnp_table_name=upnp\nupnp_nat_table_name=upnp\nupnp_forward_chain=mapped\n\
                 upnp_nat_chain=inward\nupnp_nat_postrouting_chain=outward\n\
                 allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
            ),
        )?;
        let output = self.on_nat(host, "nft").arg(TABLE).output()?;
        ensure_success("nft", &output)?;
        let mut command = self.on_nat(host, "miniupnpd");
        command.args(["-d", "-f"]).arg(conf);
        command.arg("-P").arg(dir.join("miniupnpd.pid"));
        host.spawn("miniupnpd", command)
    }

    /// What it forwards, as `nft` tells.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn upnp_mappings(&self, host: &Host) -> Result<String> {
        let args = ["list", "chain", "inet", "upnp", "inward"];
        let output = self.on_nat(host, "nft").args(args).output()?;
        ensure_success("nft", &output)?;
        Ok(stdout(&output))
    }
}
