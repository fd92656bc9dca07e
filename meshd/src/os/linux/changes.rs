//! Changes of links, addresses and routes, as the kernel tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkFlags;
use tokio::task::JoinHandle;

use super::links::{is_default, route_index};

/// What changed, all in all, since it was told last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Whether default routes are among it. Others are not told: the kernel adds one for each address, which is told itself.
    pub has_routes: bool,
    /// Links that had lost their carrier and have one again: another network may be behind them, with the same addresses.
    pub regained: BTreeSet<u32>,
}

impl Changed {
    fn add(&mut self, more: Self) {
        self.has_routes |= more.has_routes;
        self.regained.extend(more.regained);
    }
}

/// Tells that links, addresses or routes changed.
pub struct Changes {
    messages: Messages,
    connection: JoinHandle<()>,
    overlay_index: Option<u32>,
    /// The links that were told of, and whether they have a carrier.
    carriers: BTreeMap<u32, bool>,
}

type Messages = std::pin::Pin<
    Box<dyn futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Sync>,
>;

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes")
            .field("overlay_index", &self.overlay_index)
            .finish_non_exhaustive()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Changes {
    /// Begins to listen; changes of the overlay interface itself are not told.
    ///
    /// # Errors
    /// When no netlink socket is to be had.
    pub fn listen(overlay_index: Option<u32>) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        let messages = Box::pin(messages.map(|(message, _)| message));
        Ok(Self {
            messages,
            connection: tokio::spawn(connection),
            overlay_index,
            carriers: BTreeMap::new(),
        })
    }

    /// Waits for a change; those that came together are told once. `None` when the kernel said something that got
    /// lost: look at everything and listen anew.
    pub async fn next(&mut self) -> Option<Changed> {
        let mut changed = loop {
            let message = self.messages.next().await?;
            if let Some(changed) = self.what(&message) {
                break changed;
            }
        };
        while let Some(Some(message)) = self.messages.next().now_or_never() {
            if let Some(more) = self.what(&message) {
                changed.add(more);
            }
        }
        Some(changed)
    }

    /// What a message tells, if that matters.
    fn what(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Changed> {
        let NetlinkPayload::InnerMessage(message) = &message.payload else {
            return None;
        };
        if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) = message
        {
            let matters = is_default(route)
                && (self.overlay_index.is_none() || route_index(route) != self.overlay_index);
            return matters.then_some(Changed {
                has_routes: true,
                regained: BTreeSet::new(),
            });
        }
        let mut regained = BTreeSet::new();
        let index = if let RouteNetlinkMessage::NewLink(link) = message {
            let index = link.header.index;
            let is_running = link.header.flags.contains(LinkFlags::Running);
            let before = self.carriers.insert(index, is_running);
            if is_running && before == Some(false) {
                regained.insert(index);
            }
            index
        } else if let RouteNetlinkMessage::DelLink(link) = message {
            self.carriers.remove(&link.header.index);
            link.header.index
        } else if let RouteNetlinkMessage::NewAddress(addr)
        | RouteNetlinkMessage::DelAddress(addr) = message
        {
            addr.header.index
        } else {
            return None;
        };
        (Some(index) != self.overlay_index).then_some(Changed {
            has_routes: false,
            regained,
        })
    }
}
