//! What this node found out about hosts by itself, and which of them a request goes to.
//!
//! The judgement is in the pure parts; here is what they share, behind one lock that is held for microseconds.

mod breaker;
mod figures;
mod pick;
mod prefix;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;
use tokio::sync::{Notify, watch};

pub(crate) use figures::Load;
pub(crate) use pick::{Prefer, PreferError};
pub(crate) use prefix::Prefix;
pub(crate) use work::Work;

use crate::catalog::HostOffer;
use breaker::Verdict;
use figures::{Ewma, Host, Reach};
use pick::Facts;
use prefix::Affinity;
pub(crate) use prefix::mix;

/// How long a host may say nothing while a request waits for its first byte, until it is probed.
const PROBE_WAITING: Duration = Duration::from_millis(700);
/// And while its name was asked for, or a request went to it.
const PROBE_WANTED: Duration = Duration::from_secs(2);
const WANTED_FOR: Duration = Duration::from_secs(6);
/// How often a host that is down is probed, at first and after ten seconds.
const PROBE_DOWN: Duration = Duration::from_secs(1);
const PROBE_LONG_DOWN: Duration = Duration::from_secs(2);
const LONG_DOWN: Duration = Duration::from_secs(10);
/// How long after its last use a host that is down is probed; then the next request tries it.
const DOWN_WANTED_FOR: Duration = Duration::from_secs(60);
/// Hosts that something is remembered of.
const N_HOSTS_MAX: usize = 4_096;
/// Of more hosts than this only some are looked at for one request, in so many rounds.
const N_LOOKED_AT: usize = 24;
const N_ROUNDS: usize = 4;

/// What a request looks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ask<'a> {
    pub(crate) prefix: Option<&'a Prefix>,
    pub(crate) prefer: Option<&'a Prefer>,
    /// This node's own queue.
    pub(crate) own: Load,
}

/// The hosts as this node knows them, beside what the map says.
#[derive(Debug)]
pub struct Hosts {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Told when a host is to be probed sooner than was known.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<NodeId, Host>,
    affinity: Affinity,
    chance: u64,
}

impl Default for Hosts {
    fn default() -> Self {
        let mut seed = [0; 8];
        // Without randomness guests that start together may ask in one order; nothing else rests on it.
        let _ = getrandom::fill(&mut seed);
        Self {
            state: Mutex::new(State {
                chance: u64::from_le_bytes(seed),
                ..State::default()
            }),
            changed: watch::Sender::default(),
            sooner: Notify::new(),
        }
    }
}

impl Hosts {
    /// The host cannot be reached.
    pub fn mark_down(&self, node: NodeId, now: Instant) {
        let mut state = self.lock();
        let host = state.host(node);
        host.wanted = Some(now);
        let is_new = matches!(host.reach, Reach::Up);
        if is_new {
            host.reach = Reach::Down { since: now };
            host.probed = Some(now);
        }
        drop(state);
        if is_new {
            self.tell();
        }
    }

    /// The host answered.
    pub fn mark_up(&self, node: &NodeId) {
        let mut state = self.lock();
        let Some(host) = state.hosts.get_mut(node) else {
            return;
        };
        host.n_missed = 0;
        let was_down = matches!(host.reach, Reach::Down { .. });
        host.reach = Reach::Up;
        drop(state);
        if was_down {
            self.tell();
        }
    }

    /// Whether the host is out of use.
    #[must_use]
    pub fn is_down(&self, node: &NodeId, now: Instant) -> bool {
        let state = self.lock();
        let host = state.hosts.get(node);
        host.is_some_and(|host| host.is_down(now))
    }

    /// Hears of each host that was found down, or up again. Time alone is not told: see [`Self::next_up`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// When the next host that is out of use, and that nobody probes any more, may be tried again.
    #[must_use]
    pub fn next_up(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        let ends = state.hosts.values().filter_map(Host::down_until);
        ends.filter(|until| *until > now).min()
    }

    /// Somebody is about to use these hosts: whether they live is looked at for a while.
    pub fn want<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>, now: Instant) {
        let mut state = self.lock();
        let mut is_sooner = false;
        for node in nodes {
            let host = state.host(*node);
            is_sooner |= host.wanted.is_none_or(|at| at + WANTED_FOR <= now);
            host.wanted = Some(now);
        }
        drop(state);
        if is_sooner {
            self.sooner.notify_one();
        }
    }

    /// The hosts that are to be probed now; they count as probed.
    pub(crate) fn due(&self, now: Instant) -> Vec<NodeId> {
        let mut state = self.lock();
        let due = state.hosts.iter_mut().filter_map(|(node, host)| {
            let is_due = host.due().is_some_and(|at| at <= now);
            is_due.then(|| {
                host.probed = Some(now);
                *node
            })
        });
        due.collect()
    }

    /// Waits until a host is to be probed.
    pub(crate) async fn until_due(&self) {
        loop {
            let next = {
                let state = self.lock();
                state.hosts.values().filter_map(Host::due).min()
            };
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => return,
                () = self.sooner.notified() => {}
            }
        }
    }

    /// A probe came back.
    pub(crate) fn on_pong(&self, node: &NodeId, rtt: Duration, load: Option<Load>, now: Instant) {
        {
            let mut state = self.lock();
            let host = state.host(*node);
            host.heard = Some(now);
            host.rtt.add(rtt.as_secs_f64());
            if let Some(load) = load {
                host.take(load, now);
            }
        }
        self.mark_up(node);
    }

    /// A probe did not come back.
    pub(crate) fn on_missed(&self, node: NodeId, now: Instant) {
        {
            let mut state = self.lock();
            let host = state.host(node);
            host.n_missed = host.n_missed.saturating_add(1);
            if matches!(host.reach, Reach::Up) {
                host.reach = Reach::Down { since: now };
            }
        }
        self.tell();
    }

    /// The host is not in the mesh any more.
    pub(crate) fn forget(&self, node: &NodeId) {
        let mut state = self.lock();
        let was_down = match state.hosts.get_mut(node) {
            // Its requests are still counted.
            Some(host) if host.n_in_work > 0 || host.n_watching > 0 => {
                host.wanted = None;
                false
            }
            Some(host) => {
                let was_down = matches!(host.reach, Reach::Down { .. });
                state.hosts.remove(node);
                was_down
            }
            None => false,
        };
        drop(state);
        if was_down {
            self.tell();
        }
    }

    /// The hosts to ask, best first; at most `n_max`. `offers` are of one model, as the catalogue has them.
    pub(crate) fn choose<'a>(
        &self,
        offers: &[&'a HostOffer],
        ask: &Ask<'_>,
        n_max: usize,
        now: Instant,
    ) -> Vec<&'a HostOffer> {
        let mut state = self.lock();
        let chosen = state.choose(offers, ask, now);
        let chosen: Vec<&HostOffer> = chosen
            .into_iter()
            .take(n_max)
            .map(|at| offers[at])
            .collect();
        drop(state);
        let others = chosen.iter().filter(|offer| !offer.is_self);
        self.want(others.map(|offer| &offer.node), now);
        chosen
    }

    /// The hosts to name to a program that picks for itself, best first; at most `n_max`. Whether they live is looked at for a
    /// while.
    pub(crate) fn pick_for_name(&self, offers: &mut Vec<&HostOffer>, n_max: usize) {
        let now = Instant::now();
        self.sort(offers, now);
        offers.truncate(n_max);
        let peers = offers.iter().filter(|offer| !offer.is_self);
        self.want(peers.map(|offer| &offer.node), now);
    }

    /// Puts hosts of one model in the order in which a program that picks for itself should try them. Hosts that are alike stay
    /// as they stand.
    fn sort(&self, offers: &mut [&HostOffer], now: Instant) {
        let state = self.lock();
        let facts = state.facts(offers.iter().copied(), &Ask::default(), &[], now);
        let by_node: BTreeMap<NodeId, Facts> =
            facts.into_iter().map(|facts| (facts.node, facts)).collect();
        drop(state);
        offers.sort_by_cached_key(|offer| {
            by_node.get(&offer.node).map(|facts| {
                let is_free = facts.has_free_slot || facts.is_self;
                let cost = Duration::try_from_secs_f64(facts.cost).unwrap_or(Duration::MAX);
                // To the power of two: a little faster is no reason for all to go there.
                let cost = u128::BITS - cost.as_millis().leading_zeros();
                let is_bad = facts.verdict == Verdict::Avoid;
                (is_bad, !facts.is_loaded, !is_free, !facts.is_self, cost)
            })
        });
    }

    fn tell(&self) {
        self.changed.send_replace(());
        self.sooner.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    fn down_until(&self) -> Option<Instant> {
        match self.reach {
            Reach::Down { since } => Some(self.wanted.unwrap_or(since) + DOWN_WANTED_FOR),
            Reach::Up => None,
        }
    }

    fn is_down(&self, now: Instant) -> bool {
        self.down_until().is_some_and(|until| until > now)
    }

    /// When it is to be probed.
    fn due(&self) -> Option<Instant> {
        let last = self.probed.max(self.heard);
        let after = |pause: Duration| last.map(|at| at + pause);
        if self.n_watching > 0 {
            return after(PROBE_WAITING).or(self.wanted);
        }
        match self.reach {
            Reach::Down { since } => {
                let is_long = last.is_some_and(|at| at > since + LONG_DOWN);
                let pause = if is_long { PROBE_LONG_DOWN } else { PROBE_DOWN };
                let until = self.down_until()?;
                after(pause).or(self.wanted).filter(|at| *at < until)
            }
            Reach::Up => {
                let wanted = self.wanted?;
                let at = last.unwrap_or(wanted) + PROBE_WANTED;
                (at < wanted + WANTED_FOR).then_some(at)
            }
        }
    }
}

impl State {
    /// What is known of a host. Those that nobody needs make room.
    fn host(&mut self, node: NodeId) -> &mut Host {
        if self.hosts.len() >= N_HOSTS_MAX && !self.hosts.contains_key(&node) {
            let idle = self
                .hosts
                .iter()
                .filter(|(_, host)| host.n_in_work == 0 && host.n_watching == 0);
            let oldest = idle.min_by_key(|(_, host)| host.wanted.max(host.heard));
            if let Some(oldest) = oldest.map(|(node, _)| *node) {
                self.hosts.remove(&oldest);
            }
        }
        self.hosts.entry(node).or_default()
    }

    fn chance(&mut self) -> u64 {
        self.chance = mix(self.chance);
        self.chance
    }

    fn choose(&mut self, offers: &[&HostOffer], ask: &Ask<'_>, now: Instant) -> Vec<usize> {
        let holders = ask
            .prefix
            .map(|prefix| self.affinity.holders(prefix, now))
            .unwrap_or_default();
        let home = ask.prefix.map(Prefix::home);
        let mut looked_at: Vec<usize> = Vec::new();
        let mut facts = Vec::new();
        for round in 0..N_ROUNDS {
            let added = self.sample(offers, ask, &holders, &looked_at, round == 0);
            if added.is_empty() {
                break;
            }
            let hosts = added.iter().map(|at| offers[*at]);
            facts.extend(self.facts(hosts, ask, &holders, now));
            looked_at.extend(added);
            if facts
                .iter()
                .any(|facts| facts.verdict != Verdict::Avoid && facts.has_free_slot)
            {
                break;
            }
        }
        let mut chance = self.chance;
        let order = pick::order(&facts, ask.prefer, home, || {
            chance = mix(chance);
            chance
        });
        self.chance = chance;
        order.into_iter().map(|at| looked_at[at]).collect()
    }

    /// Which of many hosts to look at: those that may be the one, and some by chance, more of them from the front, where the
    /// model is loaded.
    fn sample(
        &mut self,
        offers: &[&HostOffer],
        ask: &Ask<'_>,
        holders: &[(NodeId, u32)],
        known: &[usize],
        is_first: bool,
    ) -> Vec<usize> {
        if offers.len() <= N_LOOKED_AT {
            return if is_first {
                (0..offers.len()).collect()
            } else {
                Vec::new()
            };
        }
        let mut picked = BTreeSet::new();
        if is_first {
            let is_special = |offer: &HostOffer| {
                offer.is_self
                    || is_preferred(offer, ask.prefer)
                    || holders.iter().any(|(node, _)| *node == offer.node)
            };
            let special = offers.iter().enumerate();
            picked.extend(special.filter(|(_, o)| is_special(o)).map(|(at, _)| at));
            if let Some(home) = ask.prefix.map(Prefix::home) {
                let score = |at: &usize| pick::rendezvous(home, &offers[*at].node);
                picked.extend((0..offers.len()).max_by_key(score));
            }
        }
        let n_loaded = offers.partition_point(|offer| offer.is_online && offer.offer.is_loaded);
        for n in 0..N_LOOKED_AT * 2 {
            if picked.len() >= N_LOOKED_AT {
                break;
            }
            let among = if n % 4 != 0 && n_loaded > 0 {
                n_loaded
            } else {
                offers.len()
            };
            let drawn = self.chance() % u64::try_from(among).unwrap_or(u64::MAX);
            picked.insert(usize::try_from(drawn).unwrap_or_default());
        }
        picked.retain(|at| !known.contains(at));
        picked.into_iter().collect()
    }

    fn facts<'a>(
        &self,
        offers: impl Iterator<Item = &'a HostOffer>,
        ask: &Ask<'_>,
        holders: &[(NodeId, u32)],
        now: Instant,
    ) -> Vec<Facts> {
        let nothing = Host::default();
        let looked_at: Vec<(&HostOffer, &Host)> = offers
            .map(|offer| (offer, self.hosts.get(&offer.node).unwrap_or(&nothing)))
            .collect();
        // How long answers are is the requests' doing, not the hosts'.
        let mut n_tokens = Ewma::default();
        for (offer, host) in &looked_at {
            let model = host.models.get(&offer.offer.model);
            if let Some(n) = model.and_then(|model| model.n_tokens.value()) {
                n_tokens.add(n);
            }
        }
        let mut least = f64::MAX;
        let mut known: Vec<(Facts, Option<f64>)> = Vec::with_capacity(looked_at.len());
        for (offer, host) in looked_at {
            let model = host.models.get(&offer.offer.model);
            let mut room = host.room(offer.n_slots, now);
            if offer.is_self {
                room.n_busy = ask.own.n_active.saturating_add(ask.own.n_waiting);
            }
            let rtt = host.rtt.value();
            let (measured, delay) =
                figures::cost(model, offer.offer.speed, rtt, room, n_tokens.value());
            least = measured.map_or(least, |measured| least.min(measured));
            let holder = holders.iter().find(|(node, _)| *node == offer.node);
            let is_down = !offer.is_online || host.is_down(now);
            let facts = Facts {
                node: offer.node,
                verdict: if is_down {
                    Verdict::Avoid
                } else {
                    host.verdict(&offer.offer.model, now)
                },
                is_preferred: is_preferred(offer, ask.prefer),
                is_loaded: offer.offer.is_loaded,
                has_free_slot: room.has_free_slot(),
                is_self: offer.is_self,
                n_known: holder.map_or(0, |(_, n)| *n),
                // A slot holds one prompt.
                would_evict: ask.prefix.is_some()
                    && holder.is_none()
                    && u32::try_from(host.n_homes(now)).is_ok_and(|n| n >= room.n_slots),
                cost: delay,
                rtt: if offer.is_self { Some(0.0) } else { rtt },
            };
            known.push((facts, measured));
        }
        // One that was never measured is thought to be as good as the best, so that it is tried.
        let guess = if least < f64::MAX { least } else { 0.0 };
        known
            .into_iter()
            .map(|(facts, measured)| Facts {
                cost: facts.cost + measured.unwrap_or(guess),
                ..facts
            })
            .collect()
    }
}

fn is_preferred(offer: &HostOffer, prefer: Option<&Prefer>) -> bool {
    matches!(prefer, Some(Prefer::Host(name)) if *name == offer.name)
}

#[cfg(test)]
mod tests;
