//! Tests of a lane: turns are fair, bounds hold, and who sends too much loses.

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds {
    n_bytes: 10_000,
    n_datagrams: 100,
};

fn waiting(mark: u8, len: usize) -> Waiting {
    Waiting {
        frame: Bytes::from(vec![mark; len]),
        n_datagrams: 1,
    }
}

fn drain(lane: &mut Lane) -> Vec<u8> {
    std::iter::from_fn(|| lane.pop())
        .map(|frame| frame[0])
        .collect()
}

#[test]
fn one_source_keeps_its_order() {
    let mut lane = Lane::new(BOUNDS, Loses::Oldest);
    for mark in 0..5 {
        assert_eq!(lane.push(1, waiting(mark, 100)), 0);
    }
    assert_eq!(drain(&mut lane), [0, 1, 2, 3, 4]);
    assert!(lane.is_empty());
    assert_eq!(lane.n_bytes(), 0);
}

#[test]
fn sources_take_turns_by_bytes() {
    let bounds = Bounds {
        n_bytes: 100 * QUANTUM,
        n_datagrams: 10_000,
    };
    let mut lane = Lane::new(bounds, Loses::Oldest);
    for _ in 0..20 {
        lane.push(1, waiting(1, QUANTUM));
    }
    for _ in 0..200 {
        lane.push(2, waiting(2, QUANTUM / 10));
    }
    let first: Vec<u8> = std::iter::from_fn(|| lane.pop())
        .take(110)
        .map(|frame| frame[0])
        .collect();
    let n_of_1 = first.iter().filter(|mark| **mark == 1).count();
    // Ten long frames for each hundred short ones.
    assert!((9..=11).contains(&n_of_1), "{n_of_1}");
}

#[test]
fn a_full_lane_loses_the_oldest_or_the_newest() {
    for (loses, left) in [
        (Loses::Oldest, (4..14).collect::<Vec<u8>>()),
        (Loses::Newest, (0..10).collect()),
    ] {
        let mut lane = Lane::new(BOUNDS, loses);
        let lost: usize = (0..14).map(|mark| lane.push(1, waiting(mark, 1000))).sum();
        assert_eq!(lost, 4);
        assert_eq!(drain(&mut lane), left);
    }
}

#[test]
fn who_sends_too_much_loses_and_nobody_else() {
    for loses in [Loses::Oldest, Loses::Newest] {
        let mut lane = Lane::new(BOUNDS, loses);
        for _ in 0..50 {
            lane.push(1, waiting(1, 1000));
        }
        assert!(lane.push(2, waiting(2, 1000)) <= 1);
        for _ in 0..50 {
            lane.push(1, waiting(1, 1000));
        }
        assert_eq!(
            drain(&mut lane).iter().filter(|mark| **mark == 2).count(),
            1,
            "{loses:?}"
        );
    }
}

#[test]
fn what_is_longer_than_the_lane_is_lost_and_loses_what_was_there_at_most() {
    let mut lane = Lane::new(BOUNDS, Loses::Newest);
    lane.push(1, waiting(1, 1000));
    assert_eq!(lane.push(2, waiting(2, 20_000)), 1);
    assert_eq!(drain(&mut lane), [1]);
}

proptest! {
    #[test]
    fn bounds_hold_and_everything_is_accounted_for(
        steps in proptest::collection::vec((0_u64..6, 1_usize..3000, 1_usize..20, any::<bool>()), 1..300),
        is_oldest in any::<bool>(),
    ) {
        let mut lane = Lane::new(BOUNDS, if is_oldest { Loses::Oldest } else { Loses::Newest });
        let (mut n_in, mut n_lost, mut n_out) = (0, 0, 0);
        for (source, len, n_datagrams, takes) in steps {
            let mut frame = vec![0; len.max(8)];
            frame[..8].copy_from_slice(&(n_datagrams as u64).to_be_bytes());
            let frame = Waiting { frame: frame.into(), n_datagrams };
            n_in += n_datagrams;
            n_lost += lane.push(source, frame);
            prop_assert!(lane.n_bytes <= BOUNDS.n_bytes && lane.n_datagrams <= BOUNDS.n_datagrams);
            prop_assert_eq!(lane.rows.len(), lane.turns.len());
            if takes && let Some(frame) = lane.pop() {
                n_out += u64::from_be_bytes(frame[..8].try_into().unwrap()) as usize;
            }
        }
        while let Some(frame) = lane.pop() {
            n_out += u64::from_be_bytes(frame[..8].try_into().unwrap()) as usize;
        }
        prop_assert_eq!(n_in, n_lost + n_out);
        prop_assert_eq!((lane.n_bytes, lane.n_datagrams, lane.rows.len()), (0, 0, 0));
    }
}
