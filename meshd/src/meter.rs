//! Usage of this host: added up by day, guest and model, and each record on disk. Counts alone, never content.
//!
//! Serving never waits for it. A record is in the sums at once and on disk within about a second; what a full disk does not
//! take waits, within bounds, until there is room.

mod spool;
mod totals;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_proto::usage::{UsageRecord, UsageReport};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::gateway::{Account, Spending};
use crate::metrics::{USAGE_LOST, USAGE_WRITTEN};
use spool::Spool;
use totals::Totals;

/// Records that may be on their way here; more are lost, and counted as such.
const N_PENDING_MAX: usize = 4_096;
/// Records that may wait for the disk.
const N_UNWRITTEN_MAX: usize = 8_192;
/// How long more is waited for when one came: a wake-up for each would cost a busy gateway more than its record.
const GATHER: Duration = Duration::from_millis(20);
/// Records that are written in one go, however much more there is: a busy host must not hold a second's worth in memory.
const N_WRITTEN_AT_ONCE: usize = 1_024;
/// How often what came is written.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How often the sums are written.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How long a disk that took nothing is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The meter. What it holds is written when it is stopped.
#[derive(Debug)]
pub struct Meter {
    sender: mpsc::Sender<UsageRecord>,
    spending: Arc<Spending>,
    book: Arc<Mutex<Book>>,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug, Default)]
struct Book {
    totals: Totals,
    n_unwritten: usize,
}

impl Meter {
    /// Begins, with what is on disk below the state directory. What cannot be read there is left out, and said.
    #[must_use]
    pub fn start(state_dir: &Path) -> Self {
        let root = state_dir.join("usage");
        let (totals, spool) = load(&root);
        let spending = Arc::new(Spending::default());
        let now = SystemTime::now();
        for (account, model, n_tokens) in totals.of_day(totals::day_of(now)) {
            spending.add(account, model, n_tokens, now);
        }
        let book = Arc::new(Mutex::new(Book {
            totals,
            n_unwritten: 0,
        }));
        let (sender, records) = mpsc::channel(N_PENDING_MAX);
        let writer = Writer {
            spool,
            book: Arc::clone(&book),
            waiting: VecDeque::new(),
            retry_at: Instant::now(),
            save_at: Instant::now() + SAVE_EVERY,
            is_changed: false,
            is_failing: false,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(writer.run(records, stop.clone()));
        Self {
            sender,
            spending,
            book,
            stop,
            task: Mutex::new(Some(AbortOnDropHandle::new(task))),
        }
    }

    /// Where records go.
    #[must_use]
    pub fn sender(&self) -> mpsc::Sender<UsageRecord> {
        self.sender.clone()
    }

    /// What guests used of late.
    #[must_use]
    pub fn spending(&self) -> Arc<Spending> {
        Arc::clone(&self.spending)
    }

    /// What was used in the last so many days, today included.
    #[must_use]
    pub fn report(&self, n_days: u32) -> UsageReport {
        let book = lock(&self.book);
        let today = totals::day_of(SystemTime::now());
        UsageReport {
            n_days,
            rows: book
                .totals
                .rows(today.saturating_sub(u64::from(n_days.max(1)) - 1)),
            n_unwritten: u64::try_from(book.n_unwritten).unwrap_or(u64::MAX),
        }
    }

    /// Writes what has come, and ends.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.take()
        };
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::error!("the meter's task broke");
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(root: &Path) -> (Totals, Spool) {
    let (mut totals, from) = match totals::read(root) {
        Ok(Some(saved)) => saved,
        Ok(None) => Default::default(),
        Err(err) => {
            tracing::warn!(%err, "the sums of usage cannot be read; they begin anew with the records that are there");
            Default::default()
        }
    };
    let mut spool = Spool::at(root);
    if let Err(err) = spool.replay(from, |record| totals.count(&record)) {
        tracing::warn!(%err, "usage records cannot be read");
    }
    (totals, spool)
}

struct Writer {
    spool: Spool,
    book: Arc<Mutex<Book>>,
    waiting: VecDeque<UsageRecord>,
    retry_at: Instant,
    save_at: Instant,
    is_changed: bool,
    is_failing: bool,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<UsageRecord>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(WRITE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut came = Vec::new();
        loop {
            // While nothing came and nothing waits, nobody is woken.
            let is_idle = self.waiting.is_empty() && !self.is_changed;
            tokio::select! {
                n = records.recv_many(&mut came, N_WRITTEN_AT_ONCE) => {
                    if n == 0 {
                        break;
                    }
                    self.take(came.drain(..));
                    if self.waiting.len() >= N_WRITTEN_AT_ONCE {
                        self.write(false).await;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(GATHER) => {}
                        () = stop.cancelled() => break,
                    }
                }
                () = stop.cancelled() => break,
                _ = tick.tick(), if !is_idle => self.write(false).await,
            }
        }
        self.take(std::iter::from_fn(|| records.try_recv().ok()));
        self.write(true).await;
    }

    fn take(&mut self, came: impl Iterator<Item = UsageRecord>) {
        let mut book = lock(&self.book);
        for record in came {
            if self.waiting.len() >= N_UNWRITTEN_MAX {
                self.waiting.pop_front();
                metrics::counter!(USAGE_LOST).increment(1);
            }
            book.totals.count(&record);
            self.waiting.push_back(record);
            self.is_changed = true;
        }
        // What came within the last second is on its way, as always.
        if self.is_failing {
            book.n_unwritten = self.waiting.len();
        }
    }

    async fn write(&mut self, is_last: bool) {
        let now = Instant::now();
        if self.is_failing && now < self.retry_at && !is_last {
            return;
        }
        let saves = self.is_changed && (is_last || now >= self.save_at);
        let mut spool = std::mem::take(&mut self.spool);
        let mut waiting = std::mem::take(&mut self.waiting);
        let n_before = waiting.len();
        let totals = saves.then(|| lock(&self.book).totals.clone());
        let done = tokio::task::spawn_blocking(move || {
            let appended = append(&mut spool, &mut waiting);
            // Sums that hold records which are not on disk would count them twice after a crash.
            let saved = match (&appended, totals) {
                (Ok(()), Some(totals)) => totals::write(spool.root(), &totals, spool.end()),
                (Ok(()), None) | (Err(_), _) => Ok(()),
            };
            (spool, waiting, appended, saved)
        });
        let Ok((spool, waiting, appended, saved)) = done.await else {
            tracing::error!("writing usage records broke");
            return;
        };
        self.spool = spool;
        match appended.and(saved) {
            Ok(()) => {
                if self.is_failing {
                    tracing::info!("usage records are written again");
                }
                self.is_failing = false;
                if saves {
                    self.is_changed = false;
                    self.save_at = now + SAVE_EVERY;
                }
            }
            Err(err) => {
                if !self.is_failing {
                    tracing::warn!(%err, "usage records cannot be written; serving goes on, and they wait for room");
                }
                self.is_failing = true;
                self.retry_at = now + RETRY_AFTER;
            }
        }
        let n_written = u64::try_from(n_before - waiting.len()).unwrap_or(u64::MAX);
        metrics::counter!(USAGE_WRITTEN).increment(n_written);
        self.waiting = waiting;
        lock(&self.book).n_unwritten = self.waiting.len();
    }
}

/// Writes what waits, some at a time; what could not be written is left.
fn append(spool: &mut Spool, waiting: &mut VecDeque<UsageRecord>) -> io::Result<()> {
    while !waiting.is_empty() {
        let n = waiting.len().min(N_WRITTEN_AT_ONCE);
        spool.append(waiting.range(..n))?;
        waiting.drain(..n);
    }
    // A burst's room is not kept.
    waiting.shrink_to(N_WRITTEN_AT_ONCE);
    Ok(())
}

/// On whose account a record's tokens go.
fn account(record: &UsageRecord) -> Account {
    if record.client.is_tagged {
        Account::Tagged(record.client.node)
    } else if record.client.owner == record.host.owner {
        Account::Owner
    } else {
        Account::User(record.client.owner)
    }
}

#[cfg(test)]
mod tests;
