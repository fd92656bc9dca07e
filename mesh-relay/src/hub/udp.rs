//! The hub's UDP side: which endpoint is bound to which connection, and where a datagram goes. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use mesh_proto::key::NodeKey;
use mesh_proto::relay::{
    Alias, Cookie, Datagrams, Frame, Tag, Token, UDP_HEADER_LEN, UdpMessage, bound, cookie,
    data_header,
};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::{ClientId, Forwarded, Hub, Received};

/// A node that does not bind again within this is not sent to by UDP: it may not receive there any more.
const BOUND_FOR: Duration = Duration::from_secs(40);
/// The first byte of WireGuard's data messages: nothing else goes by UDP.
const WIREGUARD_DATA: u8 = 4;

/// The endpoints of all connections.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    of_tag: HashMap<Tag, ClientId>,
    of_alias: HashMap<Alias, NodeKey>,
    /// What cookies are made with.
    secret: [u8; 32],
}

/// The UDP of one connection.
#[derive(Debug)]
pub(crate) struct Binding {
    token: Token,
    alias: Alias,
    endpoint: Option<SocketAddr>,
    bound_at: Instant,
}

impl Binding {
    fn live(&self, now: Instant) -> Option<SocketAddr> {
        let is_live = now.saturating_duration_since(self.bound_at) < BOUND_FOR;
        self.endpoint.filter(|_| is_live)
    }
}

/// Datagrams for one endpoint, with their new headers, all of length `stride` but the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) to: SocketAddr,
    /// Where they lie in what was received.
    pub(crate) range: Range<usize>,
    pub(crate) stride: usize,
}

/// What is to be done for what was received.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) runs: Vec<Run>,
    /// For who sent it.
    pub(crate) answer: Option<Vec<u8>>,
    pub(crate) n_datagrams: usize,
    pub(crate) n_bytes: usize,
    pub(crate) n_not_here: usize,
    /// Lost in the receiver's lane.
    pub(crate) n_full: usize,
    /// More than the sender may send.
    pub(crate) n_limited: usize,
}

/// The way of one datagram and of those behind it with the same header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp {
        to: SocketAddr,
        header: [u8; UDP_HEADER_LEN],
    },
    /// The receiver has no UDP.
    Link {
        from: ClientId,
        sender: NodeKey,
        to: NodeKey,
    },
    NotHere,
    Limited,
    /// No connection is bound to where it came from.
    Nobody,
}

impl<W: Clone> Hub<W> {
    /// Takes the secret that cookies are made with.
    pub(crate) fn set_udp_secret(&mut self, secret: [u8; 32]) {
        self.endpoints.secret = secret;
    }

    /// Lets a connection bind an endpoint by this token.
    pub(crate) fn offer_udp(&mut self, id: ClientId, token: Token, alias: Alias, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        self.endpoints.of_tag.insert(token.tag(), id);
        self.endpoints.of_alias.insert(alias, client.node);
        client.udp = Some(Binding {
            token,
            alias,
            endpoint: None,
            bound_at: now,
        });
    }

    /// Sends nothing by UDP to a connection until it binds again.
    pub(crate) fn unbind(&mut self, id: ClientId) {
        let client = self.clients.get_mut(&id);
        if let Some(binding) = client.and_then(|client| client.udp.as_mut()) {
            binding.endpoint = None;
        }
    }

    /// Forgets the UDP of a connection that left.
    pub(crate) fn forget_udp(&mut self, binding: &Binding, is_node_here: bool) {
        self.endpoints.of_tag.remove(&binding.token.tag());
        if !is_node_here {
            self.endpoints.of_alias.remove(&binding.alias);
        }
    }

    /// Takes datagrams of one sender, `stride` bytes each but the last, and gives those that are forwarded by UDP their new
    /// headers in place. What a receiver cannot have by UDP waits for it as what comes over links does.
    pub(crate) fn on_udp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &mut [u8],
        stride: usize,
        wake: &mut Vec<W>,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let stride = stride.max(1);
        let mut start = 0;
        while start < bytes.len() {
            let rest = bytes.get(start..).unwrap_or_default();
            let first = rest.get(..stride.min(rest.len())).unwrap_or_default();
            let (tag, alias) = match UdpMessage::parse(first) {
                Some(UdpMessage::Data {
                    tag,
                    alias,
                    datagram: [WIREGUARD_DATA, ..],
                }) => (tag, alias),
                Some(UdpMessage::Bind { token, cookie }) => {
                    verdict.answer = self.on_bind(now, from, token, cookie);
                    start += first.len();
                    continue;
                }
                _ => {
                    start += first.len();
                    continue;
                }
            };
            let head = first.get(..UDP_HEADER_LEN).unwrap_or_default();
            let alike = rest.chunks(stride).take_while(|datagram| {
                datagram.starts_with(head) && datagram.get(UDP_HEADER_LEN) == Some(&WIREGUARD_DATA)
            });
            let len: usize = alike.map(<[u8]>::len).sum();
            let range = start..start + len;
            start = range.end;
            let way = self.way(now, from, tag, alias, len);
            let part = bytes.get_mut(range.clone()).unwrap_or_default();
            self.send_on(now, way, (part, range, stride), &mut verdict, wake);
        }
        verdict
    }

    fn way(&mut self, now: Instant, from: SocketAddr, tag: Tag, alias: Alias, len: usize) -> Way {
        let Some(id) = self.endpoints.of_tag.get(&tag).copied() else {
            return Way::Nobody;
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return Way::Nobody;
        };
        let sender = client.node;
        let own_alias = match &client.udp {
            Some(binding) if binding.endpoint == Some(from) => binding.alias,
            Some(_) | None => return Way::Nobody,
        };
        if !client.rate.admit(len, now) {
            return Way::Limited;
        }
        let to = self.endpoints.of_alias.get(&alias).copied();
        let receiver = to.as_ref().and_then(|node| self.newest(node));
        let (Some(to), Some(receiver)) = (to, receiver.and_then(|id| self.clients.get(&id))) else {
            return Way::NotHere;
        };
        let binding = receiver.udp.as_ref().filter(|_| receiver.end.is_none());
        match binding.and_then(|binding| Some((binding.live(now)?, binding.token.tag()))) {
            Some((to, tag)) => Way::Udp {
                to,
                header: data_header(tag, own_alias),
            },
            None => Way::Link {
                from: id,
                sender,
                to,
            },
        }
    }

    fn send_on(
        &mut self,
        now: Instant,
        way: Way,
        (part, range, stride): (&mut [u8], Range<usize>, usize),
        verdict: &mut Verdict,
        wake: &mut Vec<W>,
    ) {
        let n_datagrams = part.len().div_ceil(stride);
        match way {
            Way::Nobody => {}
            Way::Limited => verdict.n_limited += n_datagrams,
            Way::NotHere => verdict.n_not_here += n_datagrams,
            Way::Udp { to, header } => {
                verdict.n_datagrams += n_datagrams;
                verdict.n_bytes += part.len() - n_datagrams * UDP_HEADER_LEN;
                for datagram in part.chunks_mut(stride) {
                    if let Some(head) = datagram.first_chunk_mut::<UDP_HEADER_LEN>() {
                        *head = header;
                    }
                }
                verdict.runs.push(Run { to, range, stride });
            }
            Way::Link { from, sender, to } => {
                let contents: Vec<u8> = part
                    .chunks(stride)
                    .flat_map(|datagram| datagram.get(UDP_HEADER_LEN..).unwrap_or_default())
                    .copied()
                    .collect();
                let Some(datagrams) = Datagrams::new(&contents, stride - UDP_HEADER_LEN) else {
                    return;
                };
                verdict.n_datagrams += n_datagrams;
                verdict.n_bytes += contents.len();
                let frame = Received {
                    is_urgent: datagrams.is_urgent(),
                    bytes: Bytes::from(
                        Frame::Received {
                            from: sender,
                            datagrams,
                        }
                        .to_vec(),
                    ),
                    n_datagrams,
                };
                match self.forward(from, &to, frame, now, wake) {
                    Forwarded::Queued { n_lost, .. } => verdict.n_full += n_lost,
                    Forwarded::NotHere => verdict.n_not_here += n_datagrams,
                }
            }
        }
    }

    /// A node says where its datagrams come from: believed when it repeats what was sent there.
    fn on_bind(
        &mut self,
        now: Instant,
        from: SocketAddr,
        token: &[u8; Token::LEN],
        shown: &Cookie,
    ) -> Option<Vec<u8>> {
        let tag = Token::from_bytes(*token).tag();
        let id = self.endpoints.of_tag.get(&tag)?;
        let client = self
            .clients
            .get_mut(id)
            .filter(|client| client.end.is_none())?;
        let binding = client.udp.as_mut()?;
        if !binding.token.is_same(token) {
            return None;
        }
        let made = make_cookie(&self.endpoints.secret, token, from);
        if !bool::from(made.ct_eq(shown)) {
            return Some(cookie(tag, &made));
        }
        (binding.endpoint, binding.bound_at) = (Some(from), now);
        Some(bound(tag))
    }
}

/// What a node can know only who receives at the endpoint.
fn make_cookie(secret: &[u8; 32], token: &[u8; Token::LEN], endpoint: SocketAddr) -> Cookie {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(secret)
        .expect("HMAC takes a key of any length");
    mac.update(token);
    match endpoint.ip().to_canonical() {
        IpAddr::V4(ip) => mac.update(&ip.octets()),
        IpAddr::V6(ip) => mac.update(&ip.octets()),
    }
    mac.update(&endpoint.port().to_be_bytes());
    let mac = mac.finalize().into_bytes();
    let mut made = Cookie::default();
    for (to, from) in made.iter_mut().zip(mac) {
        *to = from;
    }
    made
}

#[cfg(test)]
mod tests;
