//! NetworkManager when it runs dnsmasq: a file of ours among dnsmasq's, the documented place for such rules.
//!
//! In its other modes NetworkManager writes `/etc/resolv.conf` alone and cannot route a domain to a server.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use zbus::Connection;

use super::names::System;
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

pub(super) async fn write(
    system: &System,
    servers: &[IpAddr],
    domains: &[String],
) -> io::Result<()> {
    let bus = connect(system).await?;
    let file = system.root.join(FILE);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, rules(servers, domains))?;
    let reloaded = reload(&bus).await;
    if reloaded.is_err() {
        let _ = std::fs::remove_file(&file);
    }
    reloaded
}

/// Takes the file out; a NetworkManager that does not run reads what is there when it starts.
pub(super) async fn delete(system: &System) -> io::Result<()> {
    match std::fs::remove_file(system.root.join(FILE)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    match system.connect().await {
        Some(bus) if has_owner(&bus, SERVICE).await => reload(&bus).await,
        Some(_) | None => Ok(()),
    }
}

/// Whether the rules are in place.
pub(super) fn has_rules(root: &Path) -> bool {
    root.join(FILE).exists()
}

async fn connect(system: &System) -> io::Result<Connection> {
    system
        .connect()
        .await
        .ok_or_else(|| io::Error::other("there is no system bus"))
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
fn rules(servers: &[IpAddr], domains: &[String]) -> String {
    let mut rules = String::from("# Written by meshd, and removed by `meshctl down`.\n");
    for domain in domains {
        for server in servers {
            let _ = writeln!(rules, "server=/{domain}/{server}");
        }
        // dnsmasq drops private addresses from answers where its owner switched that protection on.
        let _ = writeln!(rules, "rebind-domain-ok=/{domain}/");
    }
    rules
}
