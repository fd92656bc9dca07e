//! `make soak`: ten minutes beside a stock WireGuard, with traffic both ways each fifth of a second. `soak [SECONDS]`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::interop::{StockPeer, Traffic, wait_both_ways};
use e2e::mesh::{Coordinator, Node};
use e2e::net::{Lab, is_root};

const TEN_MINUTES: u64 = 600;
const PROGRESS: Duration = Duration::from_secs(30);
/// Sessions are renewed every two minutes.
const SECONDS_PER_REKEY: u64 = 120;
const PAUSE: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    ensure!(
        is_root(),
        "the soak makes network namespaces: run it as root"
    );
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(TEN_MINUTES), |text| text.parse())?;
    let lab = Lab::new(&["control", "beta", "stock"])?;
    let result = soak(&lab, Duration::from_secs(seconds));
    if result.is_err() {
        lab.keep_logs();
    }
    result
}

fn soak(lab: &Lab, time: Duration) -> Result<()> {
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::join(lab.host("beta")?, &key)?;
    let host = lab.host("stock")?;
    let mut stock = StockPeer::join(host, &key)?;
    let own = beta.ipv4()?;
    wait_both_ways((beta.host, own), (host, stock.ipv4))?;
    let from_meshd = Traffic::start(beta.host, stock.ipv4)?;
    let from_stock = Traffic::start(host, own)?;
    println!(
        "meshd {own} and wireguard-go {} for {} s",
        stock.ipv4,
        time.as_secs()
    );

    let start = Instant::now();
    let mut next_report = PROGRESS;
    let mut handshakes = vec![stock.last_handshake()?];
    while start.elapsed() < time {
        std::thread::sleep(PAUSE);
        stock.ensure_runs()?;
        beta.process()?.ensure_runs()?;
        let last = stock.last_handshake()?;
        if handshakes.last() != Some(&last) {
            handshakes.push(last);
        }
        if start.elapsed() >= next_report {
            next_report += PROGRESS;
            println!(
                "{:4} s: {} rekeys, longest silence {:?} from meshd, {:?} from wireguard-go",
                start.elapsed().as_secs(),
                handshakes.len() - 1,
                from_meshd.gaps()?.longest,
                from_stock.gaps()?.longest
            );
        }
    }
    let n_rekeys = handshakes.len() - 1;
    let n_wanted = time.as_secs().saturating_sub(10) / SECONDS_PER_REKEY;
    let cpu = beta.process()?.cpu_time()?;
    for (name, traffic) in [("meshd", from_meshd), ("wireguard-go", from_stock)] {
        let gaps = traffic
            .finish()
            .with_context(|| format!("traffic from {name}"))?;
        println!(
            "from {name}: {} answers, longest silence {:?}",
            gaps.n_answers, gaps.longest
        );
        ensure!(
            gaps.longest < SILENCE_MAX,
            "traffic from {name} was silent for {:?}",
            gaps.longest
        );
        let n_wanted = time.as_secs() * 5 * 95 / 100;
        ensure!(
            gaps.n_answers as u64 >= n_wanted,
            "traffic from {name}: answers are missing"
        );
    }
    ensure!(
        n_rekeys as u64 >= n_wanted,
        "{n_rekeys} rekeys, expected {n_wanted}"
    );
    println!("{n_rekeys} rekeys, meshd used {cpu:?} of CPU time: passed");
    Ok(())
}
