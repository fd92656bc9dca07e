//! Changes of links, addresses and routes, as the kernel tells them.

use std::io;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::task::JoinHandle;

use super::links::unicast_route;

/// Tells that links, addresses or routes changed.
pub struct Changes {
    messages: Messages,
    connection: JoinHandle<()>,
    overlay_index: Option<u32>,
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
        })
    }

    /// Waits for a change; those that came together are told once. `None` when the kernel said something that got
    /// lost: look at everything and listen anew.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let message = self.messages.next().await?;
            if self.matters(&message) {
                break;
            }
        }
        while let Some(Some(_)) = futures_util::FutureExt::now_or_never(self.messages.next()) {}
        Some(())
    }

    fn matters(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = &message.payload else {
            return false;
        };
        let index = if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) =
            message
        {
            link.header.index
        } else if let RouteNetlinkMessage::NewAddress(addr)
        | RouteNetlinkMessage::DelAddress(addr) = message
        {
            addr.header.index
        } else if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) =
            message
        {
            // Only routes to somewhere count: the kernel adds one for each address as well.
            match unicast_route(route) {
                Some((_, index)) => index,
                None => return route.header.destination_prefix_length == 0,
            }
        } else {
            return false;
        };
        Some(index) != self.overlay_index
    }
}
