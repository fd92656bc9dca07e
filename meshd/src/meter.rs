//! Usage of this host: added up by day, guest and model, and each record on disk. Counts alone, never content.
//!
//! Serving never waits for it. A record is in the sums at once and on disk within about a second; what a full disk does not
//! take waits, within bounds, until there is room.

mod entry;
mod lines;
mod spool;
mod totals;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_proto::usage::{UsageRecord, UsageReport};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::gateway::{Account, Spending, UsageSink};
use crate::metrics::{USAGE_LOST, USAGE_WRITTEN};
use lines::{Block, Lines};
use spool::Spool;
use totals::Totals;

/// Records that may wait for the disk; the oldest are lost where there are more, and counted as such.
const N_UNWRITTEN_MAX: usize = 8_192;
/// How much is written in one go, and from how much on it is not waited for more.
const WRITTEN_AT_ONCE: usize = 1 << 20;
/// How long more is waited for when something came.
const WRITE_AFTER: Duration = Duration::from_secs(1);
/// How often the sums are written.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How long a disk that took nothing is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The meter. What it holds is written when it is stopped.
#[derive(Debug)]
pub struct Meter {
    inbox: Inbox,
    spending: Arc<Spending>,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Where records are left.
#[derive(Debug, Clone)]
pub struct Inbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// Told when there is something again, and when there is much.
    came: Notify,
}

#[derive(Debug, Default)]
struct Book {
    totals: Totals,
    lines: Lines,
    /// Whether the disk took nothing when it was last tried.
    is_failing: bool,
}

impl Book {
    /// How many records the disk does not take. What came within the last second is on its way, as always.
    fn n_unwritten(&self) -> usize {
        if self.is_failing {
            self.lines.n_records()
        } else {
            0
        }
    }
}

impl Inbox {
    fn with(totals: Totals) -> Self {
        let book = Book {
            totals,
            ..Book::default()
        };
        Self(Arc::new(Shared {
            book: Mutex::new(book),
            came: Notify::new(),
        }))
    }
}

impl UsageSink for Inbox {
    /// It is in the sums when this returns.
    fn take(&self, record: &UsageRecord) {
        let mut book = lock(&self.0.book);
        book.totals.count(record);
        let lines = &mut book.lines;
        let (n_before, n_bytes_before) = (lines.n_records(), lines.n_bytes());
        let n_lost = match lines.push(record) {
            Ok(()) => lines.shorten(N_UNWRITTEN_MAX),
            Err(_) => 1,
        };
        let is_much = n_bytes_before < WRITTEN_AT_ONCE && lines.n_bytes() >= WRITTEN_AT_ONCE;
        drop(book);
        lost(n_lost);
        if n_before == 0 || is_much {
            self.0.came.notify_one();
        }
    }
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
        let inbox = Inbox::with(totals);
        let writer = Writer::new(spool, &inbox);
        let stop = CancellationToken::new();
        let task = tokio::spawn(writer.run(stop.clone()));
        Self {
            inbox,
            spending,
            stop,
            task: Mutex::new(Some(AbortOnDropHandle::new(task))),
        }
    }

    /// Where records go.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// What guests used of late.
    #[must_use]
    pub fn spending(&self) -> Arc<Spending> {
        Arc::clone(&self.spending)
    }

    /// What was used in the last so many days, today included.
    #[must_use]
    pub fn report(&self, n_days: u32) -> UsageReport {
        let book = lock(&self.inbox.0.book);
        let today = totals::day_of(SystemTime::now());
        UsageReport {
            n_days,
            rows: book
                .totals
                .rows(today.saturating_sub(u64::from(n_days.max(1)) - 1)),
            n_unwritten: u64::try_from(book.n_unwritten()).unwrap_or(u64::MAX),
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

fn lost(n: usize) {
    if n > 0 {
        metrics::counter!(USAGE_LOST).increment(n as u64);
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
    shared: Arc<Shared>,
    save_at: Instant,
    /// Whether the sums are not those that were saved last.
    is_changed: bool,
}

impl Writer {
    fn new(spool: Spool, inbox: &Inbox) -> Self {
        Self {
            spool,
            shared: Arc::clone(&inbox.0),
            save_at: Instant::now() + SAVE_EVERY,
            is_changed: false,
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        loop {
            // While nothing came and nothing waits, nobody is woken.
            let wait = async {
                let is_failing = lock(&shared.book).is_failing;
                if is_failing {
                    tokio::time::sleep(RETRY_AFTER).await;
                } else if self.is_changed {
                    tokio::select! {
                        () = shared.came.notified() => {}
                        () = tokio::time::sleep_until(self.save_at) => return,
                    }
                } else {
                    shared.came.notified().await;
                }
                if lock(&shared.book).lines.n_bytes() < WRITTEN_AT_ONCE {
                    tokio::select! {
                        () = tokio::time::sleep(WRITE_AFTER) => {}
                        () = shared.came.notified() => {}
                    }
                }
            };
            tokio::select! {
                () = wait => self.write(false).await,
                () = stop.cancelled() => break,
            }
        }
        self.write(true).await;
    }

    async fn write(&mut self, is_last: bool) {
        let now = Instant::now();
        let (mut blocks, totals) = {
            let mut book = lock(&self.shared.book);
            let blocks = book.lines.take();
            self.is_changed |= !blocks.is_empty();
            let saves = self.is_changed && (is_last || now >= self.save_at);
            (blocks, saves.then(|| book.totals.clone()))
        };
        let saves = totals.is_some();
        let mut spool = std::mem::take(&mut self.spool);
        let done = tokio::task::spawn_blocking(move || {
            let (written, appended) = append(&mut spool, &mut blocks);
            // Sums that hold records which are not on disk would count them twice after a crash.
            let saved = match (&appended, totals) {
                (Ok(()), Some(totals)) => totals::write(spool.root(), &totals, spool.end()),
                (Ok(()), None) | (Err(_), _) => Ok(()),
            };
            (spool, written, blocks, appended, saved)
        });
        let Ok((spool, written, unwritten, appended, saved)) = done.await else {
            tracing::error!("writing usage records broke");
            return;
        };
        self.spool = spool;
        let n_written: usize = written.iter().map(Block::n_records).sum();
        metrics::counter!(USAGE_WRITTEN).increment(n_written as u64);
        let done = appended.and(saved);
        if saves && done.is_ok() {
            self.is_changed = false;
            self.save_at = now + SAVE_EVERY;
        }
        let mut book = lock(&self.shared.book);
        let was_failing = std::mem::replace(&mut book.is_failing, done.is_err());
        book.lines.put_back(unwritten);
        let n_lost = book.lines.shorten(N_UNWRITTEN_MAX);
        if written.len() <= 1 {
            book.lines.rest();
        }
        for block in written {
            book.lines.reuse(block);
        }
        drop(book);
        lost(n_lost);
        match done {
            Ok(()) if was_failing => tracing::info!("usage records are written again"),
            Err(err) if !was_failing => {
                tracing::warn!(%err, "usage records cannot be written; serving goes on, and they wait for room");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Writes what waits, some at a time; gives what was written, and leaves what was not.
fn append(spool: &mut Spool, waiting: &mut VecDeque<Block>) -> (Vec<Block>, io::Result<()>) {
    let mut written = Vec::new();
    while !waiting.is_empty() {
        let mut n_bytes = 0;
        let n = waiting
            .iter()
            .take_while(|block| {
                let fits = n_bytes < WRITTEN_AT_ONCE;
                n_bytes += block.text().len();
                fits
            })
            .count();
        if let Err(err) = spool.append(waiting.iter().take(n).map(Block::text)) {
            return (written, Err(err));
        }
        written.extend(waiting.drain(..n));
    }
    (written, Ok(()))
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
