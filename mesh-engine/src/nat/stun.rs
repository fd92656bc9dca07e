//! Finds the server-reflexive address of the UDP socket: asks STUN servers, at intervals that keep a NAT mapping open.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_proto::stun::{TransactionId, binding_request, parse_success};

use crate::config::{N_STUN_SERVERS_MAX, N_STUN_TRIES, STUN_ACTIVE, STUN_IDLE, STUN_RETRY};
use crate::event::Transmit;
use crate::path::canonical;
use crate::seed::Seed;

/// One round of requests at a time, to all servers.
#[derive(Debug, Default)]
pub(crate) struct Stun {
    servers: Vec<SocketAddr>,
    /// What each server said last.
    reflexive: BTreeMap<SocketAddr, SocketAddr>,
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
        let requests = self.open.iter();
        requests
            .map(|(server, id)| Transmit {
                dst: *server,
                bytes: binding_request(id).to_vec(),
            })
            .collect()
    }

    /// Takes an answer; the reflexive address when that is news.
    pub(crate) fn handle_udp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Option<SocketAddr> {
        let (id, seen) = parse_success(datagram)?;
        if self.open.get(&from) != Some(&id) {
            return None;
        }
        self.open.remove(&from);
        if self.open.is_empty() {
            self.end_round(now);
        }
        let seen = canonical(seen);
        let is_known = self.reflexive.values().any(|known| *known == seen);
        self.reflexive.insert(from, seen);
        (!is_known).then_some(seen)
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
