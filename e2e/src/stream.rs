//! A TCP stream between two hosts, every stall of which is noticed.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::net::Host;
use crate::process::Process;
use crate::tool;
use crate::wait::wait_until;

const PORT: u16 = 5000;
const READY: Duration = Duration::from_secs(10);
/// How much longer than asked a stream that stands still is waited for.
const GRACE: Duration = Duration::from_secs(20);

/// The stream: a byte each 20 ms.
#[derive(Debug)]
pub struct Stream {
    watch: Process,
    _serve: Process,
}

impl Stream {
    /// Starts one from a host, at one of its addresses, to another.
    ///
    /// # Errors
    /// When it does not flow.
    pub fn start(from: &Host, address: Ipv4Addr, to: &Host) -> Result<Self> {
        let address = format!("{address}:{PORT}");
        let mut command = from.command(tool::program("ticker")?);
        command.args(["serve", &address]);
        let serve = from.spawn("ticker-serve", command)?;
        wait_until("it serves", READY, || {
            from.sh(&format!("ss -Hltn 'sport = {PORT}' | grep -q {PORT}"))
                .map(drop)
        })?;
        let mut command = to.command(tool::program("ticker")?);
        command.args(["watch", &address]);
        let watch = to.spawn("ticker-watch", command)?;
        let stream = Self {
            watch,
            _serve: serve,
        };
        wait_until("the stream flows", READY, || {
            let n_ticks = stream.ticks().len();
            ensure!(n_ticks > 20, "{n_ticks} ticks");
            Ok(())
        })?;
        Ok(stream)
    }

    /// When something came, milliseconds since its start.
    fn ticks(&self) -> Vec<u64> {
        let log = self.watch.log();
        // A stream before it may have the same log.
        let lines: Vec<&str> = log.lines().collect();
        let own = lines.iter().rposition(|line| *line == "start");
        let numbers = lines.iter().skip(own.map_or(0, |at| at + 1));
        let numbers = numbers.filter_map(|line| line.strip_prefix("tick "));
        numbers.filter_map(|number| number.parse().ok()).collect()
    }

    /// Does something, waits until the stream has moved for `span` thereafter, and gives its longest stall meanwhile.
    ///
    /// # Errors
    /// When it breaks, or stands still for long.
    pub fn longest_stall(
        &mut self,
        span: Duration,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        let before = self.ticks();
        let began = before.last().copied().context("no tick")?;
        act()?;
        self.flows_until(began, span)?;
        let ticks = self.ticks();
        let pairs = ticks.windows(2).filter(|pair| pair[1] > began);
        let longest = pairs.map(|pair| pair[1] - pair[0]).max();
        Ok(Duration::from_millis(longest.context("no tick")?))
    }

    /// Does something; how long from its beginning until the stream moves, after which it must go on for `span`.
    ///
    /// # Errors
    /// As [`Stream::longest_stall`].
    pub fn next_move(
        &mut self,
        span: Duration,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        let start = Instant::now();
        let before = self.ticks().last().copied().context("no tick")?;
        act()?;
        let (first, took) = wait_until("the stream moves", GRACE, || {
            self.watch.ensure_runs()?;
            let after = self.ticks().into_iter().find(|tick| *tick > before);
            after
                .map(|first| (first, start.elapsed()))
                .context("it stands still")
        })?;
        self.flows_until(first, span)?;
        Ok(took)
    }

    fn flows_until(&mut self, began: u64, span: Duration) -> Result<()> {
        let end = began + u64::try_from(span.as_millis())?;
        wait_until("the stream goes on", span + GRACE, || {
            self.watch.ensure_runs()?;
            let last = self.ticks().last().copied();
            ensure!(
                last >= Some(end),
                "the last tick came at {last:?} ms, {end} is wanted"
            );
            Ok(())
        })
    }
}
