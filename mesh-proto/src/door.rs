//! What a host's owner grants to guests: limits, quiet hours, caps. Never looks at a clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{UserName, text_form};

/// The most limits that a host may set.
pub const N_LIMITS_MAX: usize = 64;
/// The most spans of quiet hours.
pub const N_QUIET_MAX: usize = 16;
/// The most output tokens that an owner can allow for one request, and what holds when nothing is set.
pub const N_OUTPUT_TOKENS_MAX: u32 = 32_768;
/// The most pictures that an owner can allow in one request, and what holds when nothing is set.
pub const N_IMAGES_MAX: u32 = 32;
/// The largest body that an owner can allow, in MiB, and what holds for one with pictures when nothing is set.
pub const BODY_MAX_MIB: u32 = 32;

const MINUTES_A_DAY: u16 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const ALL_DAYS: u8 = 0b111_1111;

/// The owner's terms. They bind guests; the owner's own nodes and the machine itself are free of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DoorPolicy {
    /// Bounds of use, one a pair of guests and models.
    pub limits: Vec<Limit>,
    /// When the host serves nobody but its owner.
    pub quiet: Vec<QuietHours>,
    /// Whether guests wait while other programs of the owner use the GPU.
    pub pauses_on_gpu_use: bool,
    /// Bounds of one request.
    pub caps: Caps,
}

/// How much some guests may use of some models. What is absent is not bounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Whom it bounds.
    pub who: Guests,
    /// Pattern of model names, `llama3*`; `*` for all.
    pub models: String,
    /// Requests in work at once; more of them wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// Requests a minute; more of them are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// Tokens, read and generated, a day of UTC; after it requests are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
}

impl Limit {
    /// Whether it bounds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.concurrent.is_none() && self.per_minute.is_none() && self.tokens_per_day.is_none()
    }
}

/// Whom a limit bounds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guests {
    /// All guests together.
    All,
    /// Each guest by itself: a user with all its nodes, or a tagged node.
    Each,
    /// One user, in the place of the limit for each with the same models.
    User(UserName),
}

/// The text names no guests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("guests are `each` (each by itself), `all` (all together) or `user:NAME`")]
pub struct GuestsError;

impl FromStr for Guests {
    type Err = GuestsError;

    fn from_str(text: &str) -> Result<Self, GuestsError> {
        match text {
            "all" => Ok(Self::All),
            "each" => Ok(Self::Each),
            _ => {
                let name = text.strip_prefix("user:").ok_or(GuestsError)?;
                name.parse().map(Self::User).map_err(|_| GuestsError)
            }
        }
    }
}

impl fmt::Display for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Each => f.write_str("each"),
            Self::User(name) => write!(f, "user:{name}"),
        }
    }
}

text_form!(Guests);

/// Bounds of one request of a guest. What is absent is as built in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caps {
    /// Output tokens; more are not generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u32>,
    /// Tokens of context; a request that needs more is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// Pictures; a request with more is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<u32>,
    /// MiB of the body; a longer one is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_mib: Option<u32>,
}

impl Caps {
    /// Takes what another one sets; zero sets back to what is built in.
    pub fn take(&mut self, change: &Self) {
        let pairs = [
            (&mut self.output_tokens, change.output_tokens),
            (&mut self.context_tokens, change.context_tokens),
            (&mut self.images, change.images),
            (&mut self.body_mib, change.body_mib),
        ];
        for (cap, change) in pairs {
            match change {
                None => {}
                Some(0) => *cap = None,
                Some(n) => *cap = Some(n),
            }
        }
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A span of the week, in the host's local time. One whose end is not after its start reaches into the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuietHours {
    /// Bit 0 is Monday: the days on which it begins.
    days: u8,
    /// Minutes of the day.
    from: u16,
    to: u16,
}

/// The text is no span of hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "quiet hours are written `22:00-07:00`, with days in front `mon-fri 09:00-18:00` or `sat,sun 00:00-24:00`"
)]
pub struct QuietHoursError;

impl QuietHours {
    /// How long it still lasts, in minutes, at a minute of a day (0 is Monday); `None` outside of it.
    #[must_use]
    pub fn minutes_left(&self, day: u8, minute: u16) -> Option<u16> {
        let (day, minute) = (day % 7, minute.min(MINUTES_A_DAY - 1));
        let begins = |day: u8| self.days & (1 << day) != 0;
        let reaches_over = self.to <= self.from;
        let until = if reaches_over {
            self.to + MINUTES_A_DAY
        } else {
            self.to
        };
        if begins(day) && (self.from..until).contains(&minute) {
            return Some(until - minute);
        }
        let begun_yesterday = begins((day + 6) % 7) && reaches_over && minute < self.to;
        begun_yesterday.then(|| self.to - minute)
    }
}

impl FromStr for QuietHours {
    type Err = QuietHoursError;

    fn from_str(text: &str) -> Result<Self, QuietHoursError> {
        let text = text.trim();
        let (days, hours) = match text.rsplit_once(' ') {
            Some((days, hours)) => (parse_days(days.trim())?, hours),
            None => (ALL_DAYS, text),
        };
        let (from, to) = hours.split_once('-').ok_or(QuietHoursError)?;
        let (from, to) = (parse_minute(from)?, parse_minute(to)?);
        if from >= MINUTES_A_DAY || from == to {
            return Err(QuietHoursError);
        }
        Ok(Self { days, from, to })
    }
}

fn parse_days(text: &str) -> Result<u8, QuietHoursError> {
    let day = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        DAYS.iter()
            .position(|day| *day == name)
            .ok_or(QuietHoursError)
    };
    let mut days = 0;
    for part in text.split(',') {
        match part.split_once('-') {
            None => days |= 1 << day(part)?,
            Some((first, last)) => {
                let (first, last) = (day(first)?, day(last)?);
                let n_days = (last + 7 - first) % 7;
                for n in 0..=n_days {
                    days |= 1 << ((first + n) % 7);
                }
            }
        }
    }
    Ok(days)
}

fn parse_minute(text: &str) -> Result<u16, QuietHoursError> {
    let (hours, minutes) = text.split_once(':').ok_or(QuietHoursError)?;
    let number = |text: &str| {
        let is_plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let number = is_plain.then(|| text.parse::<u16>().ok()).flatten();
        number.ok_or(QuietHoursError)
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minute = hours * 60 + minutes;
    if minutes < 60 && minute <= MINUTES_A_DAY {
        Ok(minute)
    } else {
        Err(QuietHoursError)
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != ALL_DAYS {
            let days: Vec<&str> = (0..7)
                .filter(|day| self.days & (1 << day) != 0)
                .map(|day| DAYS[day])
                .collect();
            write!(f, "{} ", days.join(","))?;
        }
        let (from, to) = (self.from, self.to);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            to / 60,
            to % 60
        )
    }
}

text_form!(QuietHours);

/// A change of the terms. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoorChange {
    /// Stands in the place of the limit for the same guests and models; one that bounds nothing takes that one away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// All quiet hours; none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<Vec<QuietHours>>,
    /// Whether guests wait while other programs use the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pauses_on_gpu_use: Option<bool>,
    /// Bounds of one request; zero sets one back.
    #[serde(default, skip_serializing_if = "Caps::is_empty")]
    pub caps: Caps,
}

/// Why terms cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Too many limits.
    #[error("at most {N_LIMITS_MAX} limits can be set")]
    Limits,
    /// Too many spans.
    #[error("at most {N_QUIET_MAX} spans of quiet hours can be set")]
    Quiet,
    /// A bound that would let nobody in.
    #[error("a limit must be at least 1; to share with nobody, use `meshctl share off`")]
    Zero,
    /// No pattern.
    #[error("`{0}` is no pattern of model names, such as `llama3*`")]
    Pattern(String),
    /// A cap beyond what is built in.
    #[error("{what} can be at most {max}")]
    Cap {
        /// Which.
        what: &'static str,
        /// The most.
        max: u32,
    },
}

impl DoorPolicy {
    /// The terms after a change.
    ///
    /// # Errors
    /// [`TermsError`] when they could not be kept.
    pub fn changed(&self, change: DoorChange) -> Result<Self, TermsError> {
        let mut policy = self.clone();
        if let Some(limit) = change.limit {
            check_limit(&limit)?;
            let key = |limit: &Limit| (limit.who.clone(), limit.models.clone());
            policy.limits.retain(|old| key(old) != key(&limit));
            if !limit.is_empty() {
                policy.limits.push(limit);
                policy.limits.sort_by_key(key);
            }
        }
        if policy.limits.len() > N_LIMITS_MAX {
            return Err(TermsError::Limits);
        }
        if let Some(quiet) = change.quiet {
            if quiet.len() > N_QUIET_MAX {
                return Err(TermsError::Quiet);
            }
            policy.quiet = quiet;
        }
        policy.pauses_on_gpu_use = change.pauses_on_gpu_use.unwrap_or(policy.pauses_on_gpu_use);
        for (cap, max, what) in [
            (
                change.caps.output_tokens,
                N_OUTPUT_TOKENS_MAX,
                "output tokens",
            ),
            (change.caps.images, N_IMAGES_MAX, "images"),
            (change.caps.body_mib, BODY_MAX_MIB, "MiB of a body"),
        ] {
            if cap.is_some_and(|n| n > max) {
                return Err(TermsError::Cap { what, max });
            }
        }
        policy.caps.take(&change.caps);
        Ok(policy)
    }
}

fn check_limit(limit: &Limit) -> Result<(), TermsError> {
    let is_pattern =
        (1..=256).contains(&limit.models.len()) && !limit.models.contains(char::is_whitespace);
    if !is_pattern {
        return Err(TermsError::Pattern(limit.models.chars().take(64).collect()));
    }
    if limit.concurrent == Some(0) || limit.per_minute == Some(0) || limit.tokens_per_day == Some(0)
    {
        return Err(TermsError::Zero);
    }
    Ok(())
}

/// The door at the moment, as `meshctl share` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DoorStatus {
    /// The owner's terms.
    pub policy: DoorPolicy,
    /// Why guests are not served; absent while they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
    /// Who has requests in work or waiting, those who are next first.
    pub queue: Vec<QueueStatus>,
}

/// Why guests are not served at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Closed {
    /// Quiet hours.
    Quiet {
        /// When they end, Unix milliseconds.
        until_ms: u64,
    },
    /// Other programs use the GPU.
    GpuInUse,
}

/// One guest at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The user's name, a tagged node's name, or `owner`.
    pub guest: String,
    /// Requests in work.
    pub n_active: u32,
    /// Requests waiting.
    pub n_waiting: u32,
    /// The place of the first of them in the queue, from 1; absent when none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
}

#[cfg(test)]
mod tests;
