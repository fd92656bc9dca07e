//! When guests are not served: in quiet hours, and while the owner's other programs use the GPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_proto::door::{Closed, QuietHours};
use tokio::sync::watch;

use super::ShareConfig;
use super::gpu_use::{GpuUse, GpuUseReader};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);
/// A card that works less than this, percent, for others than the model servers is not in use: a desktop takes a few.
const BUSY_PERCENT: u32 = 10;
/// How many looks in a row must find the card in use: a short burst is none of a game.
const N_BUSY: u32 = 2;
/// How long the card must be free until guests are let in again.
const FREE_FOR: Duration = Duration::from_secs(60);

/// How much the door works, for those who tell its work from that of others.
#[derive(Debug, Default)]
pub struct Occupancy {
    n_active: AtomicU32,
    n_changes: AtomicU64,
}

/// A request in work; over when dropped.
#[derive(Debug)]
pub(crate) struct Working(Arc<Occupancy>);

impl Occupancy {
    /// A request begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Working {
        self.n_active.fetch_add(1, Ordering::Relaxed);
        self.n_changes.fetch_add(1, Ordering::Relaxed);
        Working(Arc::clone(self))
    }

    /// Whether nothing is in work, and how often that changed.
    fn look(&self) -> (bool, u64) {
        let is_idle = self.n_active.load(Ordering::Relaxed) == 0;
        (is_idle, self.n_changes.load(Ordering::Relaxed))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.n_active.fetch_sub(1, Ordering::Relaxed);
        self.0.n_changes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Looks, as long as the owner set something that calls for it, and tells of changes. Ends with those who set it.
pub(super) async fn watch(
    mut share: watch::Receiver<ShareConfig>,
    occupancy: Arc<Occupancy>,
    closed: watch::Sender<Option<Closed>>,
) {
    let mut reader = Some(GpuUseReader::default());
    let mut watch = GpuWatch::default();
    let mut n_changes = 0;
    loop {
        let config = share.borrow_and_update().clone();
        let watches_gpu = config.is_on && config.door.pauses_on_gpu_use;
        let in_use = if watches_gpu {
            let mut taken = reader.take().unwrap_or_default();
            let read = tokio::task::spawn_blocking(move || {
                let found = taken.read();
                (taken, found)
            });
            let found = match read.await {
                Ok((taken, found)) => {
                    reader = Some(taken);
                    found
                }
                Err(_) => GpuUse::default(),
            };
            let (is_idle, n) = occupancy.look();
            let was_idle = is_idle && n == n_changes;
            n_changes = n;
            watch.observe(found, was_idle, Instant::now())
        } else {
            watch = GpuWatch::default();
            false
        };
        let is_timed = config.is_on && !config.door.quiet.is_empty();
        let quiet = if is_timed {
            quiet_now(&config.door.quiet)
        } else {
            None
        };
        let found = quiet.or_else(|| in_use.then_some(Closed::GpuInUse));
        closed.send_if_modified(|current| {
            let is_new = *current != found;
            if is_new {
                tracing::info!(closed = ?found, "the door");
                *current = found;
            }
            is_new
        });
        let pause = async {
            if watches_gpu || is_timed {
                tokio::time::sleep(LOOK).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = pause => {}
            changed = share.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

fn quiet_now(spans: &[QuietHours]) -> Option<Closed> {
    let local = jiff::Zoned::now();
    let day = u8::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
    let minute =
        u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
    quiet_at(spans, day, minute, SystemTime::now())
}

/// Whether it is quiet at a minute of a day (0 is Monday), and until when.
fn quiet_at(spans: &[QuietHours], day: u8, minute: u16, now: SystemTime) -> Option<Closed> {
    let left = spans
        .iter()
        .filter_map(|span| span.minutes_left(day, minute))
        .max()?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let until_ms = (now.as_secs() / 60 + u64::from(left)) * 60_000;
    Some(Closed::Quiet { until_ms })
}

/// Decides from looks whether the card is in use.
#[derive(Debug, Default)]
struct GpuWatch {
    n_busy: u32,
    is_in_use: bool,
    free_since: Option<Instant>,
}

impl GpuWatch {
    /// Takes a look. `was_idle` says that the door had nothing in work since the last one: what the card does then is not for it.
    fn observe(&mut self, found: GpuUse, was_idle: bool, now: Instant) -> bool {
        let percent = match found.by_others_percent {
            Some(percent) => percent,
            None if was_idle => found.percent.unwrap_or(0),
            None => 0,
        };
        if percent >= BUSY_PERCENT {
            self.n_busy = self.n_busy.saturating_add(1);
            self.free_since = None;
            self.is_in_use |= self.n_busy >= N_BUSY;
            return self.is_in_use;
        }
        self.n_busy = 0;
        let free_since = *self.free_since.get_or_insert(now);
        if now.saturating_duration_since(free_since) >= FREE_FOR {
            self.is_in_use = false;
        }
        self.is_in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: GpuUse = GpuUse {
        percent: Some(100),
        by_others_percent: Some(3),
    };
    const GAME: GpuUse = GpuUse {
        percent: Some(100),
        by_others_percent: Some(80),
    };
    /// Whose work it is cannot be told.
    const SOMEBODY: GpuUse = GpuUse {
        percent: Some(70),
        by_others_percent: None,
    };

    #[test]
    fn a_game_closes_the_door_and_its_end_opens_it_a_minute_later() {
        let mut watch = GpuWatch::default();
        let mut now = Instant::now();
        let mut look = |found, was_idle| {
            now += LOOK;
            watch.observe(found, was_idle, now)
        };
        assert!(!look(OURS, false), "the door's own work");
        assert!(!look(GAME, false), "one look is not enough");
        assert!(!look(OURS, false));
        assert!(!look(GAME, false));
        assert!(look(GAME, false));
        for _ in 0..30 {
            assert!(look(OURS, false), "not free for a minute yet");
        }
        assert!(!look(OURS, false));
    }

    #[test]
    fn a_loading_screen_does_not_let_guests_in() {
        let mut watch = GpuWatch::default();
        let mut now = Instant::now();
        for _ in 0..3 {
            now += LOOK;
            watch.observe(GAME, true, now);
        }
        for _ in 0..10 {
            for found in [OURS, OURS, OURS, GAME] {
                now += LOOK * 4;
                assert!(watch.observe(found, true, now));
            }
        }
    }

    #[test]
    fn where_processes_cannot_be_told_apart_the_card_counts_while_the_door_is_idle() {
        let mut watch = GpuWatch::default();
        let now = Instant::now();
        for _ in 0..9 {
            assert!(!watch.observe(SOMEBODY, false, now), "the door was at work");
        }
        assert!(!watch.observe(SOMEBODY, true, now));
        assert!(watch.observe(SOMEBODY, true, now));
        let nothing = GpuUse::default();
        assert!(!GpuWatch::default().observe(nothing, true, now), "no card");
    }

    #[test]
    fn quiet_hours_end_at_a_full_minute() {
        let spans = [
            "22:00-07:00".parse().unwrap(),
            "sat,sun 00:00-24:00".parse().unwrap(),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000 * 60 + 17);
        assert_eq!(quiet_at(&spans, 0, 12 * 60, now), None);
        let closed = quiet_at(&spans, 0, 23 * 60, now);
        let until_ms = (1_000_000 + 8 * 60) * 60_000;
        assert_eq!(closed, Some(Closed::Quiet { until_ms }));
        let closed = quiet_at(&spans, 5, 23 * 60, now);
        assert_eq!(
            closed,
            Some(Closed::Quiet { until_ms }),
            "the longer of two"
        );
    }

    #[test]
    fn work_at_the_door_is_seen_while_it_lasts() {
        let occupancy = Arc::new(Occupancy::default());
        let before = occupancy.look();
        let working = occupancy.begin();
        assert!(!occupancy.look().0);
        drop(working);
        let after = occupancy.look();
        assert!(after.0 && after.1 != before.1, "a request came and went");
    }

    #[tokio::test]
    async fn all_day_quiet_hours_close_the_door_and_their_end_opens_it() {
        let mut config = ShareConfig {
            is_on: true,
            ..ShareConfig::default()
        };
        config.door.quiet = vec!["00:00-24:00".parse().unwrap()];
        let (share_tx, share) = watch::channel(config.clone());
        let (closed_tx, mut closed) = watch::channel(None);
        let task = tokio::spawn(watch(share, Arc::default(), closed_tx));
        let wait = Duration::from_secs(10);
        let is_closed = closed.wait_for(Option::is_some);
        tokio::time::timeout(wait, is_closed)
            .await
            .unwrap()
            .unwrap();
        config.door.quiet.clear();
        share_tx.send_replace(config);
        let is_open = closed.wait_for(Option::is_none);
        tokio::time::timeout(wait, is_open).await.unwrap().unwrap();
        drop(share_tx);
        tokio::time::timeout(wait, task).await.unwrap().unwrap();
    }
}
