//! Four hosts, one of them four times slower: how near the choice comes to the best split of the work. Time is made up.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const N_SLOTS: u32 = 2;
const N_REQUESTS: usize = 600;
const N_TOKENS: u64 = 100;
/// How long each host takes for one request.
const TAKES: [Duration; 4] = [
    Duration::from_millis(1_000),
    Duration::from_millis(1_000),
    Duration::from_millis(1_000),
    Duration::from_millis(4_000),
];

/// A host as it is, of which guests know what it told them.
#[derive(Default)]
struct Server {
    n_active: u32,
    waiting: VecDeque<Asked>,
}

struct Asked {
    guest: usize,
    work: Work,
    at: Instant,
}

/// Requests in work, by when they end.
#[derive(Default)]
struct Ends {
    n_begun: usize,
    by_time: BTreeMap<(Instant, usize), (usize, Asked)>,
}

impl Server {
    fn begin(&mut self, host: usize, mut asked: Asked, now: Instant, ends: &mut Ends) {
        self.n_active += 1;
        let load = Load {
            n_active: self.n_active,
            n_waiting: u32::try_from(self.waiting.len()).unwrap(),
            n_slots: N_SLOTS,
            is_leaving: false,
        };
        asked.work.answered(
            now.duration_since(asked.at),
            Some(load),
            now + TAKES[host] / 10,
        );
        ends.n_begun += 1;
        let end = (now + TAKES[host], ends.n_begun);
        ends.by_time.insert(end, (host, asked));
    }
}

/// How long all requests take when each guest has so many under way, against the best possible.
fn ratio(n_guests: usize, n_each: usize) -> f64 {
    let offers: Vec<HostOffer> = (1..=4).map(plain).collect();
    let offers: Vec<&HostOffer> = offers.iter().collect();
    let guests: Vec<Arc<Hosts>> = (0..n_guests).map(|_| Arc::default()).collect();
    let mut servers: Vec<Server> = TAKES.iter().map(|_| Server::default()).collect();
    let (start, mut ends, mut n_asked) = (Instant::now(), Ends::default(), 0);
    let mut now = start;
    let mut ask = |guest: usize, now: Instant, servers: &mut Vec<Server>, ends: &mut Ends| {
        if n_asked == N_REQUESTS {
            return;
        }
        n_asked += 1;
        let hosts = &guests[guest];
        let chosen = hosts.choose(&offers, &Ask::default(), 4, now)[0].node;
        let asked = Asked {
            guest,
            work: hosts.start(chosen, "m", None, now),
            at: now,
        };
        let host = usize::from(chosen.as_bytes()[0]) - 1;
        if servers[host].n_active < N_SLOTS {
            servers[host].begin(host, asked, now, ends);
        } else {
            servers[host].waiting.push_back(asked);
        }
    };
    for _ in 0..n_each {
        for guest in 0..n_guests {
            ask(guest, now, &mut servers, &mut ends);
        }
    }
    while let Some(((at, _), (host, mut asked))) = ends.by_time.pop_first() {
        now = at;
        asked.work.finished(Some(N_TOKENS), now);
        servers[host].n_active -= 1;
        if let Some(next) = servers[host].waiting.pop_front() {
            servers[host].begin(host, next, now, &mut ends);
        }
        ask(asked.guest, now, &mut servers, &mut ends);
    }
    let per_second: f64 = TAKES.iter().map(|takes| 1.0 / takes.as_secs_f64()).sum();
    let n_requests = f64::from(u32::try_from(N_REQUESTS).unwrap());
    let best = n_requests / (per_second * f64::from(N_SLOTS));
    now.duration_since(start).as_secs_f64() / best
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn with_one_slow_host_the_work_is_split_nearly_as_well_as_can_be() {
    for (n_guests, n_each) in [(1, 8), (1, 12), (1, 32), (3, 3), (3, 4), (3, 8)] {
        let mut ratios: Vec<f64> = (0..25).map(|_| ratio(n_guests, n_each)).collect();
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!("{n_guests} guests, {n_each} requests each at a time: {median:.3} of the best");
        assert!(
            median <= 1.15,
            "{n_guests} guests, {n_each} each: {ratios:?}"
        );
    }
}
