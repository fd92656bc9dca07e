//! The whole of it: offers in, hosts out, by what requests told before.

mod scale;
mod split;

use std::sync::Arc;

use mesh_proto::share::Offer;

use super::*;
use crate::catalog::HostInfo;
use crate::dns::fixture::offer;

const SECOND: Duration = Duration::from_secs(1);

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

fn host(n: u8, change: impl FnOnce(&mut HostInfo, &mut Offer)) -> HostOffer {
    let mut info = HostInfo {
        node: node(n),
        name: format!("gpu{n}").parse().unwrap(),
        ipv4: [10, 77, 1, n].into(),
        ipv6: std::net::Ipv6Addr::from([n; 16]),
        is_self: false,
        is_online: true,
        n_slots: 2,
    };
    let mut offer = offer("m", 1);
    offer.is_loaded = true;
    change(&mut info, &mut offer);
    HostOffer::new(Arc::new(info), Arc::new(offer))
}

fn plain(n: u8) -> HostOffer {
    host(n, |_, _| {})
}

struct Stage {
    hosts: Arc<Hosts>,
    offers: Vec<HostOffer>,
    now: Instant,
}

impl Stage {
    fn new(offers: Vec<HostOffer>) -> Self {
        Self {
            hosts: Arc::default(),
            offers,
            now: Instant::now(),
        }
    }

    fn choose(&self, ask: &Ask<'_>) -> Vec<u8> {
        let offers: Vec<&HostOffer> = self.offers.iter().collect();
        let chosen = self.hosts.choose(&offers, ask, 4, self.now);
        let first = |offer: &&HostOffer| offer.node.as_bytes()[0];
        chosen.iter().map(first).collect()
    }

    fn first(&self) -> u8 {
        self.choose(&Ask::default())[0]
    }

    fn start(&self, n: u8) -> Work {
        self.hosts.start(node(n), "m", None, self.now)
    }

    /// A request that takes so long, and brings so many tokens after half of it.
    fn measure(&self, n: u8, took: Duration, n_tokens: Option<u64>) {
        let mut work = self.start(n);
        work.answered(Duration::ZERO, None, self.now + took / 2);
        work.finished(n_tokens, self.now + took);
    }
}

#[test]
fn a_free_slot_goes_before_a_fast_host_and_a_request_that_ends_frees_it() {
    let stage = Stage::new(vec![plain(1), plain(2)]);
    stage.measure(1, SECOND, None);
    stage.measure(2, SECOND * 4, None);
    assert_eq!(stage.first(), 1);
    let one = stage.start(1);
    let two = stage.start(1);
    assert_eq!(stage.first(), 2, "both slots of the first are taken");
    drop(one);
    assert_eq!(stage.first(), 1);
    drop(two);
}

#[test]
fn where_all_slots_are_taken_the_shorter_wait_wins_by_speed() {
    let stage = Stage::new(vec![plain(1), plain(2)]);
    stage.measure(1, SECOND, None);
    stage.measure(2, SECOND * 4, None);
    let mut running: Vec<Work> = [1, 1, 2, 2].map(|n| stage.start(n)).into();
    let mut counts = [0; 2];
    for _ in 0..30 {
        let n = stage.first();
        counts[usize::from(n) - 1] += 1;
        running.push(stage.start(n));
    }
    // Waits grow alike when the slow one gets a quarter of what the fast one gets, and it begins behind.
    assert!((22..=28).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_host_that_has_no_room_is_asked_last_for_as_long_as_it_said() {
    let mut stage = Stage::new(vec![plain(1), plain(2)]);
    stage.start(1).refused(Some(SECOND * 3), stage.now);
    for _ in 0..20 {
        assert_eq!(stage.choose(&Ask::default()), [2, 1]);
    }
    stage.now += SECOND * 3;
    let firsts: BTreeSet<u8> = (0..64).map(|_| stage.first()).collect();
    assert_eq!(firsts.len(), 2);
}

#[test]
fn failures_open_the_breaker_of_one_model_and_clients_that_leave_do_not() {
    let mut stage = Stage::new(vec![plain(1), plain(2)]);
    for _ in 0..50 {
        drop(stage.start(1));
    }
    let firsts: BTreeSet<u8> = (0..64).map(|_| stage.first()).collect();
    assert_eq!(firsts.len(), 2, "64 clients that left closed a host");
    for _ in 0..3 {
        stage.start(1).failed(stage.now);
    }
    assert_eq!(stage.choose(&Ask::default()), [2, 1]);
    let other = [
        host(1, |_, o| "other".clone_into(&mut o.model)),
        host(2, |_, o| "other".clone_into(&mut o.model)),
    ];
    let refs: Vec<&HostOffer> = other.iter().collect();
    let firsts: BTreeSet<NodeId> = (0..64)
        .map(|_| stage.hosts.choose(&refs, &Ask::default(), 1, stage.now)[0].node)
        .collect();
    assert_eq!(firsts.len(), 2, "its other models suffer");
    // After a rest one request tries it; a client that leaves decides nothing.
    stage.now += SECOND;
    assert_eq!(stage.first(), 1);
    let trial = stage.start(1);
    assert_eq!(stage.first(), 2, "one trial at a time");
    drop(trial);
    assert_eq!(stage.first(), 1);
    stage.measure(1, SECOND, None);
    let firsts: BTreeSet<u8> = (0..64).map(|_| stage.first()).collect();
    assert!(firsts.contains(&1), "closed again");
}

#[test]
fn a_conversation_stays_with_its_host_until_that_is_full_or_down() {
    let stage = Stage::new((1..=4).map(plain).collect());
    let body = serde_json::json!({ "model": "m", "prompt": "long ".repeat(200) });
    let prefix = Prefix::of(body.as_object().unwrap()).unwrap();
    let ask = Ask {
        prefix: Some(&prefix),
        ..Ask::default()
    };
    let home = stage.choose(&ask)[0];
    drop(stage.hosts.start(node(home), "m", Some(&prefix), stage.now));
    for _ in 0..50 {
        assert_eq!(stage.choose(&ask)[0], home);
    }
    let running = [stage.start(home), stage.start(home)];
    assert_ne!(stage.choose(&ask)[0], home);
    drop(running);
    assert_eq!(stage.choose(&ask)[0], home);
    stage.hosts.mark_down(node(home), stage.now);
    assert_ne!(stage.choose(&ask)[0], home);
    assert_eq!(*stage.choose(&ask).last().unwrap(), home);
}

#[test]
fn new_conversations_go_where_they_drive_no_other_out() {
    // Eight, one after the other, and never two at once: four hosts with two slots hold them all.
    let stage = Stage::new((1..=4).map(plain).collect());
    let mut homes = BTreeSet::new();
    for turn in 0..3 {
        for n in 0..8 {
            let prompt = format!("{n} ").repeat(600) + &"more ".repeat(turn);
            let body = serde_json::json!({ "model": "m", "prompt": prompt });
            let prefix = Prefix::of(body.as_object().unwrap()).unwrap();
            let ask = Ask {
                prefix: Some(&prefix),
                ..Ask::default()
            };
            let host = stage.choose(&ask)[0];
            drop(stage.hosts.start(node(host), "m", Some(&prefix), stage.now));
            homes.insert((host, n));
        }
    }
    assert_eq!(homes.len(), 8, "one moved: {homes:?}");
    for host in 1..=4 {
        assert_eq!(homes.iter().filter(|(at, _)| *at == host).count(), 2);
    }
}

#[test]
fn a_client_names_the_host_it_prefers_and_others_stand_by() {
    let stage = Stage::new((1..=4).map(plain).collect());
    let prefer = Prefer::Host("gpu3".parse().unwrap());
    let ask = Ask {
        prefer: Some(&prefer),
        ..Ask::default()
    };
    for _ in 0..20 {
        let chosen = stage.choose(&ask);
        assert_eq!((chosen[0], chosen.len()), (3, 4));
    }
}

#[test]
fn of_many_hosts_the_one_that_counts_is_found() {
    // A thousand, of which ten have the model in memory and one has a slot free.
    let mut offers: Vec<HostOffer> = (0..1_000_u16)
        .map(|n| {
            host(0, |info, offer| {
                let mut id = [0; 10];
                id[..2].copy_from_slice(&n.to_be_bytes());
                info.node = NodeId::from_bytes(id);
                info.name = format!("gpu{n}").parse().unwrap();
                offer.is_loaded = n < 10;
            })
        })
        .collect();
    offers.sort_by_key(|offer| !offer.offer.is_loaded);
    let stage = Stage::new(offers);
    let refs: Vec<&HostOffer> = stage.offers.iter().collect();
    let choose = |ask: &Ask<'_>| stage.hosts.choose(&refs, ask, 1, stage.now)[0];
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let chosen = choose(&Ask::default());
        assert!(chosen.offer.is_loaded);
        seen.insert(chosen.node);
    }
    assert_eq!(seen.len(), 10, "a herd");
    let prefer = Prefer::Host("gpu777".parse().unwrap());
    let ask = Ask {
        prefer: Some(&prefer),
        ..Ask::default()
    };
    assert_eq!(choose(&ask).name.as_str(), "gpu777");
}

#[test]
fn who_follows_the_hosts_hears_of_each_change_and_knows_when_time_makes_one() {
    let (hosts, now) = (Hosts::default(), Instant::now());
    let mut told = hosts.subscribe();
    hosts.mark_up(&node(7));
    assert!(!told.has_changed().unwrap(), "it was up");
    assert_eq!(hosts.next_up(now), None);
    hosts.mark_down(node(7), now);
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    assert_eq!(hosts.next_up(now), Some(now + DOWN_WANTED_FOR));
    assert!(hosts.is_down(&node(7), now + DOWN_WANTED_FOR - SECOND));
    assert!(!hosts.is_down(&node(7), now + DOWN_WANTED_FOR));
    hosts.mark_up(&node(7));
    assert!(told.has_changed().unwrap());
    assert!(!hosts.is_down(&node(7), now));
}

#[test]
fn a_host_is_probed_while_it_is_of_use_and_no_longer() {
    let (hosts, start) = (Hosts::default(), Instant::now());
    let n_probes = |from: u64, to: u64| {
        let ticks =
            (from * 10..to * 10).map(|tick| start + SECOND / 10 * u32::try_from(tick).unwrap());
        ticks.map(|now| hosts.due(now).len()).sum::<usize>()
    };
    assert_eq!(n_probes(0, 10), 0, "nobody asked");
    hosts.want([node(1)].iter(), start);
    assert_eq!(n_probes(0, 60), 2, "every two seconds for six");
    hosts.mark_down(node(1), start + SECOND * 60);
    let n_soon = n_probes(60, 70);
    assert!((9..=10).contains(&n_soon), "every second: {n_soon}");
    let n_later = n_probes(70, 200);
    assert!(
        (22..=26).contains(&n_later),
        "every two until a minute is over: {n_later}"
    );
    hosts.on_pong(&node(1), SECOND / 100, None, start + SECOND * 200);
    assert!(!hosts.is_down(&node(1), start + SECOND * 200));
    assert_eq!(n_probes(200, 300), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_learns_that_its_host_is_silent_and_bears_more_where_no_other_is() {
    let hosts: Arc<Hosts> = Arc::default();
    let now = Instant::now();
    let one = hosts.start(node(1), "m", None, now);
    let alone = hosts.start(node(1), "m", None, now);
    let mut lost = std::pin::pin!(one.lost(false));
    let mut lost_alone = std::pin::pin!(alone.lost(true));
    let is_over = async |lost: &mut std::pin::Pin<&mut dyn Future<Output = ()>>| {
        tokio::time::timeout(PROBE_WAITING * 2, lost.as_mut())
            .await
            .is_ok()
    };
    let mut lost: std::pin::Pin<&mut dyn Future<Output = ()>> = lost.as_mut();
    let mut lost_alone: std::pin::Pin<&mut dyn Future<Output = ()>> = lost_alone.as_mut();
    assert!(!is_over(&mut lost).await && !is_over(&mut lost_alone).await);
    assert_eq!(hosts.due(Instant::now() + SECOND), [node(1)]);
    hosts.on_pong(&node(1), SECOND / 100, None, Instant::now());
    assert!(!is_over(&mut lost).await, "it lives");
    hosts.on_missed(node(1), Instant::now());
    assert!(is_over(&mut lost).await);
    assert!(hosts.is_down(&node(1), Instant::now()));
    assert!(
        !is_over(&mut lost_alone).await,
        "there is nobody else to ask"
    );
    for _ in 0..7 {
        hosts.on_missed(node(1), Instant::now());
    }
    assert!(is_over(&mut lost_alone).await);
}

#[test]
fn names_are_answered_in_the_same_order() {
    let stage = Stage::new(vec![
        host(1, |_, offer| offer.is_loaded = false),
        plain(2),
        plain(3),
        plain(4),
    ]);
    stage.measure(2, SECOND * 8, None);
    stage.measure(3, SECOND, None);
    stage.measure(4, SECOND, None);
    let running = [stage.start(4), stage.start(4)];
    let mut offers: Vec<&HostOffer> = stage.offers.iter().collect();
    stage.hosts.sort(&mut offers, stage.now);
    let order: Vec<u8> = offers.iter().map(|o| o.node.as_bytes()[0]).collect();
    assert_eq!(order, [3, 2, 4, 1]);
    drop(running);
}

#[test]
fn memory_of_hosts_is_bounded_and_requests_in_work_are_never_forgotten() {
    let hosts: Arc<Hosts> = Arc::default();
    let now = Instant::now();
    let work = hosts.start(node(1), "m", None, now);
    for n in 0..N_HOSTS_MAX * 2 {
        let mut id = [9; 10];
        id[..8].copy_from_slice(&n.to_be_bytes());
        hosts.mark_down(NodeId::from_bytes(id), now);
    }
    let state = hosts.lock();
    assert_eq!(state.hosts.len(), N_HOSTS_MAX);
    assert_eq!(state.hosts[&node(1)].n_in_work, 1);
    drop(state);
    drop(work);
    hosts.forget(&node(1));
    assert!(!hosts.lock().hosts.contains_key(&node(1)));
}
