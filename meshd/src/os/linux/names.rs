//! Wires the mesh's names into the system's resolver, whichever there is, and takes them out again.
//!
//! One of a closed list of ways is chosen, anew when the system's resolver becomes another one. No file that another
//! program owns is ever written; what is changed is noted in a journal first, so that what a crash left can be undone.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zbus::Connection;

use super::journal::{Change, Journal};
use super::network_manager;
use super::order::{self, Order};
use super::resolv_conf::{self, Author, ResolvConf};
use super::resolvconf;
use super::resolved::{self, Resolved};

/// What the system's resolver should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The overlay interface's name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// The service addresses.
    pub servers: Vec<IpAddr>,
    /// The suffix, the alias, and the reverse zones, without dots at their ends.
    pub domains: Vec<String>,
}

/// Where the system is; another one than this machine's own in tests.
#[derive(Debug, Clone)]
pub struct System {
    /// The folder that holds `etc` and `usr`.
    pub root: PathBuf,
    /// The address of the system bus; the usual one when absent.
    pub bus: Option<String>,
    /// The file in the state directory that notes what is to be undone.
    pub journal: PathBuf,
    /// The socket of who does with root's rights what only root may; absent where this process has them itself.
    pub root_side: Option<PathBuf>,
}

/// The mesh's names in the system's resolver. Dropped without [`NameWiring::undo`] it stays as it is, to be undone at
/// the next start.
#[derive(Debug)]
pub struct NameWiring {
    system: System,
    plan: Plan,
    way: Way,
    /// What the choice was made by.
    seen: Seen,
}

/// What says by whom this system's programs have names answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    resolv_conf: ResolvConf,
    nss_asks_resolved: bool,
}

/// How names are wired in.
#[derive(Debug)]
enum Way {
    Resolved(Resolved),
    NetworkManager,
    Resolvconf,
    /// By nobody; why, when something was tried.
    Unmanaged {
        reason: Option<String>,
    },
}

/// How names are wired in, to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WiringStatus {
    /// `systemd-resolved`, `NetworkManager`, `resolvconf`, or `none`.
    pub manager: &'static str,
    /// Whether plain programs resolve the suffix.
    pub is_wired: bool,
    /// What to do by hand when they do not.
    pub hint: Option<String>,
}

impl System {
    /// This machine, with its journal in a state directory.
    #[must_use]
    pub fn host(state_dir: &Path) -> Self {
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        Self {
            root: PathBuf::from("/"),
            bus: None,
            journal: state_dir.join("names.json"),
            root_side: (!is_root).then(|| PathBuf::from(order::SOCKET)),
        }
    }

    pub(super) async fn connect(&self) -> Option<Connection> {
        let connection = match &self.bus {
            None => Connection::system().await,
            Some(address) => {
                zbus::connection::Builder::address(address.as_str())
                    .build()
                    .await
            }
        };
        connection
            .inspect_err(|err| tracing::debug!(%err, "there is no system bus"))
            .ok()
    }
}

impl NameWiring {
    /// Finds who answers this system's programs and tells it about the mesh. What was wired in before is taken out first.
    pub async fn detect_and_apply(system: System, plan: Plan) -> Self {
        let way = match apply(&system, &plan).await {
            Ok(way) => way,
            Err(err) => {
                tracing::debug!(%err, "the system's resolver does not take the mesh's names");
                if let Err(err) = undo_leftovers(&system).await {
                    tracing::debug!(%err, "what was begun cannot be undone");
                }
                Way::Unmanaged {
                    reason: Some(err.to_string()),
                }
            }
        };
        // Read after the change: what resolvconf made of it is ours.
        let seen = Seen::read(&system.root);
        Self {
            system,
            plan,
            way,
            seen,
        }
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> WiringStatus {
        let (manager, is_wired) = match &self.way {
            Way::Resolved(resolved) => ("systemd-resolved", resolved.is_kept()),
            Way::NetworkManager => ("NetworkManager", true),
            Way::Resolvconf => ("resolvconf", self.is_first()),
            Way::Unmanaged { .. } => ("none", self.is_first()),
        };
        let hint = (!is_wired).then(|| self.hint());
        WiringStatus {
            manager,
            is_wired,
            hint,
        }
    }

    /// What looks, at any time, whether this should be done anew.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let kind = match &self.way {
            Way::Resolved(resolved) => WatchKind::Resolved(resolved.watch(&self.plan)),
            Way::NetworkManager => WatchKind::NetworkManager,
            Way::Resolvconf => WatchKind::File,
            Way::Unmanaged { reason: None } => WatchKind::File,
            Way::Unmanaged { reason: Some(_) } => WatchKind::Refused,
        };
        Watch {
            root: self.system.root.clone(),
            seen: self.seen.clone(),
            kind,
        }
    }

    /// The servers that foreign names go to when the system sends them here. Read anew at each call: ask again when
    /// the network changes.
    #[must_use]
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        match &self.way {
            // These send nothing here but the mesh's own names.
            Way::Resolved(_) | Way::NetworkManager => Vec::new(),
            // A local server that reads the same records sends its questions here: one sent back would go round for ever.
            Way::Resolvconf => {
                let mut upstreams =
                    ResolvConf::read(&self.system.root).upstreams(&self.plan.servers);
                upstreams.retain(|server| !server.ip().to_canonical().is_loopback());
                upstreams
            }
            Way::Unmanaged { .. } => {
                ResolvConf::read(&self.system.root).upstreams(&self.plan.servers)
            }
        }
    }

    /// Takes the mesh's names out again.
    ///
    /// # Errors
    /// When the system's resolver refuses; the note stays, and the next start tries again.
    pub async fn undo(self) -> io::Result<()> {
        match self.way {
            Way::Resolved(resolved) => resolved.undo().await.map_err(io::Error::other)?,
            Way::NetworkManager => Order::DeleteRules {}.give(&self.system).await?,
            Way::Resolvconf => Order::DeleteRecord {}.give(&self.system).await?,
            Way::Unmanaged { .. } => {}
        }
        Journal::new(&self.system.journal).clear()
    }

    /// Whether plain programs ask this node first.
    fn is_first(&self) -> bool {
        let servers = ResolvConf::read(&self.system.root).servers;
        servers
            .first()
            .is_some_and(|first| self.plan.servers.contains(&first.to_canonical()))
    }

    fn hint(&self) -> String {
        let server = self
            .plan
            .servers
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let suffix = self
            .plan
            .domains
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        let by_server = format!(
            "in dnsmasq's configuration:              server=/{suffix}/{server}\n\
             in unbound's, under `server:`            domain-insecure: \"{suffix}\"\n\
             \x20                                        local-zone: \"{suffix}.\" nodefault\n\
             and at its end                           forward-zone:\n\
             \x20                                          name: \"{suffix}.\"\n\
             \x20                                          forward-addr: {server}"
        );
        let reason = match &self.way {
            Way::Unmanaged { reason } => reason.as_deref(),
            Way::Resolved(_) | Way::NetworkManager | Way::Resolvconf => None,
        };
        let what = match self.seen.resolv_conf.author {
            _ if reason.is_some() && self.seen.asks_resolved() => {
                "meshd tries again by itself; systemd-resolved must run, and polkit must let meshd speak to it. As root:\n\
                 systemctl enable --now systemd-resolved\n\
                 apt install polkitd"
                    .to_owned()
            }
            Author::NetworkManager => "NetworkManager writes /etc/resolv.conf and cannot send one suffix elsewhere by \
                 itself. As root, let it run dnsmasq (of the package dnsmasq-base):\n\
                 printf '[main]\\ndns=dnsmasq\\n' >/etc/NetworkManager/conf.d/dns.conf\n\
                 systemctl reload NetworkManager\n\
                 or let systemd-resolved answer:\n\
                 apt install systemd-resolved\n\
                 systemctl restart NetworkManager"
                .to_owned(),
            Author::Resolvconf => {
                format!("where a server of this machine comes first in /etc/resolv.conf, tell it:\n{by_server}")
            }
            Author::Resolved | Author::Unknown => format!(
                "do one of these as root:\n\
                 in /etc/resolv.conf, before all others:  nameserver {server}\n\
                 {by_server}"
            ),
        };
        match reason {
            Some(reason) => format!("{reason}\n{what}"),
            None => what,
        }
    }
}

impl Seen {
    fn read(root: &Path) -> Self {
        Self {
            resolv_conf: ResolvConf::read(root),
            nss_asks_resolved: resolv_conf::nss_asks_resolved(root),
        }
    }

    fn asks_resolved(&self) -> bool {
        self.resolv_conf.asks_stub() || self.nss_asks_resolved
    }
}

/// Looks whether the system's resolver is still the one that was told, and still knows.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    seen: Seen,
    kind: WatchKind,
}

#[derive(Debug)]
enum WatchKind {
    Resolved(resolved::Watch),
    NetworkManager,
    /// What is in the file says all.
    File,
    /// Whoever refused may have changed its mind.
    Refused,
}

impl Watch {
    /// Whether names should be wired in anew.
    pub async fn is_stale(&self) -> bool {
        if Seen::read(&self.root) != self.seen {
            return true;
        }
        match &self.kind {
            WatchKind::Resolved(watch) => watch.is_stale().await,
            WatchKind::NetworkManager => !network_manager::has_rules(&self.root),
            WatchKind::File => false,
            WatchKind::Refused => true,
        }
    }
}

async fn apply(system: &System, plan: &Plan) -> io::Result<Way> {
    undo_leftovers(system).await?;
    let journal = Journal::new(&system.journal);
    let seen = Seen::read(&system.root);
    let asks_resolved = seen.asks_resolved();
    if let Some(bus) = system.connect().await {
        if asks_resolved && resolved::is_there(&bus).await {
            journal.write(&Change::Resolved {
                index: plan.index,
                interface: plan.interface.clone(),
            })?;
            let wired = Resolved::apply(&bus, plan).await;
            return wired
                .map(Way::Resolved)
                .map_err(|err| io::Error::other(format!("systemd-resolved: {err}")));
        }
        if network_manager::runs_dnsmasq(&bus).await {
            journal.write(&Change::NetworkManager {})?;
            Order::write_rules(plan)
                .give(system)
                .await
                .map_err(|err| io::Error::other(format!("NetworkManager's dnsmasq: {err}")))?;
            return Ok(Way::NetworkManager);
        }
    }
    if seen.resolv_conf.author == Author::Resolvconf && resolvconf::program(&system.root).is_some()
    {
        journal.write(&Change::Resolvconf {})?;
        Order::add_record(plan)
            .give(system)
            .await
            .map_err(|err| io::Error::other(format!("resolvconf: {err}")))?;
        return Ok(Way::Resolvconf);
    }
    if seen.resolv_conf.asks_stub() {
        return Err(io::Error::other(
            "/etc/resolv.conf names systemd-resolved, which does not run",
        ));
    }
    Ok(Way::Unmanaged { reason: None })
}

/// Undoes what an earlier run noted and did not undo; to be called at every start.
///
/// # Errors
/// When it cannot be undone; the note stays.
pub async fn undo_leftovers(system: &System) -> io::Result<()> {
    let journal = Journal::new(&system.journal);
    let Some(change) = journal.read() else {
        return Ok(());
    };
    tracing::debug!(?change, "undoing what is left in the system's resolver");
    match &change {
        Change::Resolved { index, interface } => undo_resolved(system, *index, interface).await?,
        Change::NetworkManager {} => Order::DeleteRules {}.give(system).await?,
        Change::Resolvconf {} => Order::DeleteRecord {}.give(system).await?,
    }
    journal.clear()
}

/// The index may be another interface's since: a link without the name of old has nothing of ours.
async fn undo_resolved(system: &System, index: u32, interface: &str) -> io::Result<()> {
    let path = system
        .root
        .join("sys/class/net")
        .join(interface)
        .join("ifindex");
    let is_same = std::fs::read_to_string(path).is_ok_and(|text| text.trim().parse() == Ok(index));
    match system.connect().await {
        Some(bus) if is_same && resolved::is_there(&bus).await => resolved::revert(&bus, index)
            .await
            .map_err(io::Error::other),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
