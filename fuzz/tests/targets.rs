//! Each target for a moment: the cases that failed once, some seeds, and bytes that shrink.
#![expect(clippy::unwrap_used, reason = "a test stops where it finds nonsense")]

use fuzz::{Entry, TARGETS, Tape, regression, runner};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const N_SEEDS: u64 = 4000;

#[test]
fn what_failed_once_holds() {
    let text = std::fs::read_to_string(regression::path()).unwrap();
    for found in regression::parse(&text).unwrap() {
        (found.entry.make)().case(&mut found.case.tape());
    }
}

#[test]
fn a_regression_is_read_as_it_was_written() {
    let cases = regression::parse("# none\n\nmerge 17 # why\nsplit x:00ff\n").unwrap();
    let found: Vec<_> = cases
        .iter()
        .map(|case| (case.entry.name, &case.case))
        .collect();
    let (seed, bytes) = (
        regression::Case::Seed(17),
        regression::Case::Bytes(vec![0, 255]),
    );
    assert_eq!(found, [("merge", &seed), ("split", &bytes)]);
    for wrong in ["merge", "nothing 1", "merge x:0", "merge -1"] {
        assert!(regression::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_runner_names_the_seed_that_fails() {
    struct Picky;
    impl fuzz::Target for Picky {
        fn case(&mut self, tape: &mut Tape<'_>) {
            let mut expected = Tape::seeded(1234);
            assert_ne!(tape.u64(), expected.u64(), "this panic is the test's");
        }
    }
    let entry = Entry {
        name: "picky",
        about: "",
        make: || Box::new(Picky),
    };
    let outcome = runner::run(&entry, 1000, 500, 2);
    assert_eq!(outcome.failed, [1234]);
    assert!(outcome.n_cases < 500);
    let outcome = runner::run(&entry, 2000, 500, 2);
    assert_eq!((outcome.failed, outcome.n_cases), (vec![], 500));
}

fn holds(name: &str) {
    let entry = fuzz::find(name).unwrap();
    let outcome = runner::run(&entry, 1, N_SEEDS, 1);
    assert_eq!(outcome.failed, [] as [u64; 0]);
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let bytes = proptest::collection::vec(any::<u8>(), 0..400);
    TestRunner::new(config)
        .run(&bytes, |bytes| {
            (entry.make)().case(&mut Tape::of(&bytes));
            Ok(())
        })
        .unwrap();
}

#[test]
fn merge() {
    holds("merge");
}

#[test]
fn split() {
    holds("split");
}

#[test]
fn offload() {
    holds("offload");
}

#[test]
fn admit() {
    holds("admit");
}

#[test]
fn burst() {
    holds("burst");
}

#[test]
fn outbound() {
    holds("outbound");
}

#[test]
fn fragment() {
    holds("fragment");
}

#[test]
fn datagram() {
    holds("datagram");
}

#[test]
fn rubbish() {
    holds("rubbish");
}

#[test]
fn engine() {
    holds("engine");
}

#[test]
fn all_targets_are_tried_here() {
    let own = include_str!("targets.rs");
    for entry in TARGETS {
        assert!(own.contains(&format!("holds(\"{}\")", entry.name)));
    }
}
