//! Finds the server-reflexive address of the UDP socket: asks STUN servers, at intervals that keep a NAT mapping open.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_proto::disco::Mapping;
use mesh_proto::stun::{TransactionId, binding_request, parse_success};

use crate::config::{
    N_STUN_SERVERS_MAX, N_STUN_TRIES, STUN_ACTIVE, STUN_AGAIN, STUN_IDLE, STUN_RETRY,
};
use crate::event::{Destination, Transmit};
use crate::path::canonical;
use crate::seed::Seed;

/// What a server's answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The reflexive address.
    pub(crate) seen: SocketAddr,
    /// Whether no server said so before.
    pub(crate) is_news: bool,
    /// How long it took, when that is certain.
    pub(crate) rtt: Option<Duration>,
}

/// One round of requests at a time, to all servers.
#[derive(Debug, Default)]
pub(crate) struct Stun {
    servers: Vec<SocketAddr>,
    /// What each server said last, and in which round.
    reflexive: BTreeMap<SocketAddr, (SocketAddr, u64)>,
    n_rounds: u64,
    /// When the requests of this try went out.
    sent_at: Option<Instant>,
    /// The servers that have not answered in this round, and what they must repeat.
    open: BTreeMap<SocketAddr, TransactionId>,
    n_tries: u32,
    next_at: Option<Instant>,
    round_began: Option<Instant>,
    is_active: bool,
}

impl Stun {
    pub(crate) fn set_servers(&mut self, now: Instant, servers: &[SocketAddr]) {
        let mut servers: Vec<SocketAddr> = servers.iter().map(|s| canonical(*s)).collect();
        servers.truncate(N_STUN_SERVERS_MAX);
        if servers == self.servers {
            return;
        }
        self.servers = servers;
        self.restart(now);
    }

    /// Forgets what was learned, for a network that is another one.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.reflexive.clear();
        self.begin_at(now);
    }

    /// A path fell silent: the NAT may have forgotten its mappings. Asks at once, but not again and again.
    pub(crate) fn doubt(&mut self, now: Instant) {
        let is_due = self
            .round_began
            .is_none_or(|began| now.saturating_duration_since(began) >= STUN_AGAIN);
        if self.open.is_empty() && is_due {
            self.begin_at(now);
        }
    }

    /// Whether a session runs over the internet, so that its NAT mapping must stay.
    pub(crate) fn set_active(&mut self, is_active: bool) {
        if is_active && !self.is_active && self.open.is_empty() {
            let soon = self.round_began.map(|began| began + STUN_ACTIVE);
            self.next_at = self.next_at.min(soon.or(self.next_at));
        }
        self.is_active = is_active;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next_at
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, seed: &mut Seed) -> Vec<Transmit> {
        if self.next_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        if self.n_tries == 0 {
            self.round_began = Some(now);
            self.n_rounds += 1;
            for server in &self.servers {
                let mut id = [0; 12];
                id.copy_from_slice(&seed.block()[..12]);
                self.open.insert(*server, id);
            }
        }
        self.n_tries += 1;
        if self.n_tries > N_STUN_TRIES || self.open.is_empty() {
            self.end_round(now);
            return Vec::new();
        }
        self.next_at = Some(now + STUN_RETRY * (1 << (self.n_tries - 1)));
        self.sent_at = Some(now);
        let requests = self.open.iter();
        requests
            .map(|(server, id)| Transmit {
                dst: Destination::Udp(*server),
                bytes: binding_request(id).to_vec(),
            })
            .collect()
    }

    /// Takes an answer of a server that was asked.
    pub(crate) fn handle_udp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Option<Answer> {
        let (id, seen) = parse_success(datagram)?;
        if self.open.get(&from) != Some(&id) {
            return None;
        }
        self.open.remove(&from);
        if self.open.is_empty() {
            self.end_round(now);
        }
        let seen = canonical(seen);
        let is_news = !self.reflexive.values().any(|(known, _)| *known == seen);
        self.reflexive.insert(from, (seen, self.n_rounds));
        // An answer to the first of several tries would look too fast.
        let rtt = (self.n_tries <= 1)
            .then_some(self.sent_at)
            .flatten()
            .map(|at| now.saturating_duration_since(at));
        Some(Answer { seen, is_news, rtt })
    }

    /// Where this node is seen from outside, without repetition, at most a few.
    pub(crate) fn reflexive(&self) -> Vec<SocketAddr> {
        let mut seen: Vec<SocketAddr> = Vec::new();
        for (endpoint, _) in self.reflexive.values() {
            if !seen.contains(endpoint) && seen.len() < N_STUN_SERVERS_MAX {
                seen.push(*endpoint);
            }
        }
        seen
    }

    /// How the IPv4 NAT maps, by what different servers saw in one round (RFC 5780, section 4.3, with servers that need
    /// not know each other).
    pub(crate) fn mapping(&self) -> Mapping {
        let newest = self.reflexive.values().map(|(_, round)| *round).max();
        let mut seen = self
            .reflexive
            .iter()
            .filter(|(server, (_, round))| server.is_ipv4() && Some(*round) == newest)
            .map(|(_, (seen, _))| *seen);
        let Some(first) = seen.next() else {
            return Mapping::Unknown;
        };
        let mut n_others = 0;
        for other in seen {
            if other != first {
                return Mapping::EndpointDependent;
            }
            n_others += 1;
        }
        if n_others == 0 {
            Mapping::Unknown
        } else {
            Mapping::EndpointIndependent
        }
    }

    /// Whether an answer came in the newest round, by family.
    pub(crate) fn works(&self, is_ipv6: bool) -> bool {
        let mut answers = self.reflexive.iter();
        answers.any(|(server, (_, round))| server.is_ipv6() == is_ipv6 && *round == self.n_rounds)
    }

    /// Whether no answer is waited for.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        self.open.is_empty() && self.next_at.is_none_or(|at| at > now)
    }

    fn begin_at(&mut self, at: Instant) {
        self.open.clear();
        self.n_tries = 0;
        self.next_at = (!self.servers.is_empty()).then_some(at);
    }

    fn end_round(&mut self, now: Instant) {
        let interval: Duration = if self.is_active {
            STUN_ACTIVE
        } else {
            STUN_IDLE
        };
        let began = self.round_began.unwrap_or(now);
        // A round without any answer may outlast a short interval.
        self.begin_at((began + interval).max(now + STUN_RETRY));
    }
}

#[cfg(test)]
mod tests;
