//! The NAT matrix: every pair of surroundings, both directions.

use std::time::Duration;

use crate::lab::{Lab, ipv4};
use crate::nat::Behaviour;
use crate::underlay::INTERNET;

/// One way to the middle.
const DELAY: Duration = Duration::from_millis(10);

/// What a node sits behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Open,
    FullCone,
    PortRestricted,
    Symmetric,
    /// A home router of the usual kind behind a carrier's NAT of the usual kind.
    Carrier,
}

pub(crate) const SITES: [Site; 5] = [
    Site::Open,
    Site::FullCone,
    Site::PortRestricted,
    Site::Symmetric,
    Site::Carrier,
];

impl Site {
    /// Adds a node there; `n` keeps addresses apart.
    pub(crate) fn add(self, lab: &mut Lab, n: u8, delay: Duration) -> usize {
        let outer = ipv4(203, 0, n, 1);
        let home = |lab: &mut Lab, behaviour| {
            let realm = lab.underlay.add_realm(INTERNET, outer, behaviour);
            lab.add_node(realm, &[ipv4(192, 168, n, 2)], delay)
        };
        match self {
            Self::Open => lab.add_node(INTERNET, &[outer], delay),
            Self::FullCone => home(lab, Behaviour::FULL_CONE),
            Self::PortRestricted => home(lab, Behaviour::PORT_RESTRICTED),
            Self::Symmetric => home(lab, Behaviour::SYMMETRIC),
            Self::Carrier => {
                let carrier = lab
                    .underlay
                    .add_realm(INTERNET, outer, Behaviour::PORT_RESTRICTED);
                let inside = ipv4(100, 64, n, 9);
                let realm = lab
                    .underlay
                    .add_realm(carrier, inside, Behaviour::PORT_RESTRICTED);
                lab.add_node(realm, &[ipv4(192, 168, n, 2)], delay)
            }
        }
    }

    /// Whether only guessing finds a way.
    pub(crate) fn is_hard_with(self, other: Self) -> bool {
        let is_strict =
            |site| matches!(site, Self::PortRestricted | Self::Symmetric | Self::Carrier);
        (self == Self::Symmetric && is_strict(other))
            || (other == Self::Symmetric && is_strict(self))
    }
}

/// Two nodes and a relay; a packet goes once all have settled. Returns when it arrived and when both were direct.
fn meet(sites: (Site, Site), seed: u64) -> (Option<Duration>, Option<Duration>) {
    let mut lab = Lab::new(seed);
    lab.add_relay(DELAY);
    let a = sites.0.add(&mut lab, 1, DELAY);
    let b = sites.1.add(&mut lab, 2, DELAY);
    lab.begin();
    lab.run(Duration::from_secs(2));
    watch(&mut lab, a, b, Duration::from_secs(20))
}

/// Sends from one to the other each tenth of a second.
pub(crate) fn watch(
    lab: &mut Lab,
    a: usize,
    b: usize,
    span: Duration,
) -> (Option<Duration>, Option<Duration>) {
    let began = lab.now;
    let (mut direct, mut number) = (None, 1000);
    while lab.now < began + span && direct.is_none() {
        lab.send(a, b, number);
        number += 1;
        lab.run(Duration::from_millis(100));
        if lab.is_direct(a, b) {
            direct = Some(lab.now - began);
        }
    }
    let arrived = lab.received_at(b, 1000).map(|at| at - began);
    (arrived, direct)
}

#[test]
fn every_pair_talks_within_a_second_and_directly_within_three() {
    for a in SITES {
        for b in SITES {
            let (arrived, direct) = meet((a, b), 7);
            assert!(
                arrived.is_some_and(|at| at <= Duration::from_secs(1)),
                "{a:?} to {b:?}: first packet after {arrived:?}"
            );
            if !a.is_hard_with(b) {
                assert!(
                    direct.is_some_and(|at| at <= Duration::from_secs(3)),
                    "{a:?} to {b:?}: direct after {direct:?}"
                );
            }
        }
    }
}

/// Of pairs with a symmetric NAT at one end or both: how many have a direct path within 15 s.
fn guess(others: &[Site], seeds: std::ops::Range<u64>) -> (u32, u32) {
    let (mut n_found, mut n_tried) = (0, 0);
    for (seed, other) in seeds.flat_map(|seed| others.iter().map(move |other| (seed, *other))) {
        for sites in [(Site::Symmetric, other), (other, Site::Symmetric)] {
            let (arrived, direct) = meet(sites, seed);
            assert!(arrived.is_some_and(|at| at <= Duration::from_secs(1)));
            n_tried += 1;
            n_found += u32::from(direct.is_some_and(|at| at <= Duration::from_secs(15)));
        }
    }
    println!("{others:?}: {n_found} of {n_tried}");
    (n_found, n_tried)
}

#[test]
fn guessing_finds_most_ways_through_a_symmetric_nat() {
    let (n_found, n_tried) = guess(&[Site::PortRestricted, Site::Carrier], 0..100);
    assert!(n_found * 10 >= n_tried * 9, "{n_found} of {n_tried}");
}

#[test]
fn nodes_of_one_lan_use_it() {
    let mut lab = Lab::new(1);
    lab.add_relay(DELAY);
    let realm = lab
        .underlay
        .add_realm(INTERNET, ipv4(203, 0, 1, 1), Behaviour::SYMMETRIC);
    let a = lab.add_node(realm, &[ipv4(192, 168, 1, 2)], DELAY / 20);
    let b = lab.add_node(realm, &[ipv4(192, 168, 1, 3)], DELAY / 20);
    lab.begin();
    lab.run(Duration::from_secs(2));
    let (arrived, direct) = watch(&mut lab, a, b, Duration::from_secs(5));
    assert!(arrived.unwrap() < Duration::from_millis(100), "{arrived:?}");
    assert!(direct.unwrap() < Duration::from_millis(500), "{direct:?}");
    lab.run(Duration::from_secs(2));
    let lan = lab.path(a, b).unwrap().endpoint().unwrap();
    assert_eq!(lan.ip(), ipv4(192, 168, 1, 3));
}

#[test]
fn nodes_behind_one_nat_meet_through_it_when_it_hairpins() {
    let mut lab = Lab::new(1);
    lab.add_relay(DELAY);
    let carrier = lab
        .underlay
        .add_realm(INTERNET, ipv4(203, 0, 1, 1), Behaviour::PORT_RESTRICTED);
    let mut nodes = [0; 2];
    for (n, node) in (1..).zip(&mut nodes) {
        let home = lab
            .underlay
            .add_realm(carrier, ipv4(100, 64, n, 1), Behaviour::PORT_RESTRICTED);
        *node = lab.add_node(home, &[ipv4(192, 168, n, 2)], DELAY);
    }
    lab.begin();
    lab.run(Duration::from_secs(2));
    let (arrived, direct) = watch(&mut lab, nodes[0], nodes[1], Duration::from_secs(5));
    assert!(arrived.unwrap() <= Duration::from_secs(1), "{arrived:?}");
    assert!(direct.unwrap() <= Duration::from_secs(3), "{direct:?}");
}
