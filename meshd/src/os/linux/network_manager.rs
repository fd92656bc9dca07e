//! NetworkManager when it runs dnsmasq: a file of ours among dnsmasq's, the documented place for such rules.
//!
//! In its other modes NetworkManager writes `/etc/resolv.conf` alone and cannot route a domain to a server.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use zbus::Connection;

use super::names::Plan;
use super::resolved::has_owner;

const SERVICE: &str = "org.freedesktop.NetworkManager";
const FILE: &str = "etc/NetworkManager/dnsmasq.d/proxima.conf";
/// `NM_MANAGER_RELOAD_FLAG_DNS_FULL`: restarts the DNS plugin.
const RELOAD_DNS_FULL: u32 = 4;

#[zbus::proxy(
    interface = "org.freedesktop.NetworkManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager"
)]
trait NetworkManager {
    fn reload(&self, flags: u32) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.NetworkManager.DnsManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager/DnsManager"
)]
trait DnsManager {
    #[zbus(property)]
    fn mode(&self) -> zbus::Result<String>;
}

/// Whether NetworkManager runs dnsmasq.
pub(super) async fn runs_dnsmasq(bus: &Connection) -> bool {
    if !has_owner(bus, SERVICE).await {
        return false;
    }
    let Ok(manager) = DnsManagerProxy::new(bus).await else {
        return false;
    };
    manager.mode().await.is_ok_and(|mode| mode == "dnsmasq")
}

pub(super) fn file(root: &Path) -> PathBuf {
    root.join(FILE)
}

pub(super) async fn apply(bus: &Connection, file: &Path, plan: &Plan) -> io::Result<()> {
    std::fs::write(file, rules(plan))?;
    let reloaded = reload(bus).await;
    if reloaded.is_err() {
        let _ = std::fs::remove_file(file);
    }
    reloaded
}

pub(super) async fn undo(bus: Option<&Connection>, file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    match bus {
        Some(bus) if has_owner(bus, SERVICE).await => reload(bus).await,
        Some(_) | None => Ok(()),
    }
}

async fn reload(bus: &Connection) -> io::Result<()> {
    let manager = NetworkManagerProxy::new(bus)
        .await
        .map_err(io::Error::other)?;
    manager
        .reload(RELOAD_DNS_FULL)
        .await
        .map_err(io::Error::other)
}

/// dnsmasq's own words for: these domains, those servers.
pub(super) fn rules(plan: &Plan) -> String {
    let mut rules = String::from("# Written by meshd, and removed by `meshctl down`.\n");
    for domain in &plan.domains {
        for server in &plan.servers {
            let _ = writeln!(rules, "server=/{domain}/{server}");
        }
        // dnsmasq drops private addresses from answers where its owner switched that protection on.
        let _ = writeln!(rules, "rebind-domain-ok=/{domain}/");
    }
    rules
}
