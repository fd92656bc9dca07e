//! The same questions by each way, at each number of clients: what is added to the direct way.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

use super::super::{Bar, Outcome, median};
use super::Effort;
use super::stage::{self, PATH, READY, cpu_time, figure, gwbench, peak_mib, reset_peak};
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::probe::first_answer;
use crate::process::Process;

const LEVELS: [usize; 4] = [1, 4, 16, 64];

/// One way to the model server.
struct Way<'a> {
    name: &'static str,
    from: &'a Host,
    url: String,
    /// Whose CPU and memory count.
    processes: Vec<&'a Process>,
}

/// What one way gave at one number of clients.
#[derive(Debug, Clone, Copy)]
struct Cell {
    p50: f64,
    p99: f64,
    per_second: f64,
    cpu: f64,
    first_p50: f64,
    first_p99: f64,
    delay_p50: f64,
    stream_cpu: f64,
}

/// Which figure of a cell.
type Pick = fn(&Cell) -> f64;

/// All that one way gave: by level, then by round.
#[derive(Debug)]
struct Row {
    cells: [Vec<Cell>; 4],
    idle: Option<f64>,
    streaming: Vec<Option<f64>>,
}

/// Everything on one machine, by loopback.
pub(super) fn on_one_machine(effort: Effort) -> Result<Outcome> {
    let lab = Lab::new(&["control", "delta"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&[])?;
    let host = lab.host("delta")?;
    let _model = stage::backend(host, "127.0.0.1:11434", "a")?;
    let peers = [
        stage::nginx(host)?,
        stage::haproxy(host)?,
        stage::litellm(host)?,
    ];
    let [nginx, haproxy, litellm] = &peers;
    let mut node = Node::start(host)?;
    node.ctl_ok(&["up", "--userspace", "--auth-key", &key])?;
    node.ctl_ok(&["share", "on", "--slots", "128"])?;
    node.wait_model("m", READY)?;
    let meshd = &*node.process()?;
    let way = |name, port: u16, processes| Way {
        name,
        from: host,
        url: format!("http://127.0.0.1:{port}{PATH}"),
        processes,
    };
    let ways = [
        way("direct", 11_434, vec![]),
        way("nginx", 9_201, vec![nginx]),
        way("HAProxy", 9_202, vec![haproxy]),
        way("LiteLLM", 9_203, vec![litellm]),
        way("meshd's gateway", 11_435, vec![meshd]),
    ];
    let rows = measure(&ways, effort)?;
    let mut text =
        "On one machine, by loopback; meshd is in userspace mode, whose gateway listens there.\n\n"
            .to_owned();
    text += &table(&ways, &rows)?;
    let mut bars = bars("gateway", &rows, 1, 4)?;
    let row = rows.get(4).context("no row of meshd")?;
    bars.push(Bar::at_most(
        20.0,
        "MiB",
        "gateway: memory (RSS) of an idle meshd",
        vec![row.idle],
    ));
    bars.push(Bar::at_most(
        32.0,
        "MiB",
        "gateway: memory at 64 streams, peak",
        row.streaming.clone(),
    ));
    let url = ways.get(4).context("no way of meshd")?.url.as_str();
    for how in ["told", "chunked"] {
        reset_peak(meshd)?;
        let report = gwbench(host, &["body", url, "50", how])?;
        ensure!(report["status"] == 413, "a body of 50 MiB: {report}");
        bars.push(Bar::at_most(
            32.0,
            "MiB",
            &format!("gateway: memory with a body of 50 MiB, its length {how}, peak"),
            vec![Some(peak_mib(meshd)?)],
        ));
    }
    Ok(Outcome { text, bars })
}

/// A host and a guest in two network namespaces, joined by the mesh.
pub(super) fn by_tunnel(effort: Effort) -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::join(lab.host("beta")?, &key)?;
    let mut gamma = Node::join(lab.host("gamma")?, &key)?;
    let host = gamma.host;
    let _servers = [
        stage::backend(host, "127.0.0.1:11434", "a")?,
        stage::backend(host, "0.0.0.0:9100", "a")?,
    ];
    let nginx = stage::nginx(host)?;
    gamma.ctl_ok(&["share", "on", "--slots", "128"])?;
    beta.wait_model("m", READY)?;
    gamma.wait_model("m", READY)?;
    let (overlay, service) = (gamma.ipv4()?, gamma.service_ipv4()?);
    first_answer(beta.host, overlay, READY)?;
    beta.wait_direct(overlay, READY)?;
    let guest_host = beta.host;
    let guest = &*beta.process()?;
    let meshd = &*gamma.process()?;
    let way = |name, from, authority: String, processes| Way {
        name,
        from,
        url: format!("http://{authority}{PATH}"),
        processes,
    };
    // The host's meshd carries the packets of each way, so it counts for each.
    let ways = [
        way("direct", guest_host, format!("{overlay}:9100"), vec![meshd]),
        way(
            "nginx on the host",
            guest_host,
            format!("{overlay}:9201"),
            vec![meshd, &nginx],
        ),
        way(
            "the host's door",
            guest_host,
            format!("{overlay}:11434"),
            vec![meshd],
        ),
        way(
            "own gateway and the host's door",
            guest_host,
            format!("{service}:11434"),
            vec![meshd, guest],
        ),
    ];
    let rows = measure(&ways, effort)?;
    let mut text = "From another node, through the mesh; CPU counts the host's meshd for each way, and the guest's for the last.\n\n".to_owned();
    text += &table(&ways, &rows)?;
    let bars = bars("door", &rows, 1, 2)?;
    // The interface of the host itself leads its own programs to the gateway as well.
    let own = [
        way("direct", host, "127.0.0.1:9100".to_owned(), vec![]),
        way("nginx", host, "127.0.0.1:9201".to_owned(), vec![&nginx]),
        way(
            "meshd's gateway at the service address",
            host,
            format!("{service}:11434"),
            vec![meshd],
        ),
    ];
    let own_rows = measure(&own, effort)?;
    text += "On the host, with an interface: each packet to the service address passes the interface and meshd's data plane twice each way.\n\n";
    text += &table(&own, &own_rows)?;
    Ok(Outcome { text, bars })
}

/// Each way in turn, round by round.
fn measure(ways: &[Way<'_>], effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for way in ways {
        let memory = match way.processes.last() {
            Some(process) => Some(process.rss_mib()?),
            None => None,
        };
        rows.push(Row {
            cells: Default::default(),
            idle: memory,
            streaming: Vec::new(),
        });
    }
    for _ in 0..effort.n_rounds {
        for (level, n_clients) in LEVELS.iter().enumerate() {
            for (way, row) in ways.iter().zip(&mut rows) {
                let (cell, peak) = cell(way, *n_clients, effort.seconds)?;
                if let Some(cells) = row.cells.get_mut(level) {
                    cells.push(cell);
                }
                if *n_clients == 64 {
                    row.streaming.push(peak);
                }
            }
        }
    }
    Ok(rows)
}

/// One figure of each kind, and the peak of memory while streaming.
fn cell(way: &Way<'_>, n_clients: usize, seconds: u32) -> Result<(Cell, Option<f64>)> {
    let (n_clients, seconds) = (n_clients.to_string(), seconds.to_string());
    let spent = || -> Result<f64> {
        let times: Result<Vec<_>> = way.processes.iter().map(|one| cpu_time(one)).collect();
        Ok(times?.iter().map(|time| time.as_secs_f64()).sum())
    };
    let load = |what: &str| -> Result<(serde_json::Value, f64)> {
        let before = spent()?;
        let report = gwbench(way.from, &[what, &way.url, &n_clients, &seconds])?;
        ensure!(report["n_bad"] == 0, "{}: {report}", way.name);
        let per_thousand = (spent()? - before) / figure(&report, "n")?.max(1.0) * 1e3;
        Ok((report, per_thousand))
    };
    let (whole, cpu) = load("load")?;
    if let Some(process) = way.processes.last() {
        reset_peak(process)?;
    }
    let (stream, stream_cpu) = load("stream")?;
    let peak = way.processes.last().map(|one| peak_mib(one)).transpose()?;
    let cell = Cell {
        p50: figure(&whole, "p50")?,
        p99: figure(&whole, "p99")?,
        per_second: figure(&whole, "n")? / figure(&whole, "seconds")?,
        cpu,
        first_p50: figure(&stream, "first_p50")?,
        first_p99: figure(&stream, "first_p99")?,
        delay_p50: figure(&stream, "delay_p50")?,
        stream_cpu,
    };
    Ok((cell, peak))
}

impl Row {
    fn values(&self, level: usize, pick: Pick) -> Vec<f64> {
        let cells = self.cells.get(level).map_or(&[][..], Vec::as_slice);
        cells.iter().map(pick).collect()
    }

    /// What is more than by the direct way, round by round.
    fn added(&self, direct: &Self, level: usize, pick: Pick) -> Vec<f64> {
        let (own, direct) = (self.values(level, pick), direct.values(level, pick));
        own.iter()
            .zip(direct)
            .map(|(own, direct)| own - direct)
            .collect()
    }
}

fn table(ways: &[Way<'_>], rows: &[Row]) -> Result<String> {
    let direct = rows.first().context("no rows")?;
    let mut text = String::new();
    text += "| whole answers | 1 client: p50 ms | added p50 / p99, 1 client | 4 | 16 | 64 | requests/s, 64 clients | CPU s per 1,000, 1 client | 64 | RSS MiB idle |\n";
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (way, row) in ways.iter().zip(rows) {
        write!(
            text,
            "| {} | {:.3} |",
            way.name,
            median(&row.values(0, |c| c.p50))
        )?;
        for level in 0..LEVELS.len() {
            let [p50, p99] = [|c: &Cell| c.p50, |c: &Cell| c.p99]
                .map(|pick| median(&row.added(direct, level, pick)));
            write!(text, " {p50:.3} / {p99:.3} |")?;
        }
        writeln!(
            text,
            " {:.0} | {:.3} | {:.3} | {} |",
            median(&row.values(3, |c| c.per_second)),
            median(&row.added(direct, 0, |c| c.cpu)),
            median(&row.added(direct, 3, |c| c.cpu)),
            row.idle
                .map_or_else(|| "-".to_owned(), |mib| format!("{mib:.0}"))
        )?;
    }
    text += "\n| streams | first byte, added p50 / p99 ms, 1 client | 4 | 16 | 64 | per chunk, added p50 ms, 1 client | 4 | 16 | 64 | CPU s per 1,000, 64 clients | RSS MiB, 64 streams |\n";
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (way, row) in ways.iter().zip(rows) {
        write!(text, "| {} |", way.name)?;
        for level in 0..LEVELS.len() {
            let [p50, p99] = [|c: &Cell| c.first_p50, |c: &Cell| c.first_p99]
                .map(|pick| median(&row.added(direct, level, pick)));
            write!(text, " {p50:.3} / {p99:.3} |")?;
        }
        for level in 0..LEVELS.len() {
            write!(
                text,
                " {:.3} |",
                median(&row.added(direct, level, |c| c.delay_p50))
            )?;
        }
        let peaks: Vec<f64> = row.streaming.iter().copied().flatten().collect();
        writeln!(
            text,
            " {:.2} | {} |",
            median(&row.added(direct, 3, |c| c.stream_cpu)),
            if peaks.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.0}", median(&peaks))
            }
        )?;
    }
    text.push('\n');
    Ok(text)
}

/// What is asked of one row beside another one.
fn bars(what: &str, rows: &[Row], nginx: usize, ours: usize) -> Result<Vec<Bar>> {
    let row = |index: usize| rows.get(index).context("no such row");
    let (direct, nginx, ours) = (row(0)?, row(nginx)?, row(ours)?);
    // Where nginx adds nothing that can be measured, no ratio can be had.
    let ratios = |level, pick: Pick| -> Vec<Option<f64>> {
        let pairs = ours.added(direct, level, pick).into_iter();
        pairs
            .zip(nginx.added(direct, level, pick))
            .map(|(ours, nginx)| (nginx > 0.0).then(|| ours / nginx))
            .collect()
    };
    let asked: [(f64, &str, Pick); 7] = [
        (1.5, "whole answer, p50 added", |c| c.p50),
        (2.0, "whole answer, p99 added", |c| c.p99),
        (2.0, "whole answer, CPU per 1,000", |c| c.cpu),
        (1.5, "stream's first byte, p50 added", |c| c.first_p50),
        (2.0, "stream's first byte, p99 added", |c| c.first_p99),
        (2.0, "stream, delay added per chunk, p50", |c| c.delay_p50),
        (2.0, "stream, CPU per 1,000", |c| c.stream_cpu),
    ];
    let mut bars = Vec::new();
    for (bound, figure, pick) in asked {
        for (level, n_clients) in LEVELS.iter().enumerate() {
            let plural = if *n_clients == 1 { "client" } else { "clients" };
            let text = format!("{what}: {figure}, {n_clients} {plural}");
            bars.push(Bar::at_most(bound, "× nginx", &text, ratios(level, pick)));
        }
    }
    Ok(bars)
}
