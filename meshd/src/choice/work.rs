//! One request at one host: counted while it lasts, and measured by how it goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;

use super::{Host, Hosts, Load, PROBE_WAITING, Prefix};

/// How long a host without room is left alone when it says no better, and at most.
const FULL_FOR: Duration = Duration::from_secs(1);
const FULL_LONGEST: Duration = Duration::from_secs(10);
/// Probes in a row that a host may owe, when another could take over and when none could.
const N_MISSED_OF_MANY: u32 = 1;
const N_MISSED_OF_ONE: u32 = 8;

/// A request that a host has. Dropped without a word it tells nothing: its client left.
#[derive(Debug)]
pub(crate) struct Work {
    hosts: Arc<Hosts>,
    node: NodeId,
    model: String,
    started: Instant,
    /// How long it waited for a slot, as the host says, and when its first byte came.
    queued: Duration,
    first_byte: Option<Instant>,
    is_trial: bool,
}

/// Counts a request that waits for its first byte.
struct Watching<'a>(&'a Work);

impl Hosts {
    /// A request goes to a host.
    pub(crate) fn start(
        self: &Arc<Self>,
        node: NodeId,
        model: &str,
        prefix: Option<&Prefix>,
        now: Instant,
    ) -> Work {
        let mut state = self.lock();
        if let Some(prefix) = prefix {
            state.affinity.learn(prefix, node, now);
        }
        let host = state.host(node);
        if let Some(prefix) = prefix {
            host.hold(prefix.home(), now);
        }
        host.n_in_work += 1;
        let is_trial = host.model(model).breaker.on_sent(now);
        Work {
            hosts: Arc::clone(self),
            node,
            model: model.to_owned(),
            started: now,
            queued: Duration::ZERO,
            first_byte: None,
            is_trial,
        }
    }
}

impl Work {
    /// Ends when the host has stopped answering at all; never while it lives, however long it works.
    pub(crate) async fn lost(&self, is_last: bool) {
        let n_max = if is_last {
            N_MISSED_OF_ONE
        } else {
            N_MISSED_OF_MANY
        };
        tokio::time::sleep(PROBE_WAITING).await;
        let mut changed = self.hosts.subscribe();
        let _watching = Watching::start(self);
        // What it owed before this request says nothing of now.
        let mut n_before = u32::MAX;
        loop {
            let n_missed = self.with(|host| host.n_missed);
            n_before = n_before.min(n_missed);
            if n_missed - n_before >= n_max {
                return;
            }
            // The sender lives as long as this.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The first byte came.
    pub(crate) fn answered(&mut self, queued: Duration, load: Option<Load>, now: Instant) {
        self.queued = queued.min(now - self.started);
        self.first_byte = Some(now);
        self.with(|host| {
            host.heard = Some(now);
            if let Some(load) = load {
                host.take(load, now);
            }
        });
        self.hosts.mark_up(&self.node);
    }

    /// The reply came to its end.
    pub(crate) fn finished(&mut self, n_tokens: Option<u64>, now: Instant) {
        self.is_trial = false;
        let first_byte = self.first_byte.unwrap_or(now);
        let begun = self.started + self.queued;
        let until_first = first_byte.saturating_duration_since(begun).as_secs_f64();
        let whole = now.saturating_duration_since(begun).as_secs_f64();
        let streamed = now.saturating_duration_since(first_byte).as_secs_f64();
        self.with(|host| {
            let model = host.model(&self.model);
            model.breaker.on_success();
            model.whole.add(whole);
            let n_tokens = n_tokens.and_then(|n| u32::try_from(n).ok());
            // Of a few tokens, or of an answer that came at once, no speed can be told.
            if let Some(n) = n_tokens.filter(|n| *n > 1 && streamed > 0.001) {
                model.first_byte.add(until_first);
                model.n_tokens.add(f64::from(n));
                model.rate.add(f64::from(n) / streamed);
            }
        });
    }

    /// The model server failed: an answer with a server's error, a silence, or one that broke off.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.is_trial = false;
        self.with(|host| host.model(&self.model).breaker.on_failure(now));
    }

    /// The host had no room.
    pub(crate) fn refused(&mut self, retry_after: Option<Duration>, now: Instant) {
        let pause = retry_after.unwrap_or(FULL_FOR).min(FULL_LONGEST);
        self.with(|host| {
            host.heard = Some(now);
            host.fill(now + pause);
        });
    }

    /// The connection ended before its answer began. A door that went away is found out by the probe that this asks for.
    pub(crate) fn broken(&mut self, now: Instant) {
        self.failed(now);
        self.with(|host| {
            host.wanted = Some(now);
            host.heard = None;
            host.probed = None;
        });
        self.hosts.sooner.notify_one();
    }

    /// The host cannot be reached.
    pub(crate) fn unreachable(&mut self, now: Instant) {
        self.hosts.mark_down(self.node, now);
    }

    fn with<T>(&self, change: impl FnOnce(&mut Host) -> T) -> T {
        change(self.hosts.lock().host(self.node))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let now = Instant::now();
        self.with(|host| {
            host.end(now);
            if self.is_trial {
                host.model(&self.model).breaker.on_left(now);
            }
        });
    }
}

impl<'a> Watching<'a> {
    fn start(work: &'a Work) -> Self {
        work.with(|host| {
            host.n_watching += 1;
            host.wanted.get_or_insert(work.started);
        });
        work.hosts.sooner.notify_one();
        Self(work)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0
            .with(|host| host.n_watching = host.n_watching.saturating_sub(1));
    }
}
