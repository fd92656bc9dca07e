//! A limit on guessing: failed attempts by source address, in a bounded table.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
const N_FAILURES_MAX: u32 = 10;
/// Sources that are remembered. When it is full of fresh ones, new sources are not limited: secrets of 256 bits are
/// what keeps guessing out, the limit keeps the load down.
const N_SOURCES_MAX: usize = 16_384;

/// Failed attempts.
#[derive(Debug, Default)]
pub(crate) struct FailureLimit {
    sources: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl FailureLimit {
    /// Whether a source failed too often of late.
    pub(crate) fn is_exceeded(&self, source: IpAddr, now: Instant) -> bool {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.get(&network_of(source)).is_some_and(|(since, n)| {
            *n >= N_FAILURES_MAX && now.saturating_duration_since(*since) < WINDOW
        })
    }

    /// A source failed.
    pub(crate) fn on_failure(&self, source: IpAddr, now: Instant) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= N_SOURCES_MAX {
            sources.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
            if sources.len() >= N_SOURCES_MAX {
                return;
            }
        }
        let entry = sources.entry(network_of(source)).or_insert((now, 0));
        if now.saturating_duration_since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }
}

/// IPv6 sources count by /64: whoever has one has them all.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_failures_a_minute_are_enough() {
        let limit = FailureLimit::default();
        let (now, source) = (Instant::now(), "192.0.2.1".parse().unwrap());
        for _ in 0..N_FAILURES_MAX {
            assert!(!limit.is_exceeded(source, now));
            limit.on_failure(source, now);
        }
        assert!(limit.is_exceeded(source, now));
        assert!(!limit.is_exceeded("192.0.2.2".parse().unwrap(), now));
        assert!(!limit.is_exceeded(source, now + WINDOW));
        limit.on_failure(source, now + WINDOW);
        assert!(!limit.is_exceeded(source, now + WINDOW));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let limit = FailureLimit::default();
        let now = Instant::now();
        for n in 0..N_FAILURES_MAX {
            limit.on_failure(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert!(limit.is_exceeded("2001:db8::ffff".parse().unwrap(), now));
        assert!(!limit.is_exceeded("2001:db8:0:1::1".parse().unwrap(), now));
    }

    #[test]
    fn the_table_is_bounded() {
        let limit = FailureLimit::default();
        let now = Instant::now();
        for n in 0..N_SOURCES_MAX as u32 + 10 {
            limit.on_failure(IpAddr::V4(n.into()), now);
        }
        assert_eq!(limit.sources.lock().unwrap().len(), N_SOURCES_MAX);
        limit.on_failure("192.0.2.1".parse().unwrap(), now + WINDOW);
        assert_eq!(limit.sources.lock().unwrap().len(), 1);
    }
}
