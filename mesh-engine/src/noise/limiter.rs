//! Bounds the work that handshake messages cause: under load each source gets its share and no more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::config::{HANDSHAKES_MAX, LOAD_FROM, N_SOURCES_MAX, SOURCE_BURST, SOURCE_RATE};

const SECOND: Duration = Duration::from_secs(1);

/// A token bucket and a quota for each source, and a count of all.
#[derive(Debug)]
pub(crate) struct Limiter {
    window_began: Instant,
    window: u64,
    n_arrived: u32,
    n_admitted: u32,
    /// Sources that were looked at in this window, and in the one before.
    n_sources: u32,
    n_sources_before: u32,
    was_loaded: bool,
    sources: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    millitokens: u32,
    at: Instant,
    /// How many were admitted in which window.
    window: u64,
    n_admitted: u32,
}

const FULL: u32 = SOURCE_BURST * 1000;

impl Limiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            window_began: now,
            window: 1,
            n_arrived: 0,
            n_admitted: 0,
            n_sources: 0,
            n_sources_before: 0,
            was_loaded: false,
            sources: BTreeMap::new(),
        }
    }

    /// Notes a message that is meant for this node. Tells whether there is load: then whoever sent it must prove that he
    /// is where he says, or forged sources would use up what is left for the honest.
    pub(crate) fn arrive(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.window_began) >= SECOND {
            self.was_loaded = self.n_arrived >= LOAD_FROM;
            self.window_began = now;
            self.window += 1;
            self.n_sources_before = std::mem::take(&mut self.n_sources);
            (self.n_arrived, self.n_admitted) = (0, 0);
            if !self.was_loaded {
                self.sources.clear();
            }
        }
        self.n_arrived = self.n_arrived.saturating_add(1);
        self.is_loaded()
    }

    /// Whether the message that just arrived may cost a Diffie-Hellman.
    pub(crate) fn admit(&mut self, now: Instant, source: IpAddr) -> bool {
        if self.n_admitted >= HANDSHAKES_MAX
            || self.is_loaded() && !self.take_token(now, key_of(source))
        {
            return false;
        }
        self.n_admitted += 1;
        true
    }

    const fn is_loaded(&self) -> bool {
        self.was_loaded || self.n_arrived >= LOAD_FROM
    }

    fn take_token(&mut self, now: Instant, source: IpAddr) -> bool {
        if !self.sources.contains_key(&source) && self.sources.len() >= N_SOURCES_MAX {
            self.sources.retain(|_, bucket| bucket.refilled(now) < FULL);
            if self.sources.len() >= N_SOURCES_MAX {
                // Those who are in the table keep their share, and so does the rest together.
                return self.take_token_of(now, IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            }
        }
        self.take_token_of(now, source)
    }

    fn take_token_of(&mut self, now: Instant, source: IpAddr) -> bool {
        let bucket = self.sources.entry(source).or_insert(Bucket {
            millitokens: FULL,
            at: now,
            window: 0,
            n_admitted: 0,
        });
        if bucket.window != self.window {
            (bucket.window, bucket.n_admitted) = (self.window, 0);
            self.n_sources += 1;
        }
        // Many sources together must not use up all before the last of them had its turn.
        let quota = HANDSHAKES_MAX / (self.n_sources_before + 1);
        bucket.millitokens = bucket.refilled(now);
        bucket.at = now;
        match bucket.millitokens.checked_sub(1000) {
            Some(left) if bucket.n_admitted < quota.max(1) => {
                bucket.millitokens = left;
                bucket.n_admitted += 1;
                true
            }
            Some(_) | None => false,
        }
    }
}

impl Bucket {
    fn refilled(&self, now: Instant) -> u32 {
        let elapsed_ms = now.saturating_duration_since(self.at).as_millis();
        let gained = u32::try_from(elapsed_ms)
            .unwrap_or(u32::MAX)
            .saturating_mul(SOURCE_RATE);
        self.millitokens.saturating_add(gained).min(FULL)
    }
}

/// Whoever has an IPv6 address has a /64 of them.
fn key_of(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    /// A message arrives and is admitted; its source is proven if it has to be.
    fn passes(limiter: &mut Limiter, now: Instant, n: u32) -> bool {
        limiter.arrive(now);
        limiter.admit(now, ip(n))
    }

    #[test]
    fn nobody_is_limited_without_load() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for second in 0..10 {
            let now = start + SECOND * second;
            assert!((1..LOAD_FROM).all(|_| !limiter.arrive(now) && limiter.admit(now, ip(1))));
        }
    }

    #[test]
    fn load_begins_at_once_and_ends_a_second_after_the_flood() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let n_free = (0..1000).filter(|_| !limiter.arrive(start)).count();
        assert_eq!(n_free, LOAD_FROM as usize - 1);
        assert!(
            limiter.arrive(start + SECOND),
            "a pause of a second is none"
        );
        assert!(!limiter.arrive(start + SECOND * 2));
    }

    #[test]
    fn a_flood_from_one_source_leaves_others_their_share() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let (mut n_flood, mut n_honest) = (0, 0);
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..50 {
                n_flood += u32::from(passes(&mut limiter, now, 1));
            }
            if ms % 500 == 0 {
                n_honest += u32::from(passes(&mut limiter, now, 2));
            }
        }
        assert_eq!(n_honest, 20);
        assert!(
            n_flood < LOAD_FROM + 11 * SOURCE_RATE + SOURCE_BURST,
            "{n_flood}"
        );
    }

    #[test]
    fn a_flood_from_many_proven_sources_leaves_a_late_one_its_turn() {
        let start = Instant::now();
        for n_sources in [30, 100, 500] {
            let mut limiter = Limiter::new(start);
            let mut n_honest = 0;
            for ms in 0..20_000 {
                let now = start + Duration::from_millis(ms);
                for n in 0..50 {
                    passes(
                        &mut limiter,
                        now,
                        (u32::try_from(ms).unwrap() * 50 + n) % n_sources,
                    );
                }
                if ms > 5000 && ms % 1000 == 990 {
                    n_honest += u32::from(passes(&mut limiter, now, 1_000_000));
                }
            }
            assert_eq!(n_honest, 15, "{n_sources}");
        }
    }

    #[test]
    fn sources_without_end_cost_bounded_work_and_memory() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let mut n_admitted = 0;
        for n in 0..100_000 {
            let now = start + Duration::from_micros(u64::from(n) * 10);
            n_admitted += u32::from(passes(&mut limiter, now, n));
        }
        assert!(n_admitted <= HANDSHAKES_MAX, "{n_admitted}");
        assert!(limiter.sources.len() <= N_SOURCES_MAX + 1);
    }

    #[test]
    fn an_ipv6_source_is_its_64() {
        assert_eq!(
            key_of("2001:db8::1:2:3:4".parse().unwrap()),
            "2001:db8::".parse::<IpAddr>().unwrap()
        );
    }
}
