//! What this node measured of one host, and what the host said of itself.
//!
//! Pure: time is an argument.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mesh_proto::share::Speed;

use super::breaker::{Breaker, Verdict};

/// What the newest measurement weighs against all before it.
const WEIGHT: f64 = 0.25;
/// How long a host's word on its queue is news.
const LOAD_FRESH: Duration = Duration::from_secs(5);
/// How old its word may be when it is here.
const UNDERWAY: Duration = Duration::from_millis(500);
/// How long a host that said that it leaves is left alone; by then the map knows it as well.
const LEAVING_FOR: Duration = Duration::from_secs(15);
/// Conversations that are remembered of one host: more than it has slots.
const N_HOMES_MAX: usize = 64;
/// Models that are remembered of one host.
const N_MODELS_MAX: usize = 64;
/// What a request is thought to take where nothing was measured, seconds.
const WHOLE_GUESS: f64 = 1.0;
/// And how long an answer is thought to be, tokens.
const N_TOKENS_GUESS: f64 = 100.0;
/// How much slower requests are at a host whose slots are all in work, as a share of their time.
const CROWDED: f64 = 0.5;

/// A moving average.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ewma(Option<f64>);

impl Ewma {
    pub(crate) fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.0 = Some(self.0.map_or(value, |old| old + (value - old) * WEIGHT));
        }
    }

    pub(crate) const fn value(self) -> Option<f64> {
        self.0
    }
}

/// A host's word on its queue: `2/5/4` says two in work, five waiting, four slots; `leaving` behind it, that it takes no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) n_active: u32,
    pub(crate) n_waiting: u32,
    pub(crate) n_slots: u32,
    pub(crate) is_leaving: bool,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            n_active,
            n_waiting,
            n_slots,
            is_leaving,
        } = self;
        let leaving = if *is_leaving { " leaving" } else { "" };
        write!(f, "{n_active}/{n_waiting}/{n_slots}{leaving}")
    }
}

/// The text says nothing of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no figures of a queue")]
pub(crate) struct LoadError;

impl FromStr for Load {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let mut words = text.split(' ');
        let mut figures = words.next().unwrap_or_default().splitn(3, '/');
        let mut figure = || figures.next()?.parse().ok();
        let figures = (figure(), figure(), figure());
        let (Some(n_active), Some(n_waiting), Some(n_slots)) = figures else {
            return Err(LoadError);
        };
        Ok(Self {
            n_active,
            n_waiting,
            n_slots,
            is_leaving: words.any(|word| word == "leaving"),
        })
    }
}

/// Whether a host can be reached.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Reach {
    /// As far as is known.
    #[default]
    Up,
    /// Not since then.
    Down { since: Instant },
}

/// One host.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) reach: Reach,
    /// Probes in a row that it owes an answer to.
    pub(super) n_missed: u32,
    /// When somebody last had a use for it.
    pub(super) wanted: Option<Instant>,
    /// When it last said anything, and when it was last probed.
    pub(super) heard: Option<Instant>,
    pub(super) probed: Option<Instant>,
    /// Requests of this node that wait for their first byte and want to know whether it lives.
    pub(super) n_watching: u32,
    /// Requests of this node that it has.
    pub(super) n_in_work: u32,
    /// Those that ended in this span of time and in the one before, and when this one began.
    n_ended: [u32; 2],
    span: Option<Instant>,
    pub(super) rtt: Ewma,
    n_slots: u32,
    /// Requests of others that it has, and when it said so.
    others: Option<(Instant, u32)>,
    full_until: Option<Instant>,
    leaving_until: Option<Instant>,
    pub(super) models: BTreeMap<String, Model>,
    /// The conversations that it was sent of late, the newest last.
    homes: Vec<(u64, Instant)>,
}

/// One model on a host.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) breaker: Breaker,
    /// Seconds from the slot to the first byte.
    pub(super) first_byte: Ewma,
    /// Seconds from the slot to the end.
    pub(super) whole: Ewma,
    /// Tokens a second after the first byte, and tokens of one answer.
    pub(super) rate: Ewma,
    pub(super) n_tokens: Ewma,
}

impl Host {
    /// The figures of a model; the map stays small whatever names hosts invent.
    pub(super) fn model(&mut self, name: &str) -> &mut Model {
        if self.models.len() >= N_MODELS_MAX && !self.models.contains_key(name) {
            self.models.pop_first();
        }
        self.models.entry(name.to_owned()).or_default()
    }

    pub(super) fn verdict(&self, model: &str, now: Instant) -> Verdict {
        if matches!(self.reach, Reach::Down { .. })
            || self.leaving_until.is_some_and(|until| until > now)
        {
            return Verdict::Avoid;
        }
        let model = self.models.get(model);
        model.map_or(Verdict::Use, |model| model.breaker.verdict(now))
    }

    /// A conversation has a turn there.
    pub(super) fn hold(&mut self, home: u64, now: Instant) {
        self.homes.retain(|(known, _)| *known != home);
        if self.homes.len() >= N_HOMES_MAX {
            self.homes.remove(0);
        }
        self.homes.push((home, now));
    }

    /// How many conversations its model servers may still hold the prompts of.
    pub(super) fn n_homes(&self, now: Instant) -> usize {
        let is_held = |(_, since): &&(u64, Instant)| {
            now.saturating_duration_since(*since) < super::prefix::KEPT_FOR
        };
        self.homes.iter().filter(is_held).count()
    }

    /// A request of this node ended there, however.
    pub(super) fn end(&mut self, now: Instant) {
        self.n_in_work = self.n_in_work.saturating_sub(1);
        self.turn_span(now);
        self.n_ended[0] = self.n_ended[0].saturating_add(1);
    }

    fn turn_span(&mut self, now: Instant) {
        let age = self.span.map(|since| now.saturating_duration_since(since));
        match age {
            Some(age) if age < UNDERWAY => return,
            Some(age) if age < UNDERWAY * 2 => self.n_ended = [0, self.n_ended[0]],
            Some(_) | None => self.n_ended = [0, 0],
        }
        self.span = Some(now);
    }

    /// Takes the host's word on its queue. Requests of this node that ended since it was said may be in it.
    pub(super) fn take(&mut self, load: Load, now: Instant) {
        let n_all = load.n_active.saturating_add(load.n_waiting);
        self.turn_span(now);
        let [new, old] = self.n_ended;
        let n_own = self.n_in_work.saturating_add(new).saturating_add(old);
        self.others = Some((now, n_all.saturating_sub(n_own)));
        self.n_slots = load.n_slots;
        self.leaving_until = load.is_leaving.then(|| now + LEAVING_FOR);
    }

    /// The host had no room.
    pub(super) fn fill(&mut self, until: Instant) {
        self.full_until = Some(until);
    }

    /// Requests that it has, as far as is known.
    fn n_busy(&self, now: Instant) -> u32 {
        let others = self.others.filter(|(at, _)| *at + LOAD_FRESH > now);
        self.n_in_work.saturating_add(others.map_or(0, |(_, n)| n))
    }

    /// How full it is; `n_offered` is the number of slots that the map tells.
    pub(super) fn room(&self, n_offered: u32, now: Instant) -> Room {
        let told = if self.n_slots > 0 {
            self.n_slots
        } else {
            n_offered
        };
        Room {
            n_busy: self.n_busy(now),
            n_slots: told.max(1),
            is_full: self.full_until.is_some_and(|until| until > now),
        }
    }
}

/// How full a host is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) n_busy: u32,
    pub(super) n_slots: u32,
    pub(super) is_full: bool,
}

impl Room {
    pub(super) const fn has_free_slot(self) -> bool {
        self.n_busy < self.n_slots && !self.is_full
    }

    /// Seconds that a request waits and is held up by others, where one takes `whole`.
    fn delay(self, whole: f64) -> f64 {
        let (n_busy, n_slots) = (f64::from(self.n_busy), f64::from(self.n_slots));
        let wait = if self.has_free_slot() {
            0.0
        } else {
            (n_busy + 1.0 - n_slots).max(1.0) / n_slots * whole
        };
        wait + (n_busy / n_slots).min(1.0) * CROWDED * whole
    }
}

/// Seconds that a request of usual length takes, by this node's measurements or else by the host's word, and those that it waits
/// and travels. The former is `None` where nobody knows.
pub(super) fn cost(
    model: Option<&Model>,
    told: Option<Speed>,
    rtt: Option<f64>,
    room: Room,
    n_tokens: Option<f64>,
) -> (Option<f64>, f64) {
    let measured = model.and_then(|model| {
        let by_tokens = (|| {
            let rate = model.rate.value().filter(|rate| *rate > 0.0)?;
            Some(model.first_byte.value()? + n_tokens? / rate)
        })();
        by_tokens.or_else(|| model.whole.value())
    });
    let measured = measured.or_else(|| {
        let told = told.filter(|told| told.tokens_per_second.is_normal())?;
        let first_token = Duration::from_millis(told.first_token_ms).as_secs_f64();
        let rest = n_tokens.unwrap_or(N_TOKENS_GUESS) / told.tokens_per_second.abs();
        Some(first_token + rest)
    });
    let delay = room.delay(measured.unwrap_or(WHOLE_GUESS));
    (measured, delay + rtt.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_read_as_it_is_written_and_nothing_else_is() {
        for (text, load) in [
            ("2/5/4", (2, 5, 4, false)),
            ("0/0/1 leaving", (0, 0, 1, true)),
            ("1/2/3 something new", (1, 2, 3, false)),
        ] {
            let read: Load = text.parse().unwrap();
            let Load {
                n_active,
                n_waiting,
                n_slots,
                is_leaving,
            } = read;
            assert_eq!((n_active, n_waiting, n_slots, is_leaving), load);
            assert!(text.starts_with(&read.to_string()), "{read}");
        }
        for text in [
            "",
            "1",
            "1/2",
            "a/b/c",
            "1/2/3/4",
            "-1/0/1",
            "99999999999/0/1",
        ] {
            assert_eq!(text.parse::<Load>(), Err(LoadError), "{text:?}");
        }
    }

    #[test]
    fn others_requests_take_slots_for_as_long_as_they_are_news() {
        let now = Instant::now();
        let mut host = Host {
            n_in_work: 1,
            ..Host::default()
        };
        assert!(host.room(2, now).has_free_slot(), "as the map tells");
        assert!(!host.room(0, now).has_free_slot(), "one slot at least");
        let load = |text: &str| text.parse::<Load>().unwrap();
        host.take(load("2/1/3"), now);
        assert!(
            !host.room(9, now).has_free_slot(),
            "one here, two of others"
        );
        host.n_in_work = 0;
        assert!(host.room(9, now).has_free_slot());
        host.n_in_work = 1;
        assert!(host.room(9, now + LOAD_FRESH).has_free_slot(), "old news");
        host.fill(now + Duration::from_secs(9));
        assert!(
            !host.room(9, now + LOAD_FRESH).has_free_slot(),
            "it had no room"
        );
        assert_eq!(host.verdict("m", now), Verdict::Use);
        host.take(load("0/0/3 leaving"), now);
        assert_eq!(host.verdict("m", now), Verdict::Avoid);
        host.take(load("0/0/3"), now);
        assert_eq!(host.verdict("m", now), Verdict::Use, "it stays after all");
    }

    #[test]
    fn a_request_that_ended_while_the_word_was_underway_is_no_other_ones() {
        let start = Instant::now();
        let load: Load = "2/0/2".parse().unwrap();
        let mut host = Host {
            n_in_work: 2,
            ..Host::default()
        };
        host.end(start);
        host.take(load, start + UNDERWAY / 2);
        assert!(host.room(2, start + UNDERWAY / 2).has_free_slot());
        // Long after it ended it is not in the host's word any more: the second one is somebody else's.
        host.take(load, start + UNDERWAY * 3);
        assert!(!host.room(2, start + UNDERWAY * 3).has_free_slot());
    }

    #[test]
    fn a_longer_queue_costs_more_and_a_faster_host_less() {
        let room = |n_busy| Room {
            n_busy,
            n_slots: 2,
            is_full: false,
        };
        let model = |rate: f64| {
            let mut model = Model::default();
            model.rate.add(rate);
            model.first_byte.add(0.1);
            model.whole.add(1.0);
            model
        };
        let total = |model: &Model, n_busy| {
            let (measured, delay) = cost(Some(model), None, None, room(n_busy), Some(100.0));
            measured.unwrap() + delay
        };
        let (fast, slow) = (model(400.0), model(100.0));
        let costs = [
            total(&fast, 0),
            total(&fast, 1),
            total(&fast, 2),
            total(&fast, 6),
        ];
        assert!(costs.is_sorted(), "{costs:?}");
        assert!(total(&fast, 0) < total(&slow, 0));
        assert!(
            total(&slow, 0) < total(&fast, 20),
            "a long queue outweighs it"
        );
        let (unknown, delay) = cost(None, None, Some(0.25), room(0), Some(100.0));
        assert_eq!((unknown, delay), (None, 0.25));
        let told = |tokens_per_second| Speed {
            tokens_per_second,
            first_token_ms: 500,
        };
        let told = |tps, model| cost(model, Some(told(tps)), None, room(0), Some(100.0)).0;
        assert_eq!(told(100.0, None), Some(1.5));
        assert_eq!(told(0.0, None), None);
        assert_eq!(told(f64::NAN, None), None);
        assert!(
            told(1.0, Some(&fast)).unwrap() < 1.0,
            "what was measured counts"
        );
    }

    #[test]
    fn a_host_cannot_make_this_node_remember_ever_more_models() {
        let mut host = Host::default();
        for n in 0..1_000 {
            host.model(&format!("m{n}")).whole.add(1.0);
        }
        assert_eq!(host.models.len(), N_MODELS_MAX);
    }
}
