//! In which order hosts are asked.
//!
//! Pure: what is known of the hosts and a source of chance in, an order out.

use std::cmp::Reverse;
use std::str::FromStr;

use mesh_proto::id::{NodeId, NodeName};

use super::breaker::Verdict;
use super::prefix::mix;

/// Hosts whose cost is less apart than this are alike, as a share of the cost.
const ALIKE: f64 = 0.1;

/// What a client asked for with `X-Proxima-Prefer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prefer {
    /// This host first, others where it cannot.
    Host(NodeName),
    /// The one that is expected to be done first.
    Fastest,
    /// The one with the shortest way.
    Nearest,
}

/// The text is no preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("X-Proxima-Prefer takes `fastest`, `nearest` or the name of a host")]
pub(crate) struct PreferError;

impl FromStr for Prefer {
    type Err = PreferError;

    fn from_str(text: &str) -> Result<Self, PreferError> {
        match text.trim() {
            "fastest" => Ok(Self::Fastest),
            "nearest" => Ok(Self::Nearest),
            name => name.parse().map(Self::Host).map_err(|_| PreferError),
        }
    }
}

/// What counts when a host is picked for one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Facts {
    pub(crate) node: NodeId,
    pub(crate) verdict: Verdict,
    pub(crate) is_preferred: bool,
    pub(crate) is_loaded: bool,
    pub(crate) has_free_slot: bool,
    pub(crate) is_self: bool,
    /// Bytes of the prompt that it worked on before.
    pub(crate) n_known: u32,
    /// Whether it would have to let go of another conversation's prompt.
    pub(crate) would_evict: bool,
    /// Seconds until it would be done, as far as is known; the wait for its queue and the way there are in it.
    pub(crate) cost: f64,
    /// Seconds there and back; `None` when it was never measured.
    pub(crate) rtt: Option<f64>,
}

/// Smaller is better.
type Class = (bool, bool, bool, bool, bool, Reverse<u32>, bool);

impl Facts {
    fn class(&self, prefer: Option<&Prefer>) -> Class {
        let by_measure = matches!(prefer, Some(Prefer::Fastest | Prefer::Nearest));
        (
            self.verdict == Verdict::Avoid,
            !self.is_preferred,
            !self.is_loaded,
            !self.has_free_slot,
            !self.is_self && !by_measure,
            Reverse(if by_measure { 0 } else { self.n_known }),
            self.would_evict && !by_measure,
        )
    }

    /// What decides among equals.
    fn measure(&self, prefer: Option<&Prefer>) -> f64 {
        match prefer {
            Some(Prefer::Nearest) => self.rtt.unwrap_or(f64::MAX),
            Some(Prefer::Fastest | Prefer::Host(_)) | None => self.cost,
        }
    }
}

/// The order in which hosts are asked, as indexes: in use, preferred, model loaded, slot free, this node itself, prompt known, room for it;
/// among equals the cheaper one of two that are drawn. One of the two is the same for each guest and each turn of a
/// conversation (`home`), the other is chance, so that no herd follows one figure to one host.
pub(crate) fn order(
    facts: &[Facts],
    prefer: Option<&Prefer>,
    home: Option<u64>,
    mut chance: impl FnMut() -> u64,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..facts.len()).collect();
    let class = |at: usize| facts[at].class(prefer);
    let measure = |at: usize| facts[at].measure(prefer);
    order.sort_by(|a, b| {
        let by_class = class(*a).cmp(&class(*b));
        by_class
            .then_with(|| measure(*a).total_cmp(&measure(*b)))
            .then_with(|| facts[*a].node.cmp(&facts[*b].node))
    });
    let Some(best) = order.first().copied() else {
        return order;
    };
    let n_equal = order
        .iter()
        .take_while(|at| class(**at) == class(best))
        .count();
    let equals = &order[..n_equal];
    let is_trial = |at: &usize| facts[*at].verdict == Verdict::Try;
    let first = if let Some(trial) = equals.iter().position(is_trial) {
        // Nothing else shows that it is well again; should it not be, the next one answers.
        trial
    } else if n_equal < 2 || matches!(prefer, Some(Prefer::Fastest | Prefer::Nearest)) {
        0
    } else {
        draw(facts, equals, home, &mut chance)
    };
    let first = order.remove(first);
    order.insert(0, first);
    order
}

/// The better of two equals that are drawn, as an index into `equals`.
fn draw(
    facts: &[Facts],
    equals: &[usize],
    home: Option<u64>,
    chance: &mut impl FnMut() -> u64,
) -> usize {
    let seed = home.unwrap_or_else(&mut *chance);
    let score = |at: &usize| rendezvous(seed, &facts[*at].node);
    let one = (0..equals.len())
        .max_by_key(|at| equals.get(*at).map(score))
        .unwrap_or_default();
    let n_others = u64::try_from(equals.len() - 1).unwrap_or(1).max(1);
    let other = usize::try_from(chance() % n_others).unwrap_or_default();
    let other = if other >= one { other + 1 } else { other };
    let cost = |at: usize| facts[equals[at]].cost;
    if cost(one) <= cost(other) * (1.0 + ALIKE) {
        one
    } else {
        other
    }
}

/// How much a host is the home of something: the highest of all hosts is, and where one goes only what it was the home of moves.
pub(crate) fn rendezvous(home: u64, node: &NodeId) -> u64 {
    let mut halves = [[0; 8]; 2];
    let bytes = node.as_bytes();
    halves[0].copy_from_slice(&bytes[..8]);
    halves[1][..2].copy_from_slice(&bytes[8..]);
    halves
        .iter()
        .fold(home, |state, half| mix(state ^ u64::from_le_bytes(*half)))
}

#[cfg(test)]
mod tests;
