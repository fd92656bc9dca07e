//! systemd-resolved over D-Bus: the mesh's suffixes are routed to the overlay interface's servers, nothing else is.

use std::net::IpAddr;

use futures_util::StreamExt;
use tokio::task::{AbortHandle, JoinHandle};
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;
use zbus_systemd::resolve1::{LinkProxy, ManagerProxy};

use super::names::Plan;

const SERVICE: &str = "org.freedesktop.resolve1";
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// The wiring and the task that renews it: resolved forgets the settings of links when it restarts.
#[derive(Debug)]
pub(super) struct Resolved {
    bus: Connection,
    index: u32,
    keeper: JoinHandle<()>,
}

impl Drop for Resolved {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Resolved {
    pub(super) async fn apply(bus: &Connection, plan: &Plan) -> zbus::Result<Self> {
        // Subscribed before the settings are made: a restart in between is not missed.
        let peers = DBusProxy::new(bus).await?;
        let mut owners = peers
            .receive_name_owner_changed_with_args(&[(0, SERVICE)])
            .await?;
        set(bus, plan).await?;
        let keeper = {
            let (bus, plan) = (bus.clone(), plan.clone());
            tokio::spawn(async move {
                while let Some(change) = owners.next().await {
                    let is_new = change.args().is_ok_and(|args| args.new_owner().is_some());
                    if is_new && let Err(err) = set(&bus, &plan).await {
                        tracing::warn!(%err, "systemd-resolved came back and does not take the mesh's names");
                    }
                }
            })
        };
        Ok(Self {
            bus: bus.clone(),
            index: plan.index,
            keeper,
        })
    }

    pub(super) async fn undo(self) -> zbus::Result<()> {
        self.keeper.abort();
        revert(&self.bus, self.index).await
    }

    pub(super) fn is_kept(&self) -> bool {
        !self.keeper.is_finished()
    }

    pub(super) fn watch(&self, plan: &Plan) -> Watch {
        Watch {
            bus: self.bus.clone(),
            plan: plan.clone(),
            keeper: self.keeper.abort_handle(),
        }
    }
}

/// Looks whether the link still has what it was given: NetworkManager takes it away from a link that it comes to know.
#[derive(Debug)]
pub(super) struct Watch {
    bus: Connection,
    plan: Plan,
    keeper: AbortHandle,
}

impl Watch {
    pub(super) async fn is_stale(&self) -> bool {
        // The bus was lost: nobody would hear of a restart.
        if self.keeper.is_finished() {
            return true;
        }
        // One that is away is told again by the keeper when it comes back.
        self.is_in_place()
            .await
            .is_ok_and(|is_in_place| !is_in_place)
    }

    async fn is_in_place(&self) -> zbus::Result<bool> {
        let manager = ManagerProxy::new(&self.bus).await?;
        let path = manager.get_link(link(&self.plan)?).await?;
        let link = LinkProxy::builder(&self.bus)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let (servers, domains) = (link.dns().await?, link.domains().await?);
        let has_servers = servers == self.plan.servers.iter().map(server).collect::<Vec<_>>();
        let routes = |wanted: &String| domains.iter().any(|(domain, _)| domain == wanted);
        Ok(has_servers && self.plan.domains.iter().all(routes))
    }
}

fn link(plan: &Plan) -> zbus::Result<i32> {
    i32::try_from(plan.index)
        .map_err(|_| zbus::Error::Failure("no interface has that index".to_owned()))
}

async fn set(bus: &Connection, plan: &Plan) -> zbus::Result<()> {
    let manager = ManagerProxy::new(bus).await?;
    let index = link(plan)?;
    let result = async {
        manager
            .set_link_dns(index, plan.servers.iter().map(server).collect())
            .await?;
        manager
            .set_link_domains(
                index,
                plan.domains
                    .iter()
                    .map(|domain| (domain.clone(), true))
                    .collect(),
            )
            .await?;
        manager.set_link_default_route(index, false).await?;
        // The overlay has no neighbours to shout to, and its zone is signed by nobody.
        manager.set_link_llmnr(index, "no".to_owned()).await?;
        manager
            .set_link_multicast_dns(index, "no".to_owned())
            .await?;
        manager.set_link_dnssec(index, "no".to_owned()).await?;
        manager
            .set_link_dns_over_tls(index, "no".to_owned())
            .await?;
        manager.flush_caches().await
    };
    let result = result.await;
    if result.is_err() {
        let _ = manager.revert_link(index).await;
    }
    result
}

fn server(ip: &IpAddr) -> (i32, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    }
}

pub(super) async fn revert(bus: &Connection, index: u32) -> zbus::Result<()> {
    let manager = ManagerProxy::new(bus).await?;
    let index = i32::try_from(index)
        .map_err(|_| zbus::Error::Failure("no interface has that index".to_owned()))?;
    let reverted = match manager.revert_link(index).await {
        Err(err) if is_gone(&err) => Ok(()),
        other => other,
    };
    manager.flush_caches().await?;
    reverted
}

/// An interface that is away has no settings: there is nothing to revert.
fn is_gone(err: &zbus::Error) -> bool {
    matches!(err, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.resolve1.NoSuchLink")
}

/// Whether resolved runs.
pub(super) async fn is_there(bus: &Connection) -> bool {
    has_owner(bus, SERVICE).await
}

/// Whether somebody has a name on the bus; nothing is started for asking.
pub(super) async fn has_owner(bus: &Connection, name: &'static str) -> bool {
    let Ok(peers) = DBusProxy::new(bus).await else {
        return false;
    };
    let Ok(name) = zbus::names::BusName::try_from(name) else {
        return false;
    };
    peers.name_has_owner(name).await.unwrap_or_default()
}
