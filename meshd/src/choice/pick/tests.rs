//! The order as a table, and what chance must and must not do.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

/// A host that is in use, has the model loaded and a slot free.
fn host(n: u8) -> Facts {
    Facts {
        node: node(n),
        verdict: Verdict::Use,
        is_preferred: false,
        is_loaded: true,
        has_free_slot: true,
        is_self: false,
        n_known: 0,
        would_evict: false,
        cost: 1.0,
        rtt: Some(0.01),
    }
}

fn first(facts: &[Facts], prefer: Option<&Prefer>) -> u8 {
    let order = order(facts, prefer, Some(7), || 3);
    facts[order[0]].node.as_bytes()[0]
}

#[test]
fn each_reason_outranks_all_that_come_after_it() {
    type Spoil = fn(&mut Facts);
    let reasons: [(&str, Spoil); 8] = [
        ("in use", |f| f.verdict = Verdict::Avoid),
        ("preferred", |f| f.is_preferred = false),
        ("loaded", |f| f.is_loaded = false),
        ("slot free", |f| f.has_free_slot = false),
        ("itself", |f| f.is_self = false),
        ("prompt known", |f| f.n_known = 0),
        ("room for it", |f| f.would_evict = true),
        ("cost", |f| f.cost = 9.0),
    ];
    let best = |n| Facts {
        is_preferred: true,
        is_self: true,
        n_known: 500,
        cost: 0.1,
        ..host(n)
    };
    for (at, (reason, spoil)) in reasons.iter().enumerate() {
        // One lacks this reason and has all weaker ones; the other has it, and lacks all of those.
        let (mut lacking, mut having) = (best(1), best(2));
        spoil(&mut lacking);
        for (_, spoil) in &reasons[at + 1..] {
            spoil(&mut having);
        }
        for facts in [[lacking, having], [having, lacking]] {
            assert_eq!(first(&facts, None), 2, "{reason}");
        }
    }
}

#[test]
fn a_client_may_prefer_the_fastest_or_the_nearest() {
    let mut known = host(1);
    known.n_known = 900;
    let mut fast = host(2);
    fast.cost = 0.2;
    let mut near = host(3);
    near.rtt = Some(0.001);
    let mut unmeasured = host(4);
    unmeasured.rtt = None;
    let facts = [known, fast, near, unmeasured];
    assert_eq!(first(&facts, None), 1);
    assert_eq!(first(&facts, Some(&Prefer::Fastest)), 2);
    assert_eq!(first(&facts, Some(&Prefer::Nearest)), 3);
    for (text, want) in [
        ("fastest", Ok(Prefer::Fastest)),
        (" nearest ", Ok(Prefer::Nearest)),
        ("gpu1", Ok(Prefer::Host("gpu1".parse().unwrap()))),
        ("", Err(PreferError)),
        ("gpu 1", Err(PreferError)),
    ] {
        assert_eq!(text.parse(), want, "{text:?}");
    }
}

#[test]
fn a_trial_is_made_where_it_costs_least_and_only_among_the_best() {
    let mut tried = host(9);
    tried.verdict = Verdict::Try;
    tried.cost = 50.0;
    assert_eq!(first(&[host(1), tried, host(2)], None), 9);
    tried.is_loaded = false;
    assert_ne!(first(&[host(1), tried, host(2)], None), 9);
}

#[test]
fn a_conversation_keeps_its_home_while_hosts_come_and_go() {
    let all: Vec<Facts> = (1..=20).map(host).collect();
    // The home is one of the two that are drawn, and wins where they are alike.
    let home_of = |facts: &[Facts], home: u64| first_of(facts, home);
    let mut n_moved = 0;
    for home in (0..400_u64).map(mix) {
        let before = home_of(&all, home);
        let without: Vec<Facts> = all.iter().copied().filter(|f| f.node != node(5)).collect();
        let after = home_of(&without, home);
        if before == 5 {
            n_moved += 1;
        } else {
            assert_eq!(before, after, "moved though its home is still there");
        }
    }
    assert!((5..60).contains(&n_moved), "{n_moved} of 400 lived there");
}

fn first_of(facts: &[Facts], home: u64) -> u8 {
    let order = order(facts, None, Some(home), || 1);
    facts[order[0]].node.as_bytes()[0]
}

#[test]
fn a_herd_spreads_and_avoids_what_is_slow() {
    let mut facts: Vec<Facts> = (1..=10).map(host).collect();
    facts[0].cost = 40.0;
    let mut state = 1;
    let mut chance = || {
        state = mix(state);
        state
    };
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for _ in 0..2_000 {
        *counts
            .entry(order(&facts, None, None, &mut chance)[0])
            .or_default() += 1;
    }
    assert_eq!(counts.get(&0), None, "the slow one won a draw");
    for (at, n) in &counts {
        assert!((120..350).contains(n), "host {at} got {n} of 2000");
    }
}

#[test]
fn every_host_is_in_the_order_once_and_none_is_lost() {
    let mut facts: Vec<Facts> = (1..=7).map(host).collect();
    facts[3].verdict = Verdict::Avoid;
    let order = order(&facts, None, Some(11), || 5);
    assert_eq!(order.last(), Some(&3));
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 7);
    assert!(super::order(&[], None, None, || 0).is_empty());
}
