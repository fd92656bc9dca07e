//! A thousand hosts with twenty models each: what a choice takes, what the catalogue holds, what a change costs.

use mesh_proto::share::{Audience, HostOffers};

use super::*;
use crate::catalog::Keeper;
use crate::dns::fixture::{peer, view_of};
use crate::view::{ByIpv4, View};

const N_HOSTS: u16 = 1_000;
const N_MODELS: u16 = 20;

/// A mesh in which each model is on so many hosts.
fn mesh(n_hosts_each: u16) -> View {
    let (_, like) = peer(1, "like", HostOffers::default());
    let mut view = view_of(HostOffers::default(), Vec::new());
    let netmap = Arc::make_mut(&mut view.netmap);
    for n in 0..N_HOSTS {
        let mut id = [0; 10];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let mut entry = like.clone();
        entry.name = format!("gpu{n}").parse().unwrap();
        let [high, low] = n.to_be_bytes();
        entry.ipv4 = [10, 77, 4 + high, low].into();
        // Hosts of one group offer the same models.
        let group = n / n_hosts_each;
        let models = (0..N_MODELS).map(|m| Arc::new(model(group, m)));
        entry.offers = HostOffers {
            models: models.collect(),
            gpus: Vec::new(),
            audience: Audience::Everyone,
            n_slots: 4,
        };
        netmap.peers.insert(NodeId::from_bytes(id), entry);
    }
    view
}

fn model(group: u16, m: u16) -> Offer {
    let mut digest = [7; 32];
    digest[..2].copy_from_slice(&group.to_be_bytes());
    digest[2..4].copy_from_slice(&m.to_be_bytes());
    Offer {
        digest: Some(mesh_proto::share::Digest::from_bytes(digest)),
        is_loaded: m.is_multiple_of(2),
        ..offer(&format!("family{group}-{m}:7b-instruct-q4_K_M"), 1)
    }
}

/// A host's word that it has loaded a model, or let one go: another view, in which all else is the same.
fn changed(view: &View, n: u16) -> View {
    let mut netmap = (*view.netmap).clone();
    let entry = netmap.peers.values_mut().nth(usize::from(n)).unwrap();
    let offer = Arc::make_mut(&mut entry.offers.models[3]);
    offer.is_loaded = !offer.is_loaded;
    let by_ipv4 = Arc::new(ByIpv4::of(&netmap));
    View::new(
        view.revision,
        Arc::new(netmap),
        by_ipv4,
        Arc::clone(&view.own_offers),
        view.settings.clone(),
    )
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    figure.unwrap().parse().unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn measure(n_hosts_each: u16) {
    let before = rss_kib();
    let view = mesh(n_hosts_each);
    let with_map = rss_kib();
    let (mut dns, mut gateway) = (Keeper::default(), Keeper::default());
    let began = Instant::now();
    let catalog = gateway.keep(&view, |_| false);
    let built = began.elapsed();
    let zone = dns.keep(&view, |_| false);
    let with_index = rss_kib();
    assert_eq!(
        catalog.entries().map(|e| e.offers.len()).sum::<usize>(),
        20_000
    );
    drop(catalog);

    // What comes with each map: the gateway lets go of the last catalogue, the resolver answers from it meanwhile.
    let (mut last, mut updates) = (zone, Vec::new());
    for n in 0..50 {
        let next = changed(&view, n * 7);
        let began = Instant::now();
        drop(gateway.keep(&next, |_| false));
        last = dns.keep(&next, |_| false);
        updates.push(began.elapsed());
    }
    let whole = crate::catalog::Catalog::build(&changed(&view, 49 * 7), |_| false);
    assert!(
        whole.entries().zip(last.entries()).all(|(a, b)| {
            let nodes = |e: &crate::catalog::Entry| {
                e.offers
                    .iter()
                    .map(|o| (o.node, o.offer.is_loaded))
                    .collect::<Vec<_>>()
            };
            a.model == b.model && a.digest == b.digest && nodes(a) == nodes(b)
        }),
        "brought up change by change, it is another"
    );

    let hosts: Arc<Hosts> = Arc::default();
    let body = serde_json::json!({ "model": "m", "prompt": "long ".repeat(2_000) });
    let mut choices = Vec::new();
    for n in 0..2_000_u16 {
        let name = &model(n % (N_HOSTS / n_hosts_each), n % N_MODELS).model;
        let began = Instant::now();
        let entry = last.lookup_model(name).found().unwrap();
        let offers: Vec<&HostOffer> = entry.offers.iter().collect();
        let prefix = Prefix::of(body.as_object().unwrap());
        let ask = Ask {
            prefix: prefix.as_ref(),
            ..Ask::default()
        };
        let first = hosts.choose(&offers, &ask, 4, Instant::now())[0];
        choices.push(began.elapsed());
        let mut work = hosts.start(first.node, &first.offer.model, None, Instant::now());
        work.answered(Duration::ZERO, None, Instant::now());
        work.finished(Some(100), Instant::now() + SECOND);
    }
    let (choice, update) = (median(choices), median(updates));
    println!(
        "{n_hosts_each} hosts a model: map {} KiB, two indexes {} KiB, built in {built:?}, a change in {update:?}, a choice in {choice:?}",
        with_map.saturating_sub(before),
        with_index.saturating_sub(with_map)
    );
    assert!(
        with_index - before < 40 << 10,
        "{} KiB",
        with_index - before
    );
    // The bar is one of programs as they are shipped; without optimization the same work takes several times as long.
    let slower = if cfg!(debug_assertions) { 5 } else { 1 };
    assert!(choice < Duration::from_micros(100) * slower, "{choice:?}");
    assert!(update < Duration::from_millis(50) * slower, "{update:?}");
}

#[test]
fn a_thousand_hosts_that_all_have_the_same_models_cost_little() {
    measure(N_HOSTS);
}

#[test]
fn a_thousand_hosts_in_groups_of_fifty_cost_little() {
    measure(50);
}

#[test]
fn a_thousand_hosts_with_models_of_their_own_cost_little() {
    measure(1);
}
