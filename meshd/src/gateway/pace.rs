//! How fast answers come: each model's pace by its own last answers, and how many tokens went out of this host in all.
//!
//! Never keeps what was said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_proto::share::{N_MODELS_MAX, Speed};

/// How much the last answer weighs against all before it.
const WEIGHT: f64 = 0.2;
/// An answer of fewer tokens tells nothing of the pace.
const N_TOKENS_MIN: u64 = 8;
/// What is told changes no more often than this, and only when it is off by more than [`TOLERANCE`]: each change goes to the
/// whole mesh.
const TOLD_FOR: Duration = Duration::from_secs(30);
const TOLERANCE: f64 = 0.2;

/// The pace of every model of this host.
#[derive(Debug, Default)]
pub struct Pace {
    models: Mutex<BTreeMap<String, Measured>>,
    n_output: AtomicU64,
}

#[derive(Debug)]
struct Measured {
    tokens_per_second: f64,
    first_token_ms: f64,
    told: Option<(Instant, Speed)>,
}

impl Pace {
    /// Output tokens of all answers so far; of those under way, their pieces.
    #[must_use]
    pub fn n_output(&self) -> u64 {
        self.n_output.load(Ordering::Relaxed)
    }

    /// What the mesh is told of a model; nothing before it has answered.
    #[must_use]
    pub fn told(&self, model: &str, now: Instant) -> Option<Speed> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let measured = models.get_mut(model)?;
        let fresh = Speed {
            tokens_per_second: two_digits(measured.tokens_per_second),
            first_token_ms: two_digits(measured.first_token_ms) as u64,
        };
        if let Some((at, told)) = measured.told {
            let is_near = is_near(told.tokens_per_second, measured.tokens_per_second)
                && is_near(told.first_token_ms as f64, measured.first_token_ms);
            if is_near || now.saturating_duration_since(at) < TOLD_FOR {
                return Some(told);
            }
        }
        measured.told = Some((now, fresh));
        Some(fresh)
    }

    /// Forgets models that are no longer there.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|model, _| is_there(model));
    }

    fn observe(&self, model: &str, first_token: Duration, n_tokens: u64, rest: Duration) {
        if n_tokens < N_TOKENS_MIN || rest.is_zero() {
            return;
        }
        let tokens_per_second = (n_tokens - 1) as f64 / rest.as_secs_f64();
        let first_token_ms = first_token.as_secs_f64() * 1_000.0;
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = models.len() < N_MODELS_MAX;
        match models.get_mut(model) {
            Some(measured) => {
                let mix = |old: &mut f64, new: f64| *old += WEIGHT * (new - *old);
                mix(&mut measured.tokens_per_second, tokens_per_second);
                mix(&mut measured.first_token_ms, first_token_ms);
            }
            None if has_room => {
                let measured = Measured {
                    tokens_per_second,
                    first_token_ms,
                    told: None,
                };
                models.insert(model.to_owned(), measured);
            }
            None => {}
        }
    }
}

/// Whether an old figure still stands for a new one.
fn is_near(told: f64, new: f64) -> bool {
    (told - new).abs() <= TOLERANCE * told.max(1.0)
}

fn two_digits(value: f64) -> f64 {
    if value < 10.0 {
        return (value * 10.0).round() / 10.0;
    }
    let unit = 10f64.powf(value.log10().floor() - 1.0);
    (value / unit).round() * unit
}

/// Looks at one answer on its way.
#[derive(Debug)]
pub(crate) struct Watch {
    pace: Arc<Pace>,
    model: String,
    started: Instant,
    first: Option<Instant>,
    n_pieces: u64,
}

impl Watch {
    /// Begins with the work on the request, when it has left the queue.
    pub(crate) fn new(pace: &Arc<Pace>, model: &str, started: Instant) -> Self {
        Self {
            pace: Arc::clone(pace),
            model: model.to_owned(),
            started,
            first: None,
            n_pieces: 0,
        }
    }

    /// A piece of a stream went out: a token, mostly.
    pub(crate) fn piece(&mut self) {
        self.n_pieces += 1;
        self.pace.n_output.fetch_add(1, Ordering::Relaxed);
        if self.first.is_none() {
            self.first = Some(Instant::now());
        }
    }

    /// The answer is whole, with as many tokens as the backend counted.
    pub(crate) fn end(self, n_tokens: Option<u64>) {
        let Some(n_tokens) = n_tokens else { return };
        let missed = n_tokens.saturating_sub(self.n_pieces);
        self.pace.n_output.fetch_add(missed, Ordering::Relaxed);
        if let Some(first) = self.first {
            let first_token = first.saturating_duration_since(self.started);
            self.pace
                .observe(&self.model, first_token, n_tokens, first.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_told_follows_slowly_and_in_round_figures() {
        let pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.told("m", start), None);
        pace.observe("m", 123 * MS, 4, 100 * MS);
        assert_eq!(pace.told("m", start), None, "too short an answer");
        pace.observe("m", 123 * MS, 101, 1_234 * MS);
        let first = Speed {
            tokens_per_second: 81.0,
            first_token_ms: 120,
        };
        assert_eq!(pace.told("m", start), Some(first));
        for _ in 0..50 {
            pace.observe("m", 123 * MS, 101, 10_000 * MS);
        }
        assert_eq!(pace.told("m", start + 10_000 * MS), Some(first), "too soon");
        let later = pace.told("m", start + 31_000 * MS).unwrap();
        assert_eq!(later.tokens_per_second, 10.0);
        pace.observe("m", 123 * MS, 101, 9_900 * MS);
        assert_eq!(
            pace.told("m", start + 90_000 * MS),
            Some(later),
            "no news worth telling"
        );
        pace.retain(|model| model != "m");
        assert_eq!(pace.told("m", start + 90_000 * MS), None);
    }

    #[test]
    fn tokens_are_counted_once() {
        let pace = Arc::new(Pace::default());
        let mut streamed = Watch::new(&pace, "m", Instant::now());
        streamed.piece();
        streamed.piece();
        assert_eq!(pace.n_output(), 2);
        streamed.end(Some(5));
        Watch::new(&pace, "m", Instant::now()).end(Some(7));
        Watch::new(&pace, "m", Instant::now()).end(None);
        assert_eq!(pace.n_output(), 12);
    }

    #[test]
    fn figures_have_two_digits() {
        for (value, want) in [
            (0.0, 0.0),
            (3.24, 3.2),
            (9.96, 10.0),
            (123.0, 120.0),
            (98_765.0, 99_000.0),
        ] {
            assert!((two_digits(value) - want).abs() < 1e-6, "{value}");
        }
    }
}
