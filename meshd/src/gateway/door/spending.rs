//! What guests used of late: requests by the minute, tokens by the day. Time is an argument.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::account::{Account, Bound, GateKey};
use crate::inventory::pattern;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 3_600;
/// How much of an answer that is not written yet counts as used: few are longer, and nobody is to be kept out by a bound that
/// no answer reaches.
const RESERVED_OUTPUT_MAX: u64 = 1_024;

/// A limit is reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Over {
    #[error("you may send {n} requests a minute for {models} here; try again in {retry_secs} s")]
    Rate {
        n: u32,
        models: String,
        retry_secs: u32,
    },
    #[error(
        "guests may send {n} requests a minute for {models} here, all together; try again in {retry_secs} s"
    )]
    RateOfAll {
        n: u32,
        models: String,
        retry_secs: u32,
    },
    #[error("your {n} tokens a day for {models} on this host are used up; more come at 00:00 UTC")]
    Tokens {
        n: u64,
        models: String,
        retry_secs: u32,
    },
    #[error(
        "the {n} tokens a day that this host has for all its guests, for {models}, are used up; more come at 00:00 UTC"
    )]
    TokensOfAll {
        n: u64,
        models: String,
        retry_secs: u32,
    },
}

impl Over {
    pub(crate) const fn retry_secs(&self) -> u32 {
        match self {
            Self::Rate { retry_secs, .. }
            | Self::RateOfAll { retry_secs, .. }
            | Self::Tokens { retry_secs, .. }
            | Self::TokensOfAll { retry_secs, .. } => *retry_secs,
        }
    }

    /// Few values, for metrics.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Rate { .. } | Self::RateOfAll { .. } => "rate",
            Self::Tokens { .. } | Self::TokensOfAll { .. } => "tokens",
        }
    }
}

/// Counts of use, for the life of the daemon.
#[derive(Debug, Default)]
pub struct Spending {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    rates: BTreeMap<GateKey, Window>,
    day: u64,
    tokens: BTreeMap<(Account, String), Spent>,
}

/// Requests of this minute and the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    minute: u64,
    n_now: u32,
    n_before: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    n_used: u64,
    n_reserved: u64,
}

/// Tokens that a request in work may come to; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    spending: Arc<Spending>,
    key: (Account, String),
    day: u64,
    n: u64,
}

impl Reserved {
    /// The request is over and took so many.
    pub(crate) fn spend(&self, n_tokens: u64, now: SystemTime) {
        self.spending.add(self.key.0, &self.key.1, n_tokens, now);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut inner = self.spending.lock();
        if inner.day == self.day
            && let Some(spent) = inner.tokens.get_mut(&self.key)
        {
            spent.n_reserved = spent.n_reserved.saturating_sub(self.n);
        }
    }
}

impl Spending {
    /// Counts tokens that were used.
    pub(crate) fn add(&self, account: Account, model: &str, n_tokens: u64, now: SystemTime) {
        let mut inner = self.lock();
        inner.turn_to(seconds(now) / DAY);
        let spent = inner.tokens.entry((account, model.to_owned())).or_default();
        spent.n_used = spent.n_used.saturating_add(n_tokens);
    }

    /// Lets a request in that stays within all bounds, and counts it. It reads about `n_prompt` tokens and writes at most
    /// `n_output`.
    ///
    /// # Errors
    /// The first bound that is reached; nothing is counted then.
    pub(crate) fn admit(
        self: &Arc<Self>,
        account: Account,
        model: &str,
        bounds: &[Bound<'_>],
        n_prompt: u64,
        n_output: u64,
        now: SystemTime,
    ) -> Result<Reserved, Over> {
        let now = seconds(now);
        let mut inner = self.lock();
        inner.turn_to(now / DAY);
        for bound in bounds {
            inner.check_tokens(bound, now)?;
            inner.check_rate(bound, now)?;
        }
        for bound in bounds
            .iter()
            .filter(|bound| bound.limit.per_minute.is_some())
        {
            inner
                .rates
                .entry(bound.key())
                .or_default()
                .count(now / MINUTE);
        }
        let n = n_prompt.saturating_add(n_output.min(RESERVED_OUTPUT_MAX));
        let key = (account, model.to_owned());
        let day = inner.day;
        let spent = inner.tokens.entry(key.clone()).or_default();
        spent.n_reserved = spent.n_reserved.saturating_add(n);
        Ok(Reserved {
            spending: Arc::clone(self),
            key,
            day,
            n,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn turn_to(&mut self, day: u64) {
        // A clock that is set back a little does not bring yesterday's tokens back.
        if day > self.day || day + 1 < self.day {
            self.day = day;
            self.tokens.clear();
            self.rates.clear();
        }
    }

    fn check_tokens(&self, bound: &Bound<'_>, now: u64) -> Result<(), Over> {
        let Some(n) = bound.limit.tokens_per_day else {
            return Ok(());
        };
        let counted = self.tokens.iter().filter(|((account, model), _)| {
            let is_meant = bound
                .account
                .map_or(*account != Account::Owner, |own| own == *account);
            is_meant && pattern::matches(&bound.limit.models, model)
        });
        let used = counted.fold(0_u64, |sum, (_, spent)| {
            sum.saturating_add(spent.n_used)
                .saturating_add(spent.n_reserved)
        });
        if used < n {
            return Ok(());
        }
        let retry_secs = u32::try_from(DAY - now % DAY).unwrap_or(u32::MAX);
        let models = bound.limit.models.clone();
        Err(match bound.account {
            Some(_) => Over::Tokens {
                n,
                models,
                retry_secs,
            },
            None => Over::TokensOfAll {
                n,
                models,
                retry_secs,
            },
        })
    }

    fn check_rate(&self, bound: &Bound<'_>, now: u64) -> Result<(), Over> {
        let Some(n) = bound.limit.per_minute else {
            return Ok(());
        };
        let window = self.rates.get(&bound.key()).copied().unwrap_or_default();
        let Some(retry_secs) = window.retry_secs(n, now) else {
            return Ok(());
        };
        let models = bound.limit.models.clone();
        Err(match bound.account {
            Some(_) => Over::Rate {
                n,
                models,
                retry_secs,
            },
            None => Over::RateOfAll {
                n,
                models,
                retry_secs,
            },
        })
    }
}

impl Window {
    fn at(self, minute: u64) -> Self {
        match minute.checked_sub(self.minute) {
            Some(0) | None => self,
            Some(1) => Self {
                minute,
                n_now: 0,
                n_before: self.n_now,
            },
            Some(_) => Self {
                minute,
                ..Self::default()
            },
        }
    }

    fn count(&mut self, minute: u64) {
        *self = self.at(minute);
        self.n_now = self.n_now.saturating_add(1);
    }

    /// When one more has room below `n` a minute, if it has none now. What came in the minute before counts by how much of it
    /// lies within the last sixty seconds.
    fn retry_secs(self, n: u32, now: u64) -> Option<u32> {
        let (n, n_steps) = (u64::from(n), 2 * MINUTE);
        let room_at = |at: u64| {
            let window = self.at(at / MINUTE);
            let before = u64::from(window.n_before) * (MINUTE - at % MINUTE);
            u64::from(window.n_now) * MINUTE + before < n * MINUTE
        };
        let wait = (0..=n_steps).find(|wait| room_at(now + wait))?;
        (wait > 0).then(|| u32::try_from(wait).unwrap_or(u32::MAX))
    }
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

#[cfg(test)]
mod tests;
