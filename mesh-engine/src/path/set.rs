//! The direct paths to one peer: candidates, the probes under way, and what the answers say. Exists while there is a
//! session or one is wanted; an idle peer has none.
//!
//! It says what to probe and takes answers; who sends, seals and switches is the engine. All times are milliseconds of
//! the plane's clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_proto::disco::{Mapping, PingId};

use crate::config::{
    CALL_EVERY, DEAD_AFTER, DEATHS_FOR, DOUBT_FOR, FRESH_FOR, GUESS_AFTER_ROUNDS, LOSSY_FROM,
    N_ENDPOINTS_MAX, N_GUESSED_MAX, N_PROBED_MAX, N_PROBES_MAX, PROBE_FOR, PROBE_ROUNDS,
    REPROBE_EVERY, REVIVE_EVERY, REVIVE_FOR,
};
use crate::event::Destination;
use crate::path::guess::Guess;
use crate::path::mtu::{Fare, PathMtu};
use crate::path::select::{Measured, select};

/// Where a candidate came from, best trusted first: the worst is thrown out when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The netmap or a call-me-maybe.
    Told,
    /// A packet or ping of the peer came from there.
    Seen,
}

/// One endpoint where the peer may be.
#[derive(Debug, Clone)]
struct Candidate {
    origin: Origin,
    is_lan: bool,
    /// 0 for never.
    pinged_ms: u64,
    /// When it last answered, or a handshake went through; 0 for never.
    proven_ms: u64,
    rtt_ms: Option<f64>,
    loss: f32,
    /// How often it died as the selected path, and when last.
    n_deaths: u32,
    died_ms: u64,
    /// Answers in a row since then.
    n_answers: u32,
    mtu: PathMtu,
    /// The share of probes of the length in use that is lost; while data is sent they are frequent.
    loss_in_use: f32,
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
struct Probe {
    to: Destination,
    at_ms: u64,
    /// The length of overlay packet that it stands for; `None` for the shortest ping.
    length: Option<u16>,
}

/// The paths.
#[derive(Debug)]
pub(crate) struct PathSet {
    candidates: BTreeMap<Destination, Candidate>,
    probes: BTreeMap<PingId, Probe>,
    /// The next round of probes to everything.
    n_rounds: usize,
    round_at_ms: u64,
    pinged_all_ms: u64,
    /// Since when the selected path has been sent data and not been heard.
    doubt_ms: Option<u64>,
    /// When the peer was last asked to ping this node.
    pub(crate) called_ms: u64,
    /// How the peer's NAT maps, as it says.
    pub(crate) mapping: Mapping,
    guess: Guess,
}

/// What a look at the clock comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Ping these.
    pub(crate) probe: Vec<Destination>,
    /// Ask the peer to ping this node.
    pub(crate) call: bool,
    /// The selected path carries nothing.
    pub(crate) is_dead: bool,
}

/// What is selected, and what it did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    pub(crate) endpoint: Destination,
    pub(crate) heard_ms: u64,
}

/// How lively the link to the peer is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) now_ms: u64,
    pub(crate) last_data_tx_ms: u64,
    /// When data came by any path.
    pub(crate) last_data_rx_ms: u64,
    /// Whether packets were sent or received lately, or a handshake is under way.
    pub(crate) is_busy: bool,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a smoothed time of at most seconds, above zero"
)]
const fn whole_ms(ms: f64) -> u64 {
    ms as u64
}

/// Smooths the share of probes that are lost.
fn note_probe(loss: &mut f32, is_lost: bool) {
    *loss = *loss * 0.8 + if is_lost { 0.2 } else { 0.0 };
}

const fn ms(span: Duration) -> u64 {
    // Constants of the configuration, all below minutes.
    span.as_secs() * 1000 + span.subsec_millis() as u64
}

impl PathSet {
    pub(crate) const fn new(now_ms: u64) -> Self {
        Self {
            candidates: BTreeMap::new(),
            probes: BTreeMap::new(),
            n_rounds: 0,
            round_at_ms: now_ms,
            pinged_all_ms: 0,
            doubt_ms: None,
            called_ms: 0,
            mapping: Mapping::Unknown,
            guess: Guess::new(),
        }
    }

    /// The number of this step of an attempt to guess ports, if one is under way or begins: when there is no direct path
    /// and rounds of probes have found none.
    pub(crate) fn guess(&mut self, now_ms: u64, is_wanted: bool) -> Option<u32> {
        let is_tried = self.n_rounds >= GUESS_AFTER_ROUNDS || self.is_guessing();
        self.guess.step(now_ms, is_wanted && is_tried)
    }

    /// Whether an attempt is under way.
    pub(crate) const fn is_guessing(&self) -> bool {
        self.guess.is_under_way()
    }

    /// Where in the internet the peer says that it is seen.
    pub(crate) fn public_endpoints(&self) -> Vec<SocketAddr> {
        let told = self
            .candidates
            .iter()
            .filter(|(_, candidate)| candidate.origin == Origin::Told && !candidate.is_lan);
        let endpoints = told.filter_map(|(way, _)| way.endpoint());
        endpoints
            .filter(|endpoint| match endpoint.ip() {
                IpAddr::V4(ip) => !ip.is_private() && !ip.is_loopback() && !ip.is_link_local(),
                IpAddr::V6(_) => false,
            })
            .take(N_GUESSED_MAX)
            .collect()
    }

    /// Takes endpoints of the peer's own telling; `true` when some are new.
    pub(crate) fn tell(&mut self, endpoints: &[(Destination, bool)]) -> bool {
        let mut is_news = false;
        for (endpoint, is_lan) in endpoints {
            is_news |= self.add(*endpoint, *is_lan, Origin::Told);
        }
        is_news
    }

    /// The peer was heard from there; `true` when that is worth a ping now.
    pub(crate) fn see(&mut self, endpoint: Destination, is_lan: bool, now_ms: u64) -> bool {
        self.add(endpoint, is_lan, Origin::Seen);
        let candidate = self.candidates.get(&endpoint);
        candidate.is_some_and(|candidate| {
            !candidate.is_fresh(now_ms)
                && now_ms.saturating_sub(candidate.pinged_ms) >= ms(REVIVE_EVERY) / 2
        })
    }

    fn add(&mut self, endpoint: Destination, is_lan: bool, origin: Origin) -> bool {
        if let Some(known) = self.candidates.get_mut(&endpoint) {
            known.origin = known.origin.min(origin);
            return false;
        }
        if self.candidates.len() >= N_ENDPOINTS_MAX {
            // What was never proven goes first, then what was proven longest ago.
            let worst = self
                .candidates
                .iter()
                .min_by_key(|(_, known)| (known.proven_ms, std::cmp::Reverse(known.origin)))
                .map(|(endpoint, _)| *endpoint);
            if let Some(worst) = worst {
                self.candidates.remove(&worst);
            }
        }
        self.candidates.insert(
            endpoint,
            Candidate {
                origin,
                is_lan,
                pinged_ms: 0,
                proven_ms: 0,
                rtt_ms: None,
                loss: 0.0,
                loss_in_use: 0.0,
                n_deaths: 0,
                died_ms: 0,
                n_answers: 0,
                mtu: PathMtu::default(),
            },
        );
        true
    }

    /// A handshake went through there and back.
    pub(crate) fn prove(&mut self, endpoint: Destination, is_lan: bool, now_ms: u64) {
        self.add(endpoint, is_lan, Origin::Seen);
        if let Some(candidate) = self.candidates.get_mut(&endpoint) {
            candidate.proven_ms = now_ms;
            candidate.n_answers += 1;
        }
    }

    /// Whether a way was ever seen to work both ways.
    pub(crate) fn is_proven(&self, way: &Destination) -> bool {
        let candidate = self.candidates.get(way);
        candidate.is_some_and(|candidate| candidate.proven_ms != 0)
    }

    /// When a way was last seen to work; 0 for never.
    pub(crate) fn proven_ms(&self, way: &Destination) -> u64 {
        self.candidates
            .get(way)
            .map_or(0, |candidate| candidate.proven_ms)
    }

    /// Probes everything anew from the next look on.
    pub(crate) fn explore(&mut self, now_ms: u64) {
        self.n_rounds = 0;
        self.round_at_ms = now_ms;
    }

    /// The peer asks for pings: what to ping now. Asks for none in return, else two ends would call each other for ever.
    pub(crate) fn on_called(
        &mut self,
        endpoints: &[(Destination, bool)],
        now_ms: u64,
    ) -> Vec<Destination> {
        let is_news = self.tell(endpoints);
        if is_news {
            self.explore(now_ms);
        }
        if now_ms.saturating_sub(self.pinged_all_ms) < ms(CALL_EVERY) && !is_news {
            return Vec::new();
        }
        self.pinged_all_ms = now_ms;
        self.ranked()
    }

    /// The peer is heard elsewhere and not by the selected path: whatever proves itself first takes over.
    pub(crate) fn doubt(&mut self, now_ms: u64) {
        self.doubt_ms = Some(now_ms.saturating_sub(ms(DOUBT_FOR)));
    }

    /// The network is another one: nothing that was proven holds.
    pub(crate) fn doubt_all(&mut self, now_ms: u64) {
        for candidate in self.candidates.values_mut() {
            candidate.proven_ms = 0;
            candidate.n_deaths = 0;
            candidate.n_answers = 0;
            candidate.mtu = PathMtu::default();
            candidate.loss_in_use = 0.0;
        }
        self.probes.clear();
        self.explore(now_ms);
    }

    /// Notes that a ping goes out, one that is as long as an overlay packet of `length` would be.
    pub(crate) fn on_ping_sent(
        &mut self,
        id: PingId,
        to: Destination,
        now_ms: u64,
        length: Option<u16>,
    ) {
        while self.probes.len() >= N_PROBES_MAX {
            self.probes.pop_first();
        }
        let at_ms = now_ms;
        self.probes.insert(id, Probe { to, at_ms, length });
        if let (Some(candidate), None) = (self.candidates.get_mut(&to), length) {
            candidate.pinged_ms = now_ms;
        }
    }

    /// A pong came; where the path that answered leads, when it answers one of this set's pings. A pong from elsewhere
    /// than where the ping went proves nothing: packets go to the one and come from the other.
    pub(crate) fn on_pong(&mut self, id: &PingId, from: Destination, now_ms: u64) -> bool {
        let Some(probe) = self.probes.get(id).copied() else {
            return false;
        };
        if probe.to != from {
            return false;
        }
        self.probes.remove(id);
        let Some(candidate) = self.candidates.get_mut(&from) else {
            return false;
        };
        let sample =
            f64::from(u32::try_from(now_ms.saturating_sub(probe.at_ms)).unwrap_or(u32::MAX));
        candidate.rtt_ms = Some(match candidate.rtt_ms {
            Some(rtt) => rtt * 0.75 + sample * 0.25,
            None => sample,
        });
        match probe.length {
            Some(length) => {
                for _ in 0..candidate.mtu.n_lost_before(length) {
                    note_probe(&mut candidate.loss_in_use, true);
                }
                note_probe(&mut candidate.loss_in_use, false);
                candidate.mtu.on_answer(length, now_ms);
            }
            None => note_probe(&mut candidate.loss, false),
        }
        candidate.proven_ms = now_ms;
        candidate.n_answers = candidate.n_answers.saturating_add(1);
        true
    }

    /// What to do now. `selected` is the direct path in use, if one is.
    pub(crate) fn look(&mut self, usage: Use, selected: Option<Watched>) -> Look {
        self.expire_probes(usage.now_ms);
        let mut look = Look::default();
        match selected {
            Some(selected) => self.watch(usage, selected, &mut look),
            None => {
                self.doubt_ms = None;
                self.revive(usage.now_ms, &mut look);
            }
        }
        self.round(usage, selected, &mut look);
        look
    }

    fn expire_probes(&mut self, now_ms: u64) {
        let late: Vec<PingId> = self
            .probes
            .iter()
            .filter(|(_, probe)| now_ms.saturating_sub(probe.at_ms) >= ms(PROBE_FOR))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(probe) = self.probes.remove(&id) else {
                continue;
            };
            // A long one may be lost for its length.
            if let (Some(candidate), None) = (self.candidates.get_mut(&probe.to), probe.length) {
                note_probe(&mut candidate.loss, true);
            }
        }
    }

    /// Looks after the MTU of a path in use: the lengths to ask for now.
    pub(crate) fn look_mtu(&mut self, path: &Destination, mut fare: Fare) -> Vec<u16> {
        let Some(candidate) = self.candidates.get_mut(path) else {
            return Vec::new();
        };
        fare.heard_ms = fare.heard_ms.max(candidate.proven_ms);
        fare.rtt_ms = candidate.rtt_ms.map_or(0, whole_ms);
        candidate.mtu.look(&fare)
    }

    /// The longest packet that a path takes, and whether that is settled.
    pub(crate) fn mtu(&self, path: &Destination) -> Option<(u16, bool)> {
        let candidate = self.candidates.get(path)?;
        Some((candidate.mtu.confirmed(), candidate.mtu.is_settled()))
    }

    /// Whether a path loses so much that sparse packets are worth sending twice.
    pub(crate) fn is_lossy(&self, path: &Destination) -> bool {
        self.candidates
            .get(path)
            .is_some_and(|candidate| candidate.loss_in_use >= LOSSY_FROM)
    }

    /// Looks after the path in use.
    fn watch(&mut self, usage: Use, selected: Watched, look: &mut Look) {
        let now_ms = usage.now_ms;
        // A path that a handshake selected may be known from nowhere else.
        self.add(selected.endpoint, false, Origin::Seen);
        let Some(candidate) = self.candidates.get(&selected.endpoint) else {
            return;
        };
        let heard_ms = selected.heard_ms.max(candidate.proven_ms);
        let rtt_ms = candidate.rtt_ms.unwrap_or(0.0);
        if self.doubt_ms.is_some_and(|since_ms| heard_ms >= since_ms) {
            self.doubt_ms = None;
        }
        let is_quiet = now_ms.saturating_sub(heard_ms) >= ms(REPROBE_EVERY);
        if self.doubt_ms.is_none() && (usage.last_data_tx_ms > heard_ms || is_quiet) {
            self.doubt_ms = Some(now_ms);
            if is_quiet {
                look.probe.push(selected.endpoint);
            }
            return;
        }
        let Some(since_ms) = self.doubt_ms else {
            return;
        };
        let doubted_ms = now_ms.saturating_sub(since_ms);
        // An answer may still be on its way over a slow path.
        // Data that comes by another way tells that the peer has left this one.
        let is_left = usage.last_data_rx_ms > heard_ms.max(since_ms);
        let silence = if is_left { DOUBT_FOR } else { DEAD_AFTER };
        let patience_ms = ms(silence) + whole_ms((rtt_ms * 2.0).min(1000.0));
        if doubted_ms >= patience_ms {
            look.is_dead = true;
        }
        look.probe.push(selected.endpoint);
        // What killed this one may have killed them all: those that answer now are the ones to turn to.
        let others = self.candidates.iter().filter(|(endpoint, candidate)| {
            **endpoint != selected.endpoint && candidate.is_usable(now_ms)
        });
        look.probe
            .extend(others.map(|(endpoint, _)| *endpoint).take(N_PROBED_MAX));
    }

    /// Asks paths that worked before whether they work again.
    fn revive(&self, now_ms: u64, look: &mut Look) {
        let lost = self.candidates.iter().filter(|(_, candidate)| {
            candidate.died_ms != 0
                && now_ms.saturating_sub(candidate.died_ms) < ms(REVIVE_FOR)
                && now_ms.saturating_sub(candidate.pinged_ms) >= ms(REVIVE_EVERY)
        });
        look.probe
            .extend(lost.map(|(endpoint, _)| *endpoint).take(N_PROBED_MAX));
    }

    /// Asks everything, in rounds that grow rarer.
    fn round(&mut self, usage: Use, selected: Option<Watched>, look: &mut Look) {
        if usage.now_ms < self.round_at_ms || !usage.is_busy {
            return;
        }
        let pause = PROBE_ROUNDS[self.n_rounds.min(PROBE_ROUNDS.len() - 1)];
        self.round_at_ms = usage.now_ms + ms(pause);
        self.n_rounds = self.n_rounds.saturating_add(1);
        self.pinged_all_ms = usage.now_ms;
        look.call = selected.is_none();
        for endpoint in self.ranked() {
            if !look.probe.contains(&endpoint) {
                look.probe.push(endpoint);
            }
        }
    }

    /// The candidates that are worth a ping: what was proven lately first, then the LAN.
    fn ranked(&self) -> Vec<Destination> {
        let mut ranked: Vec<_> = self
            .candidates
            .iter()
            .map(|(endpoint, candidate)| {
                let rank = (std::cmp::Reverse(candidate.proven_ms), !candidate.is_lan);
                (rank, *endpoint)
            })
            .collect();
        ranked.sort_unstable();
        let ranked = ranked.into_iter().map(|(_, endpoint)| endpoint);
        ranked.take(N_PROBED_MAX).collect()
    }

    /// The selected path died.
    pub(crate) fn on_death(&mut self, endpoint: Destination, now_ms: u64) {
        self.doubt_ms = None;
        if let Some(candidate) = self.candidates.get_mut(&endpoint) {
            if candidate.died_ms != 0 && candidate.proven_ms == 0 {
                // It stays selected because there is nothing else.
                return;
            }
            if now_ms.saturating_sub(candidate.died_ms) >= ms(DEATHS_FOR) {
                candidate.n_deaths = 0;
            }
            candidate.n_deaths = candidate.n_deaths.saturating_add(1);
            candidate.died_ms = now_ms;
            candidate.proven_ms = 0;
            candidate.n_answers = 0;
        }
        self.explore(now_ms);
    }

    /// The path to use; `None` when none is proven. A path in doubt gives way to any that was proven since.
    pub(crate) fn choose(&self, now_ms: u64, selected: Option<Destination>) -> Option<Destination> {
        let doubted_ms = self
            .doubt_ms
            .map_or(0, |since| now_ms.saturating_sub(since));
        let known = selected.and_then(|endpoint| self.candidates.get_key_value(&endpoint));
        let current = known
            .filter(|_| doubted_ms < ms(DOUBT_FOR))
            .map(|(endpoint, candidate)| (candidate.rtt_ms, candidate.measured(endpoint)));
        if let Some((None, current)) = current {
            // It works, and how well is not known yet.
            return Some(current.endpoint);
        }
        let current = current.map(|(_, current)| current);
        // What brought the selected one into doubt may have killed others, too.
        let since_ms = self.doubt_ms.filter(|_| current.is_none()).unwrap_or(0);
        let fresh = self.candidates.iter().filter(|(endpoint, candidate)| {
            Some(**endpoint) != selected
                && candidate.is_usable(now_ms)
                && candidate.proven_ms >= since_ms
        });
        let others = fresh.map(|(endpoint, candidate)| candidate.measured(endpoint));
        select(current.as_ref(), others).or(selected)
    }

    /// RTT and loss of a path.
    pub(crate) fn measures(&self, endpoint: &Destination) -> (Option<Duration>, f32) {
        let Some(candidate) = self.candidates.get(endpoint) else {
            return (None, 0.0);
        };
        let rtt = candidate.rtt_ms;
        let rtt = rtt.map(|rtt_ms| Duration::from_secs_f64(rtt_ms.max(0.0) / 1000.0));
        (rtt, candidate.loss)
    }

    /// How much is remembered, for tests of bounds.
    pub(crate) fn size(&self) -> usize {
        self.candidates.len() + self.probes.len()
    }
}

impl Candidate {
    fn measured(&self, endpoint: &Destination) -> Measured {
        Measured {
            endpoint: *endpoint,
            is_lan: self.is_lan,
            rtt: Duration::from_secs_f64(self.rtt_ms.unwrap_or(1000.0).max(0.0) / 1000.0),
            loss: self.loss,
        }
    }

    fn is_fresh(&self, now_ms: u64) -> bool {
        self.proven_ms != 0 && now_ms.saturating_sub(self.proven_ms) < ms(FRESH_FOR)
    }

    /// Proven lately, and after repeated deaths more than once: a path that comes and goes is none.
    fn is_usable(&self, now_ms: u64) -> bool {
        let is_troubled = now_ms.saturating_sub(self.died_ms) < ms(DEATHS_FOR);
        let needed = if is_troubled {
            self.n_deaths.clamp(1, 4)
        } else {
            1
        };
        self.is_fresh(now_ms) && self.n_answers >= needed
    }
}

#[cfg(test)]
mod tests;
