//! A stream of numbered datagrams each way, every byte of which is checked: `numbered PEER PORT RATE SECONDS`.
//!
//! Sends RATE datagrams a second to PORT of PEER for so long and checks what comes from there meanwhile. Prints at each second
//! and at the end: how many were sent and received, how many were wrong, how many came twice, and the longest silence.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

const N_WORDS: usize = 8;
const LEN: usize = N_WORDS * 8;
/// Datagrams go out in bursts, this far apart.
const BURST_EACH: Duration = Duration::from_millis(1);
const BURSTS_PER_SECOND: u64 = 1_000;
/// Both ends end a little apart.
const AFTERWARDS: Duration = Duration::from_secs(2);
const READ_LIMIT: Duration = Duration::from_millis(100);
const REPORT_EACH: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let peer: Ipv4Addr = next("the peer's address")?.parse()?;
    let port: u16 = next("a port")?.parse()?;
    let rate: u64 = next("datagrams a second")?.parse()?;
    let time = Duration::from_secs(next("seconds")?.parse()?);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(READ_LIMIT))?;
    let peer = SocketAddr::from((peer, port));
    let (n_sent, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut seen = Seen::new(rate * time.as_secs());
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&socket, peer, rate, time, &n_sent);
            thread::sleep(AFTERWARDS);
            is_done.store(true, Ordering::Relaxed);
        });
        receive(&socket, peer, &mut seen, &n_sent, &is_done)
    })?;
    println!("{}", seen.report(&n_sent, true));
    Ok(())
}

fn send(socket: &UdpSocket, peer: SocketAddr, rate: u64, time: Duration, n_sent: &AtomicU64) {
    let start = Instant::now();
    let mut n_bursts = 0;
    while start.elapsed() < time {
        n_bursts += 1;
        let n_due = n_bursts * rate / BURSTS_PER_SECOND;
        while n_sent.load(Ordering::Relaxed) < n_due {
            let number = n_sent.fetch_add(1, Ordering::Relaxed);
            // One that is refused on this machine is as lost as one that is lost on the way.
            let _ = socket.send_to(&content(number), peer);
        }
        let next = u32::try_from(n_bursts).map_or(Duration::MAX, |n| BURST_EACH * n);
        thread::sleep(next.saturating_sub(start.elapsed()));
    }
}

fn receive(
    socket: &UdpSocket,
    peer: SocketAddr,
    seen: &mut Seen,
    n_sent: &AtomicU64,
    is_done: &AtomicBool,
) -> Result<()> {
    let mut buffer = [0; 2 * LEN];
    let mut next_report = Instant::now() + REPORT_EACH;
    while !is_done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) if from == peer => {
                seen.note(Instant::now(), buffer.get(..len).unwrap_or_default());
            }
            Ok(_) => {}
            Err(err)
                if matches!(
                    err.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ) => {}
            Err(err) => return Err(err.into()),
        }
        if Instant::now() >= next_report {
            next_report += REPORT_EACH;
            println!("{}", seen.report(n_sent, false));
        }
    }
    Ok(())
}

/// The bytes of the datagram with a number: the number, and words that only it has.
fn content(number: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut word = number;
    for place in bytes.chunks_exact_mut(8) {
        place.copy_from_slice(&word.to_be_bytes());
        // The step of splitmix64, made of the word before.
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
    }
    bytes
}

/// What came.
struct Seen {
    /// A bit for each number.
    bits: Vec<u64>,
    n_received: u64,
    n_wrong: u64,
    n_twice: u64,
    last: Option<Instant>,
    longest: Duration,
}

impl Seen {
    fn new(n_most: u64) -> Self {
        // The peer may have begun with a burst more.
        let n_words = usize::try_from(n_most / 64 + 64).unwrap_or_default();
        Self {
            bits: vec![0; n_words],
            n_received: 0,
            n_wrong: 0,
            n_twice: 0,
            last: None,
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self, now: Instant, bytes: &[u8]) {
        let silence = self.last.map_or(Duration::ZERO, |last| now - last);
        self.longest = self.longest.max(silence);
        self.last = Some(now);
        self.n_received += 1;
        let number = bytes.first_chunk().map(|word| u64::from_be_bytes(*word));
        let Some(number) = number.filter(|number| content(*number) == *bytes) else {
            self.n_wrong += 1;
            return;
        };
        let word = usize::try_from(number / 64).ok();
        let Some(word) = word.and_then(|index| self.bits.get_mut(index)) else {
            self.n_wrong += 1;
            return;
        };
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            self.n_twice += 1;
        }
        *word |= bit;
    }

    fn report(&self, n_sent: &AtomicU64, is_end: bool) -> serde_json::Value {
        json!({
            "sent": n_sent.load(Ordering::Relaxed), "received": self.n_received, "wrong": self.n_wrong,
            "twice": self.n_twice, "longest_silence_ms": self.longest.as_secs_f64() * 1e3, "end": is_end,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Seen, content};

    #[test]
    fn what_is_wrong_or_comes_twice_is_noticed() {
        let mut seen = Seen::new(1_000);
        let now = Instant::now();
        for number in [0, 1, 999, 1] {
            seen.note(now, &content(number));
        }
        assert_eq!((seen.n_received, seen.n_wrong, seen.n_twice), (4, 0, 1));
        let mut flipped = content(5);
        flipped[63] ^= 1;
        let mut renumbered = content(6);
        renumbered[7] = 7;
        for bytes in [
            &flipped[..],
            &renumbered,
            &content(8)[..63],
            &[],
            &content(1 << 40),
        ] {
            seen.note(now, bytes);
        }
        assert_eq!((seen.n_received, seen.n_wrong, seen.n_twice), (9, 5, 1));
    }
}
