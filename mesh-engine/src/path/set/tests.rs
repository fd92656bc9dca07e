//! The set on its own: when it probes, when it gives a path up, what it remembers.

use std::net::SocketAddr;

use super::*;
use crate::config::MTU_BASE;

fn at(n: u16) -> Destination {
    Destination::Udp(SocketAddr::from(([203, 0, 113, 1], n)))
}

const fn usage(now_ms: u64, last_data_tx_ms: u64) -> Use {
    Use {
        now_ms,
        last_data_tx_ms,
        last_data_rx_ms: 0,
        is_busy: true,
    }
}

const fn id(n: u8) -> PingId {
    [n; 12]
}

/// A set whose path 1 is selected and proven at 1000.
fn proven() -> (PathSet, Watched) {
    let mut set = PathSet::new(1000);
    set.tell(&[(at(1), false)]);
    set.on_ping_sent(id(1), at(1), 1000, None);
    assert!(set.on_pong(&id(1), at(1), 1020));
    assert_eq!(set.choose(1020, None), Some(at(1)));
    let watched = Watched {
        endpoint: at(1),
        heard_ms: 1020,
    };
    (set, watched)
}

#[test]
fn a_pong_counts_once_and_from_where_the_ping_went() {
    let mut set = PathSet::new(1000);
    set.tell(&[(at(1), false), (at(2), false)]);
    set.on_ping_sent(id(1), at(1), 1000, None);
    assert!(!set.on_pong(&id(1), at(2), 1010), "from elsewhere");
    assert!(!set.on_pong(&id(9), at(1), 1010), "never asked");
    assert!(set.on_pong(&id(1), at(1), 1010));
    assert!(!set.on_pong(&id(1), at(1), 1010), "again");
    assert_eq!(set.measures(&at(1)).0, Some(Duration::from_millis(10)));
}

#[test]
fn a_path_that_is_sent_data_and_silent_is_probed_and_then_dead() {
    let (mut set, watched) = proven();
    set.round_at_ms = u64::MAX;
    let (mut n_probes, mut dead_ms) = (0, None);
    for now_ms in (2000..4000).step_by(250) {
        let look = set.look(usage(now_ms, now_ms - 1), Some(watched));
        n_probes += look.probe.len();
        if look.is_dead {
            dead_ms = Some(now_ms);
            break;
        }
    }
    assert_eq!(dead_ms, Some(3250));
    assert!(n_probes >= 4, "{n_probes}");
    set.on_death(at(1), 3250);
    assert_eq!(set.choose(3250, None), None);
}

#[test]
fn traffic_both_ways_needs_no_probes_and_silence_few() {
    let (mut set, mut watched) = proven();
    set.round_at_ms = u64::MAX;
    for now_ms in (2000..10_000).step_by(250) {
        watched.heard_ms = now_ms - 10;
        let look = set.look(usage(now_ms, now_ms - 1), Some(watched));
        assert_eq!(look, Look::default(), "{now_ms}");
    }
    let mut n_probes = 0;
    for now_ms in (10_000..40_000).step_by(250) {
        let look = set.look(usage(now_ms, 9000), Some(watched));
        for endpoint in look.probe {
            n_probes += 1;
            set.on_ping_sent(id(2), endpoint, now_ms, None);
            assert!(set.on_pong(&id(2), endpoint, now_ms + 20));
        }
        assert!(!look.is_dead);
    }
    assert!((1..=3).contains(&n_probes), "{n_probes}");
}

#[test]
fn a_path_that_dies_again_and_again_must_prove_itself_more_than_once() {
    let (mut set, _) = proven();
    let mut now_ms = 5000;
    for needed in 1..=4 {
        set.on_death(at(1), now_ms);
        for n_answers in 1..=needed {
            now_ms += 500;
            assert_eq!(set.choose(now_ms, None), None, "{needed} {n_answers}");
            set.on_ping_sent(id(3), at(1), now_ms, None);
            set.on_pong(&id(3), at(1), now_ms + 20);
        }
        assert_eq!(set.choose(now_ms, None), Some(at(1)), "{needed}");
    }
}

#[test]
fn rounds_grow_rare_and_an_idle_peer_has_none() {
    let mut set = PathSet::new(0);
    set.tell(&[(at(1), false)]);
    let mut rounds = vec![];
    for now_ms in (0..100_000).step_by(250) {
        if set.look(usage(now_ms, 0), None).call {
            rounds.push(now_ms);
        }
    }
    assert_eq!(
        rounds,
        [0, 250, 500, 1000, 2000, 4000, 9000, 19_000, 49_000, 79_000]
    );
    let idle = Use {
        is_busy: false,
        ..usage(200_000, 0)
    };
    assert_eq!(set.look(idle, None), Look::default());
}

#[test]
fn nothing_grows_without_bound() {
    let mut set = PathSet::new(0);
    for n in 1..2000u16 {
        set.tell(&[(at(n), false)]);
        set.see(at(n.wrapping_mul(7)), false, 5);
        set.on_ping_sent([n.to_le_bytes()[0]; 12], at(n), u64::from(n), None);
        let mut other = id(0);
        other[..2].copy_from_slice(&n.to_le_bytes());
        set.on_ping_sent(other, at(n), u64::from(n), None);
    }
    assert!(set.size() <= N_ENDPOINTS_MAX + N_PROBES_MAX);
}

#[test]
fn a_path_is_lossy_from_a_lost_check_until_many_are_answered() {
    let (mut set, _) = proven();
    let mut fare = Fare {
        now_ms: 1020,
        rtt_ms: 0,
        heard_ms: 0,
        last_data_tx_ms: 0,
        // No search for more: what is asked for is the length in use.
        most: MTU_BASE,
    };
    let mut n = 10;
    let mut check = |set: &mut PathSet, n_lost: u32| {
        fare.now_ms += 1000;
        fare.last_data_tx_ms = fare.now_ms;
        for lost in 0..=n_lost {
            fare.now_ms += 300;
            assert_eq!(set.look_mtu(&at(1), fare), [MTU_BASE], "{lost} lost");
            n += 1;
            set.on_ping_sent(id(n), at(1), fare.now_ms, Some(MTU_BASE));
        }
        assert!(set.on_pong(&id(n), at(1), fare.now_ms + 20));
    };
    check(&mut set, 0);
    assert!(!set.is_lossy(&at(1)));
    check(&mut set, 1);
    assert!(set.is_lossy(&at(1)));
    let n_answered = (1..50).find(|_| {
        check(&mut set, 0);
        !set.is_lossy(&at(1))
    });
    assert_eq!(n_answered, Some(10));
    assert!(!set.is_lossy(&at(2)), "a path that is not known");
}
