//! Keeps a port mapping at the gateway: PCP first, NAT-PMP where that is not spoken, then UPnP.
//!
//! ```text
//!   Off ──gateway──► Asking(PCP) ──no──► Asking(PMP) ──no──► Asking(UPnP) ──no──► Given up
//!                        │ answer            │ answer             │ done      (tried again later)
//!                        └───────────────► Mapped ◄───────────────┘
//!                                          │ half its life, or the gateway lost its memory
//!                                          └──► Asking
//! ```
//!
//! UPnP is HTTP, which the daemon speaks: it is given an order and tells what became of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::config::{
    MAP_LIFETIME_S, MAP_LIFETIMES_S, MAP_RENEW_MIN, MAP_RETRY, MAP_RETRY_LATER, N_MAP_TRIES,
    UPNP_WITHIN,
};
use crate::event::{Destination, Transmit, UpnpOrder};
use crate::nat::wire::{self, Answer, GATEWAY_PORT, Nonce};
use crate::seed::Seed;

/// Where the gateway is, and what is to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) ip: IpAddr,
    /// This node's own address towards it.
    pub(crate) client: IpAddr,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Pcp,
    Pmp,
    Upnp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Asking {
        protocol: Protocol,
        n_tries: u32,
        at: Instant,
    },
    Mapped {
        protocol: Protocol,
        renew_at: Instant,
    },
    GivenUp {
        again_at: Instant,
    },
}

/// The mapping.
#[derive(Debug)]
pub(crate) struct PortMap {
    gateway: Option<Gateway>,
    state: State,
    nonce: Nonce,
    outer: Option<SocketAddr>,
    /// What NAT-PMP tells in two answers.
    pmp_ip: Option<Ipv4Addr>,
    /// The gateway's own clock and when it was told (RFC 6887, section 8.5).
    epoch: Option<(u32, Instant)>,
    /// When a lost memory last made this node ask anew.
    renewed_at: Option<Instant>,
    /// For the daemon.
    order: Option<UpnpOrder>,
}

impl Default for PortMap {
    fn default() -> Self {
        Self {
            gateway: None,
            state: State::Off,
            nonce: [0; 12],
            outer: None,
            pmp_ip: None,
            epoch: None,
            renewed_at: None,
            order: None,
        }
    }
}

impl PortMap {
    /// Takes the gateway, or that there is none or mappings are not wanted. Returns what ends the old mapping.
    pub(crate) fn set_gateway(
        &mut self,
        now: Instant,
        gateway: Option<Gateway>,
        seed: &mut Seed,
    ) -> Option<Transmit> {
        if gateway == self.gateway {
            return None;
        }
        let farewell = self.farewell();
        *self = Self {
            gateway,
            order: self.order,
            ..Self::default()
        };
        self.nonce.copy_from_slice(&seed.block()[..12]);
        if gateway.is_some() {
            self.ask(now, Protocol::Pcp);
        }
        farewell
    }

    /// The network is another one: what was mapped may be gone.
    pub(crate) fn restart(&mut self, now: Instant) {
        if self.gateway.is_some() {
            (self.outer, self.pmp_ip, self.epoch) = (None, None, None);
            self.ask(now, Protocol::Pcp);
        }
    }

    /// Where the gateway forwards from.
    pub(crate) const fn outer(&self) -> Option<SocketAddr> {
        self.outer
    }

    /// Which protocol the gateway speaks, as people call it.
    pub(crate) const fn protocol(&self) -> Option<&'static str> {
        match self.state {
            State::Mapped {
                protocol: Protocol::Pcp,
                ..
            } => Some("PCP"),
            State::Mapped {
                protocol: Protocol::Pmp,
                ..
            } => Some("NAT-PMP"),
            State::Mapped {
                protocol: Protocol::Upnp,
                ..
            } => Some("UPnP"),
            State::Off | State::Asking { .. } | State::GivenUp { .. } => None,
        }
    }

    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Off => None,
            State::Asking { at, .. } => Some(at),
            State::Mapped { renew_at, .. } => Some(renew_at),
            State::GivenUp { again_at } => Some(again_at),
        }
    }

    fn ask(&mut self, now: Instant, protocol: Protocol) {
        self.state = State::Asking {
            protocol,
            n_tries: 0,
            at: now,
        };
    }

    /// What to send now. The mapping may be gone afterwards: see [`Self::outer`].
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Transmit> {
        let (Some(gateway), true) = (
            self.gateway,
            self.poll_timeout().is_some_and(|at| at <= now),
        ) else {
            return Vec::new();
        };
        match self.state {
            State::Off => {}
            State::Mapped { protocol, .. } => self.ask(now, protocol),
            State::GivenUp { .. } => self.ask(now, Protocol::Pcp),
            State::Asking { .. } => {}
        }
        let State::Asking {
            protocol, n_tries, ..
        } = self.state
        else {
            return Vec::new();
        };
        let (n_tries_max, pause) = match protocol {
            Protocol::Pcp | Protocol::Pmp => (N_MAP_TRIES, MAP_RETRY * (1 << n_tries)),
            Protocol::Upnp => (1, UPNP_WITHIN),
        };
        if n_tries >= n_tries_max {
            self.ask_otherwise(now, protocol);
            return Vec::new();
        }
        self.state = State::Asking {
            protocol,
            n_tries: n_tries + 1,
            at: now + pause,
        };
        self.requests(&gateway, protocol, MAP_LIFETIME_S)
    }

    /// The gateway does not do it by this protocol.
    fn ask_otherwise(&mut self, now: Instant, protocol: Protocol) {
        match protocol {
            Protocol::Pcp => self.ask(now, Protocol::Pmp),
            Protocol::Pmp => self.ask(now, Protocol::Upnp),
            Protocol::Upnp => self.give_up(now),
        }
    }

    /// What the daemon is to do at the gateway by UPnP.
    pub(crate) const fn take_order(&mut self) -> Option<UpnpOrder> {
        self.order.take()
    }

    /// Takes what became of an order: where the gateway forwards from, and for how many seconds. `true` when the mapping
    /// changed.
    pub(crate) fn handle_upnp(
        &mut self,
        now: Instant,
        order: &UpnpOrder,
        mapped: Option<(SocketAddr, u32)>,
    ) -> bool {
        let State::Asking {
            protocol: Protocol::Upnp,
            ..
        } = self.state
        else {
            return false;
        };
        let asked = self
            .gateway
            .and_then(|gateway| order_to(&gateway, MAP_LIFETIME_S));
        if asked.as_ref() != Some(order) {
            return false;
        }
        let before = self.outer;
        match mapped {
            Some((outer, lifetime_s)) => self.on_mapped(now, Protocol::Upnp, outer, lifetime_s),
            None => self.give_up(now),
        }
        self.outer != before
    }

    fn requests(
        &mut self,
        gateway: &Gateway,
        protocol: Protocol,
        lifetime_s: u32,
    ) -> Vec<Transmit> {
        let bytes = match protocol {
            Protocol::Pcp => vec![wire::pcp_map(
                gateway.client,
                gateway.port,
                &self.nonce,
                lifetime_s,
            )],
            Protocol::Pmp => vec![wire::pmp_address(), wire::pmp_map(gateway.port, lifetime_s)],
            Protocol::Upnp => {
                self.order = order_to(gateway, lifetime_s);
                Vec::new()
            }
        };
        let dst = Destination::Udp(SocketAddr::new(gateway.ip, GATEWAY_PORT));
        let transmits = bytes.into_iter();
        transmits.map(|bytes| Transmit { dst, bytes }).collect()
    }

    fn farewell(&mut self) -> Option<Transmit> {
        let protocol = match self.state {
            State::Mapped { protocol, .. } => protocol,
            // What was ordered may be done by now.
            State::Asking {
                protocol: Protocol::Upnp,
                ..
            } => Protocol::Upnp,
            State::Off | State::Asking { .. } | State::GivenUp { .. } => return None,
        };
        let gateway = self.gateway?;
        self.requests(&gateway, protocol, 0).pop()
    }

    /// Takes a datagram; `true` when it was the gateway's and the mapping changed.
    pub(crate) fn handle_udp(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(gateway) = self.gateway else {
            return false;
        };
        if from != SocketAddr::new(gateway.ip, GATEWAY_PORT) {
            return false;
        }
        let before = self.outer;
        match wire::parse(datagram) {
            Some(answer) => self.on_answer(now, &gateway, answer),
            None => tracing::debug!("the gateway's answer makes no sense"),
        }
        self.outer != before
    }

    fn on_answer(&mut self, now: Instant, gateway: &Gateway, answer: Answer) {
        let asking = match self.state {
            State::Asking { protocol, .. } => Some(protocol),
            State::Off | State::Mapped { .. } | State::GivenUp { .. } => None,
        };
        match answer {
            Answer::Pcp {
                nonce,
                inner_port,
                outer,
                lifetime_s,
                epoch_s,
            } => {
                if nonce != self.nonce || inner_port != gateway.port {
                    return;
                }
                self.on_epoch(now, epoch_s);
                if asking == Some(Protocol::Pcp) {
                    self.on_mapped(now, Protocol::Pcp, outer, lifetime_s);
                }
            }
            Answer::PmpAddress { ip, epoch_s } => {
                if asking == Some(Protocol::Pmp) {
                    self.on_epoch(now, epoch_s);
                    self.pmp_ip = Some(ip);
                }
            }
            Answer::PmpMap {
                inner_port,
                outer_port,
                lifetime_s,
                epoch_s,
            } => {
                if asking == Some(Protocol::Pmp)
                    && inner_port == gateway.port
                    && let Some(ip) = self.pmp_ip
                {
                    self.on_epoch(now, epoch_s);
                    let outer = SocketAddr::new(IpAddr::V4(ip), outer_port);
                    self.on_mapped(now, Protocol::Pmp, outer, lifetime_s);
                }
            }
            Answer::OtherVersion => self.on_refused(now, asking),
            Answer::Refused(code) => {
                tracing::debug!(code, "the gateway maps no port");
                self.on_refused(now, asking);
            }
        }
    }

    fn on_refused(&mut self, now: Instant, asking: Option<Protocol>) {
        match asking {
            Some(protocol @ (Protocol::Pcp | Protocol::Pmp)) => self.ask_otherwise(now, protocol),
            // These were no answers to that.
            Some(Protocol::Upnp) | None => {}
        }
    }

    fn give_up(&mut self, now: Instant) {
        self.outer = None;
        let again_at = now + MAP_RETRY_LATER;
        self.state = State::GivenUp { again_at };
    }

    fn on_mapped(&mut self, now: Instant, protocol: Protocol, outer: SocketAddr, lifetime_s: u32) {
        if !is_plausible(outer) || lifetime_s == 0 {
            tracing::debug!("the gateway's mapping leads nowhere");
            self.give_up(now);
            return;
        }
        let lifetime_s = lifetime_s.clamp(MAP_LIFETIMES_S.0, MAP_LIFETIMES_S.1);
        self.outer = Some(outer);
        self.state = State::Mapped {
            protocol,
            renew_at: now + Duration::from_secs(u64::from(lifetime_s / 2)),
        };
    }

    /// A gateway whose clock went back has forgotten its mappings.
    fn on_epoch(&mut self, now: Instant, epoch_s: u32) {
        let is_lost = self.epoch.is_some_and(|(known_s, at)| {
            let elapsed_s = now.saturating_duration_since(at).as_secs();
            u64::from(epoch_s) + elapsed_s / 8 + 2 < u64::from(known_s) + elapsed_s
        });
        self.epoch = Some((epoch_s, now));
        let is_soon = self
            .renewed_at
            .is_some_and(|at| now.saturating_duration_since(at) < MAP_RENEW_MIN);
        if let (true, false, State::Mapped { protocol, .. }) = (is_lost, is_soon, self.state) {
            self.renewed_at = Some(now);
            self.ask(now, protocol);
        }
    }
}

/// UPnP maps IPv4 alone.
const fn order_to(gateway: &Gateway, lifetime_s: u32) -> Option<UpnpOrder> {
    match (gateway.ip, gateway.client) {
        (IpAddr::V4(ip), IpAddr::V4(client)) => Some(UpnpOrder {
            gateway: ip,
            client,
            port: gateway.port,
            lifetime_s,
        }),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
    }
}

/// Whether a peer could be told to send there.
fn is_plausible(outer: SocketAddr) -> bool {
    let is_special = match outer.ip() {
        IpAddr::V4(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
        }
    };
    outer.port() != 0 && !is_special
}

#[cfg(test)]
mod tests;
