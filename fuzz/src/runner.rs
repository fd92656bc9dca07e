//! Feeds seeds to a target, on all cores, and says how fast.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Entry, Tape};

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Cases that were tried.
    pub n_cases: u64,
    /// How long that took.
    pub time: Duration,
    /// The first seed that failed on each core.
    pub failed: Vec<u64>,
}

impl Outcome {
    /// Cases in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let n_cases = u32::try_from(self.n_cases).map_or_else(|_| u32::MAX.into(), f64::from);
        n_cases / self.time.as_secs_f64().max(1e-9)
    }
}

/// Tries the seeds from `first` on, `n_cases` of them.
///
/// # Panics
/// When a thread cannot be started.
#[must_use]
pub fn run(entry: &Entry, first: u64, n_cases: u64, n_threads: u64) -> Outcome {
    let start = Instant::now();
    let (n_done, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .map(|thread| {
                let (n_done, has_failed) = (&n_done, &has_failed);
                scope.spawn(move || {
                    let mut target = (entry.make)();
                    for n in (thread..n_cases).step_by(usize::try_from(n_threads).unwrap_or(1)) {
                        if has_failed.load(Ordering::Relaxed) {
                            return None;
                        }
                        let seed = first.wrapping_add(n);
                        let case = || target.case(&mut Tape::seeded(seed));
                        // The target is dropped after a panic, so it does not matter what that left behind.
                        if catch_unwind(AssertUnwindSafe(case)).is_err() {
                            has_failed.store(true, Ordering::Relaxed);
                            return Some(seed);
                        }
                        n_done.fetch_add(1, Ordering::Relaxed);
                    }
                    None
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("panics are caught"))
            .collect()
    });
    Outcome {
        n_cases: n_done.into_inner(),
        time: start.elapsed(),
        failed,
    }
}
