//! The schedule of rounds.

use mesh_proto::stun::{binding_success, parse_request};

use super::*;

const STEP: Duration = Duration::from_millis(100);

fn servers() -> [SocketAddr; 2] {
    ["192.0.2.1:3478", "192.0.2.2:3478"].map(|text| text.parse().unwrap())
}

/// Runs for a while and returns when requests went out, in tenths of a second, and to whom.
fn run(stun: &mut Stun, start: Instant, from: u32, to: u32, answering: &[SocketAddr]) -> Vec<u32> {
    let mut seed = Seed::new([1; 32]);
    let mut times = vec![];
    for tenth in from..to {
        let now = start + STEP * tenth;
        for request in stun.handle_timeout(now, &mut seed) {
            times.push(tenth);
            let dst = request.dst.endpoint().unwrap();
            if answering.contains(&dst) {
                let id = parse_request(&request.bytes).unwrap();
                let seen = "198.51.100.1:9".parse().unwrap();
                stun.handle_udp(now, dst, &binding_success(&id, seen));
            }
        }
    }
    times
}

#[test]
fn who_does_not_answer_is_asked_again_a_few_times() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    stun.set_servers(start, &servers());
    let times = run(&mut stun, start, 0, 1199, &servers()[..1]);
    assert_eq!(times, [0, 0, 5, 15, 35]);
    assert_eq!(run(&mut stun, start, 1199, 1300, &servers()), [1200, 1200]);
}

#[test]
fn a_session_over_the_internet_keeps_the_mapping_open() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    stun.set_servers(start, &servers()[..1]);
    assert_eq!(run(&mut stun, start, 0, 100, &servers()), [0]);
    stun.set_active(true);
    assert_eq!(run(&mut stun, start, 100, 700, &servers()), [250, 500]);
    stun.set_active(false);
    assert_eq!(run(&mut stun, start, 700, 3000, &servers()), [750, 1950]);
}

#[test]
fn becoming_active_late_asks_at_once() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    stun.set_servers(start, &servers()[..1]);
    assert_eq!(run(&mut stun, start, 0, 600, &servers()), [0]);
    stun.set_active(true);
    assert_eq!(run(&mut stun, start, 600, 800, &servers()), [600]);
}

#[test]
fn without_servers_there_is_nothing_to_do() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    stun.set_servers(start, &[]);
    assert_eq!(stun.poll_timeout(), None);
    stun.set_servers(start, &servers());
    assert_eq!(stun.poll_timeout(), Some(start));
    stun.set_servers(start, &[]);
    assert_eq!(stun.poll_timeout(), None);
}

#[test]
fn a_doubt_asks_at_once_but_not_again_and_again() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    let at = |tenth| start + STEP * tenth;
    stun.set_servers(start, &servers()[..1]);
    assert_eq!(run(&mut stun, start, 0, 10, &servers()), [0]);
    stun.doubt(at(10));
    assert_eq!(run(&mut stun, start, 10, 50, &servers()), Vec::<u32>::new());
    stun.doubt(at(50));
    assert!(!stun.is_settled(at(50)));
    assert_eq!(run(&mut stun, start, 50, 60, &servers()), [50]);
    assert!(stun.is_settled(at(60)));
    stun.doubt(at(60));
    assert_eq!(
        run(&mut stun, start, 60, 100, &servers()),
        Vec::<u32>::new()
    );
}

#[test]
fn udp_counts_as_blocked_once_a_round_has_no_answer() {
    let (mut stun, start) = (Stun::default(), Instant::now());
    stun.set_servers(start, &servers());
    run(&mut stun, start, 0, 1, &servers());
    assert!(stun.works(false) && !stun.works(true));
    run(&mut stun, start, 1, 1199, &[]);
    assert!(stun.works(false));
    run(&mut stun, start, 1199, 1300, &[]);
    assert!(!stun.works(false));
}
