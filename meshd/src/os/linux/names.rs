//! Wires the mesh's names into the system's resolver, whichever there is, and takes them out again.
//!
//! One of a closed list of ways is chosen once. No file that another program owns is ever written; what is changed is
//! noted in a journal first, so that the next start undoes what a crash left.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use zbus::Connection;

use super::journal::{Change, Journal};
use super::network_manager;
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
}

/// The mesh's names in the system's resolver. Dropped without [`NameWiring::undo`] it stays as it is, to be undone at
/// the next start.
#[derive(Debug)]
pub struct NameWiring {
    system: System,
    plan: Plan,
    way: Way,
}

/// How names are wired in.
#[derive(Debug)]
enum Way {
    Resolved(Resolved),
    NetworkManager {
        bus: Connection,
        file: PathBuf,
    },
    Resolvconf {
        program: String,
    },
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
        Self {
            root: PathBuf::from("/"),
            bus: None,
            journal: state_dir.join("names.json"),
        }
    }

    async fn connect(&self) -> Option<Connection> {
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
    /// Finds who answers this system's programs and tells it about the mesh.
    pub async fn detect_and_apply(system: System, plan: Plan) -> Self {
        let way = match apply(&system, &plan).await {
            Ok(way) => way,
            Err(err) => {
                tracing::warn!(%err, "the system's resolver does not take the mesh's names");
                undo_leftovers(&system).await;
                Way::Unmanaged {
                    reason: Some(err.to_string()),
                }
            }
        };
        let wiring = Self { system, plan, way };
        tracing::info!(manager = wiring.status().manager, "names wired");
        wiring
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> WiringStatus {
        let (manager, is_wired) = match &self.way {
            Way::Resolved(resolved) => ("systemd-resolved", resolved.is_kept()),
            Way::NetworkManager { .. } => ("NetworkManager", true),
            Way::Resolvconf { .. } => ("resolvconf", self.is_first()),
            Way::Unmanaged { .. } => ("none", self.is_first()),
        };
        let hint = (!is_wired).then(|| self.hint());
        WiringStatus {
            manager,
            is_wired,
            hint,
        }
    }

    /// The servers that foreign names go to when the system sends them here. Read anew at each call: ask again when
    /// the network changes.
    #[must_use]
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        match &self.way {
            // These send nothing here but the mesh's own names.
            Way::Resolved(_) | Way::NetworkManager { .. } => Vec::new(),
            // A local server that reads the same records sends its questions here: one sent back would go round for ever.
            Way::Resolvconf { .. } => {
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
            Way::NetworkManager { bus, file } => network_manager::undo(Some(&bus), &file).await?,
            Way::Resolvconf { program } => resolvconf::undo(&program, resolvconf::RECORD).await?,
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
        let why = match &self.way {
            Way::Unmanaged {
                reason: Some(reason),
            } => format!("{reason}; "),
            Way::Unmanaged { reason: None }
            | Way::Resolved(_)
            | Way::NetworkManager { .. }
            | Way::Resolvconf { .. } => String::new(),
        };
        let file = ResolvConf::read(&self.system.root);
        let by_hand = format!(
            "do one of these:\n\
             in /etc/resolv.conf, before all others:  nameserver {server}\n\
             in dnsmasq's configuration:              server=/{suffix}/{server}\n\
             in unbound's, under `server:`            domain-insecure: \"{suffix}\"\n\
             \x20                                        local-zone: \"{suffix}.\" nodefault\n\
             and at its end                           forward-zone:\n\
             \x20                                          name: \"{suffix}.\"\n\
             \x20                                          forward-addr: {server}"
        );
        match file.author {
            Author::NetworkManager => format!(
                "{why}NetworkManager writes /etc/resolv.conf and cannot send one suffix elsewhere: install \
                 systemd-resolved, or put `dns=dnsmasq` under `[main]` in /etc/NetworkManager/NetworkManager.conf and \
                 run `systemctl reload NetworkManager && meshctl down && meshctl up`"
            ),
            Author::Resolved | Author::Resolvconf | Author::Unknown => format!("{why}{by_hand}"),
        }
    }
}

async fn apply(system: &System, plan: &Plan) -> io::Result<Way> {
    undo_leftovers(system).await;
    let journal = Journal::new(&system.journal);
    let file = ResolvConf::read(&system.root);
    if let Some(bus) = system.connect().await {
        let asks_resolved = file.asks_stub() || resolv_conf::nss_asks_resolved(&system.root);
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
            let file = network_manager::file(&system.root);
            journal.write(&Change::NetworkManager { file: file.clone() })?;
            network_manager::apply(&bus, &file, plan)
                .await
                .map_err(|err| io::Error::other(format!("NetworkManager: {err}")))?;
            return Ok(Way::NetworkManager { bus, file });
        }
    }
    if file.author == Author::Resolvconf
        && let Some(program) = resolvconf::program(&system.root)
    {
        journal.write(&Change::Resolvconf {
            record: resolvconf::RECORD.to_owned(),
        })?;
        resolvconf::apply(&program, plan).await?;
        return Ok(Way::Resolvconf { program });
    }
    Ok(Way::Unmanaged { reason: None })
}

/// Undoes what an earlier run noted and did not undo; to be called at every start.
pub async fn undo_leftovers(system: &System) {
    let journal = Journal::new(&system.journal);
    let Some(change) = journal.read() else { return };
    tracing::info!(
        ?change,
        "undoing what an earlier run left in the system's resolver"
    );
    let undone = match &change {
        Change::Resolved { index, interface } => undo_resolved(system, *index, interface).await,
        Change::NetworkManager { file } => {
            network_manager::undo(system.connect().await.as_ref(), file).await
        }
        Change::Resolvconf { record } => match resolvconf::program(&system.root) {
            Some(program) => resolvconf::undo(&program, record).await,
            None => Ok(()),
        },
    };
    if let Err(err) = undone.and_then(|()| journal.clear()) {
        tracing::warn!(%err, "what an earlier run left in the system's resolver cannot be undone");
    }
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
