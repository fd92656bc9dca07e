//! Sealed data by UDP beside a relay's link: used while it is answered, left as soon as it is not.
//!
//! Packets turn to a relay when something broke, often UDP altogether. So those of a pause go by the link, which is known to
//! work, until the relay was asked by UDP again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_io::udp::UdpSocket;
use mesh_proto::id::RelayId;
use mesh_proto::key::NodeKey;
use mesh_proto::relay::{
    Alias, BIND_LEN, Cookie, Pin, RelayEntry, Tag, Token, UDP_DATAGRAM_MAX, UDP_HEADER_LEN,
    UdpMessage, bind, data_header,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// How often is looked whether packets go this way: then it is asked whether it still works.
const TICK: Duration = Duration::from_millis(500);
/// Without a packet for so many looks nothing is asked, and the next packets go by the link.
const N_UNUSED_MAX: u32 = 4;
/// So often at least it is bound again, so that NATs keep it open and the relay believes in it.
const BIND_EVERY: Duration = Duration::from_secs(15);
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);
/// Before it ever answered, and after.
const N_UNANSWERED_MAX: (u32, u32) = (3, 2);
/// When UDP is tried again after it did not pass.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Answers that wait for the link; more come only from somebody who floods.
const N_ANSWERS: usize = 4;
/// The first byte of WireGuard's data messages: nothing else goes by UDP.
const WIREGUARD_DATA: u8 = 4;

/// What a relay offered over its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) port: u16,
    pub(super) token: Token,
}

/// The endpoints of relays that take UDP, as the packet threads see them.
#[derive(Debug, Default)]
pub(super) struct Routes(ArcSwap<Vec<Arc<Route>>>);

#[derive(Debug)]
struct Route {
    relay: RelayId,
    pin: Pin,
    endpoint: SocketAddr,
    tag: Tag,
    /// Whether it was answered a moment ago.
    is_live: AtomicBool,
    /// Packets went this way since that was looked at last.
    is_used: AtomicBool,
    /// Packets would have gone this way.
    wanted: Notify,
    answers: mpsc::Sender<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Cookie(Cookie),
    Bound,
}

impl Routes {
    /// Where and behind which header datagrams for a node go by this relay's UDP; `None` when they go by its link.
    pub(super) fn to(
        &self,
        relay: &RelayId,
        node: &NodeKey,
        contents: &[u8],
        stride: usize,
    ) -> Option<(SocketAddr, [u8; UDP_HEADER_LEN])> {
        if contents.first() != Some(&WIREGUARD_DATA) || stride > UDP_DATAGRAM_MAX {
            return None;
        }
        let routes = self.0.load();
        let route = routes.iter().find(|route| route.relay == *relay)?;
        if !route.is_live.load(Ordering::Relaxed) {
            route.wanted.notify_one();
            return None;
        }
        if !route.is_used.load(Ordering::Relaxed) {
            route.is_used.store(true, Ordering::Relaxed);
        }
        let header = data_header(route.tag, Alias::of(&route.pin, node));
        Some((route.endpoint, header))
    }

    /// The sealed datagram in one of a relay; what else relays say goes to their links, and what is not theirs nowhere.
    pub(super) fn take<'a>(
        &self,
        from: SocketAddr,
        datagram: &'a [u8],
    ) -> Option<(RelayId, Alias, &'a [u8])> {
        let message = UdpMessage::parse(datagram)?;
        let routes = self.0.load();
        let of = |tag: Tag| {
            routes
                .iter()
                .find(|route| route.endpoint == from && route.tag == tag)
        };
        match message {
            UdpMessage::Data {
                tag,
                alias,
                datagram,
            } => {
                let is_data = datagram.first() == Some(&WIREGUARD_DATA);
                let relay = of(tag).filter(|_| is_data)?.relay;
                return Some((relay, alias, datagram));
            }
            // One that finds no room is one too many.
            UdpMessage::Cookie { tag, cookie } => {
                let _ = of(tag)?.answers.try_send(Answer::Cookie(*cookie));
            }
            UdpMessage::Bound { tag } => {
                let _ = of(tag)?.answers.try_send(Answer::Bound);
            }
            UdpMessage::Bind { .. } => {}
        }
        None
    }

    /// The node of an alias among those given.
    pub(super) fn node_of(
        &self,
        relay: &RelayId,
        alias: Alias,
        nodes: &[NodeKey],
    ) -> Option<NodeKey> {
        let routes = self.0.load();
        let pin = routes.iter().find(|route| route.relay == *relay)?.pin;
        nodes
            .iter()
            .find(|node| Alias::of(&pin, node) == alias)
            .copied()
    }

    fn add(&self, route: Arc<Route>) -> Added<'_> {
        self.0.rcu(|routes| {
            let mut routes = Vec::clone(routes);
            routes.push(Arc::clone(&route));
            routes
        });
        Added {
            routes: self,
            route,
        }
    }
}

/// A route that goes when this does.
struct Added<'a> {
    routes: &'a Routes,
    route: Arc<Route>,
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        self.routes.0.rcu(|routes| {
            let mut routes = Vec::clone(routes);
            routes.retain(|route| !Arc::ptr_eq(route, &self.route));
            routes
        });
    }
}

/// What a link needs to use UDP.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeper<'a> {
    pub(super) relay: &'a RelayEntry,
    pub(super) routes: &'a Routes,
    pub(super) socket: &'a UdpSocket,
}

impl Keeper<'_> {
    /// Binds as soon as there is an offer and keeps it so, for as long as the link lives. `on_used` hears each second in
    /// which packets went by UDP, `on_lost` when it passes no more.
    pub(super) async fn keep(
        &self,
        mut offers: watch::Receiver<Option<Offer>>,
        on_used: impl Fn(),
        on_lost: impl Fn(),
    ) {
        let offer = match offers.wait_for(Option::is_some).await {
            Ok(offer) => offer.clone(),
            Err(_) => None,
        };
        let Some(offer) = offer else {
            return;
        };
        loop {
            let endpoints = self.relay.stun.iter();
            for endpoint in endpoints.filter(|endpoint| endpoint.port() == offer.port) {
                if self.use_endpoint(*endpoint, &offer, &on_used).await {
                    tracing::info!(relay = %self.relay.id, "UDP to the relay passes no more; its link carries all");
                    on_lost();
                }
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Binds this endpoint until it answers no more; whether it ever did.
    async fn use_endpoint(&self, endpoint: SocketAddr, offer: &Offer, on_used: &impl Fn()) -> bool {
        let (answers_tx, mut answers) = mpsc::channel(N_ANSWERS);
        let added = self.routes.add(Arc::new(Route {
            relay: self.relay.id,
            pin: self.relay.pin,
            endpoint,
            tag: offer.token.tag(),
            is_live: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            wanted: Notify::new(),
            answers: answers_tx,
        }));
        let route = &added.route;
        let (mut cookie, mut n_unanswered, mut was_bound) = (Cookie::default(), 0, false);
        loop {
            let (first, later) = N_UNANSWERED_MAX;
            if n_unanswered >= if was_bound { later } else { first } {
                return was_bound;
            }
            let asked_at = Instant::now();
            if let Err(err) = self
                .socket
                .send(endpoint, &bind(&offer.token, &cookie), BIND_LEN)
            {
                tracing::debug!(relay = %self.relay.id, %endpoint, %err, "cannot ask the relay by UDP");
            }
            match timeout(ANSWER_DEADLINE, answers.recv()).await {
                // A relay that sends cookies and is never content counts as one that does not answer.
                Ok(Some(Answer::Cookie(made))) if made != cookie => {
                    cookie = made;
                    n_unanswered += u32::from(was_bound);
                }
                Ok(Some(Answer::Bound)) => {
                    n_unanswered = 0;
                    route.is_live.store(true, Ordering::Relaxed);
                    if !std::mem::replace(&mut was_bound, true) {
                        tracing::info!(relay = %self.relay.id, %endpoint, "sealed data goes by UDP to the relay");
                    }
                    wait_until_due(route, asked_at, on_used).await;
                    while answers.try_recv().is_ok() {}
                }
                Ok(Some(Answer::Cookie(_)) | None) => {
                    n_unanswered += 1;
                    sleep(ANSWER_DEADLINE).await;
                }
                Err(_) => n_unanswered += 1,
            }
        }
    }
}

/// Waits until packets went this way, or it must be bound again anyway. A route that nobody uses is taken for live no longer.
async fn wait_until_due(route: &Route, asked_at: Instant, on_used: &impl Fn()) {
    for _ in 0..N_UNUSED_MAX {
        sleep(TICK).await;
        if route.is_used.swap(false, Ordering::Relaxed) {
            on_used();
            return;
        }
    }
    // A note from before it was live says nothing.
    std::pin::pin!(route.wanted.notified()).as_mut().enable();
    route.is_live.store(false, Ordering::Relaxed);
    let rest = BIND_EVERY.saturating_sub(asked_at.elapsed());
    // At the end of the rest it is bound again as well.
    let _ = timeout(rest, route.wanted.notified()).await;
}

#[cfg(test)]
mod tests;
