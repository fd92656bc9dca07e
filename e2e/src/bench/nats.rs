//! Two hosts, each behind a router of some kind: when the first packet is answered, and when the path is direct.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bar, Outcome, ms};
use crate::mesh::{Node, join_all};
use crate::net::Lab;
use crate::net::nat::{Lan, Nat, needs_luck};
use crate::probe::first_answer;

/// A kind of router, by its name in the table.
type Kind = (&'static str, Option<Nat>);

const KINDS: [Kind; 6] = [
    ("none", None),
    ("independent", Some(Nat::FullCone)),
    ("address", Some(Nat::Restricted)),
    ("port", Some(Nat::PortRestricted)),
    ("symmetric", Some(Nat::Symmetric)),
    ("carrier", Some(Nat::Carrier)),
];
const NEIGHBOURS: [(&str, Lan); 2] = [("same LAN", Lan::Shared), ("hairpin", Lan::Apart)];
/// For the first answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long a direct path is waited for.
const DIRECT: Duration = Duration::from_secs(3);
/// And where only guessing a port makes one.
const GUESSED: Duration = Duration::from_secs(15);

/// What one pair gave.
struct Pair {
    names: (&'static str, &'static str),
    is_hard: bool,
    first: Duration,
    direct: Option<Duration>,
}

/// Measures every pair of kinds, in both directions, each between nodes that never talked before.
///
/// # Errors
/// When a node does not come up, or a pair does not talk at all.
pub fn run() -> Result<Outcome> {
    let names = |side: char| KINDS.map(|(kind, _)| format!("{kind}-{side}"));
    let (ones, others) = (names('a'), names('b'));
    let mut hosts = vec!["control"];
    hosts.extend(ones.iter().chain(&others).map(String::as_str));
    let lab = Lab::new(&hosts)?;
    for (name, (_, nat)) in ones.iter().zip(KINDS).chain(others.iter().zip(KINDS)) {
        if let Some(nat) = nat {
            lab.put_behind(lab.host(name)?, nat)?;
        }
    }
    let (_coordinator, nodes) = join_all(&lab, hosts.get(1..).unwrap_or_default())?;
    let (ones, others) = nodes.split_at(KINDS.len());
    let mut pairs = Vec::new();
    for (from, one) in ones.iter().zip(KINDS) {
        for (to, other) in others.iter().zip(KINDS) {
            let is_hard = needs_luck(one.1, other.1);
            pairs.push(pair((one.0, other.0), (from, to), is_hard)?);
        }
    }
    drop(nodes);
    for (name, lan) in NEIGHBOURS {
        let lab = Lab::new(&["control", "beta", "gamma"])?;
        lab.put_both_behind((lab.host("beta")?, lab.host("gamma")?), lan)?;
        let (_coordinator, nodes) = join_all(&lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        pairs.push(pair((name, name), (beta, gamma), false)?);
    }
    Ok(outcome(&pairs))
}

fn pair(
    names: (&'static str, &'static str),
    (from, to): (&Node<'_>, &Node<'_>),
    is_hard: bool,
) -> Result<Pair> {
    let way = || format!("{} to {}", names.0, names.1);
    let (own, target) = (from.ipv4()?, to.ipv4()?);
    let start = Instant::now();
    let first = first_answer(from.host, target, PATIENCE).with_context(way)?;
    let limit = if is_hard { GUESSED } else { DIRECT };
    let mut direct = None;
    while direct.is_none() && start.elapsed() <= limit {
        first_answer(from.host, target, PATIENCE).with_context(way)?;
        if from.is_direct(target)? && to.is_direct(own)? {
            direct = Some(start.elapsed());
        }
    }
    Ok(Pair {
        names,
        is_hard,
        first,
        direct,
    })
}

fn outcome(pairs: &[Pair]) -> Outcome {
    let mut text =
        "| from, to | first answer ms | direct after ms |\n| --- | --- | --- |\n".to_owned();
    for pair in pairs {
        let direct = pair.direct.map(|took| format!("{:.0}", ms(took)));
        let _ = writeln!(
            text,
            "| {}, {} | {:.0} | {}{} |",
            pair.names.0,
            pair.names.1,
            ms(pair.first),
            direct.as_deref().unwrap_or("-"),
            if pair.is_hard { " (guessed)" } else { "" }
        );
    }
    let first = pairs.iter().map(|pair| ms(pair.first));
    let easy = pairs.iter().filter(|pair| !pair.is_hard);
    let slowest = easy.map(|pair| pair.direct.map_or(f64::INFINITY, ms));
    let hard: Vec<&Pair> = pairs.iter().filter(|pair| pair.is_hard).collect();
    let n_guessed = hard.iter().filter(|pair| pair.direct.is_some()).count();
    let share = ratio(n_guessed, hard.len()) * 100.0;
    let bars = vec![
        Bar::at_most(
            1_000.0,
            "ms",
            "every pair, both directions: first answer, the slowest",
            vec![Some(first.fold(0.0, f64::max))],
        ),
        Bar::at_most(
            3_000.0,
            "ms",
            "pairs that need no luck: direct, the slowest",
            vec![Some(slowest.fold(0.0, f64::max)).filter(|ms| ms.is_finite())],
        ),
        Bar::at_least(
            50.0,
            "% of pairs",
            "symmetric with a strict one: direct within 15 s",
            vec![Some(share)],
        ),
    ];
    Outcome { text, bars }
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    number(part) / number(whole).max(1.0)
}
