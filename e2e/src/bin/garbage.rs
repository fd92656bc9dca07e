//! Sends nonsense to a UDP port and listens for answers: `garbage ADDRESS:PORT N_DATAGRAMS SEED`.
//!
//! Datagrams have all lengths from 0 to 65,507 bytes. Half of them begin like WireGuard's messages. Prints what was sent
//! and what came back as one line of JSON.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The longest payload of a datagram over IPv4.
const LEN_MAX: usize = 65_507;
/// One in so many is longer than the link's packets and goes in fragments.
const LONG_EVERY: usize = 200;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let target: SocketAddr = next("an address with a port")?.parse()?;
    let n_datagrams: usize = next("a number of datagrams")?.parse()?;
    let seed: u64 = next("a seed")?.parse()?;

    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut random = Random(seed | 1);
    let mut datagram = vec![0; LEN_MAX];
    let (mut n_sent, mut n_bytes_sent) = (0, 0);
    for n in 0..n_datagrams {
        let len = length(n, &mut random);
        let bytes = datagram.get_mut(..len).unwrap_or_default();
        random.fill(bytes);
        if n % 2 == 0 {
            disguise(bytes, &mut random);
        }
        match socket.send_to(bytes, target) {
            Ok(_) => {
                n_sent += 1;
                n_bytes_sent += len;
            }
            // The link's queue is full: the kernel threw it away here.
            Err(err) if err.raw_os_error() == Some(105) => {}
            Err(err) => bail!("{len} bytes to {target}: {err}"),
        }
    }
    let (n_answers, n_bytes_answered) = listen(&socket)?;
    println!(
        "{}",
        serde_json::json!({
            "n_sent": n_sent, "n_bytes_sent": n_bytes_sent,
            "n_answers": n_answers, "n_bytes_answered": n_bytes_answered,
        })
    );
    Ok(())
}

/// Every length up to 1,472 in its turn, and now and then a long one, the longest among them.
fn length(n: usize, random: &mut Random) -> usize {
    if n % LONG_EVERY == LONG_EVERY - 1 {
        return match n / LONG_EVERY % 4 {
            0 => LEN_MAX,
            1 => LEN_MAX - 1,
            _ => 1473 + random.below(LEN_MAX - 1473),
        };
    }
    n % 1473
}

/// Makes it look like a message of WireGuard's, by its type and for handshakes by its length too.
fn disguise(bytes: &mut [u8], random: &mut Random) {
    let kind = match bytes.len() {
        148 => 1,
        92 => 2,
        64 => 3,
        _ => 1 + random.below(4),
    };
    if let Some(head) = bytes.get_mut(..4) {
        head.fill(0);
        if let Some(first) = head.first_mut() {
            *first = u8::try_from(kind).unwrap_or_default();
        }
    }
}

fn listen(socket: &UdpSocket) -> Result<(usize, usize)> {
    let (start, mut answer) = (Instant::now(), [0; 2048]);
    let (mut n_answers, mut n_bytes) = (0, 0);
    while start.elapsed() < PATIENCE {
        match socket.recv(&mut answer) {
            Ok(len) => {
                n_answers += 1;
                n_bytes += len;
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(err) => bail!("listening: {err}"),
        }
    }
    Ok((n_answers, n_bytes))
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or_default() % bound
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
    }
}
