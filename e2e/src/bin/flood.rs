//! Floods a node with initiations that were made for it, by strangers: `flood ADDRESS:PORT NODE_KEY RATE SECONDS N_SOURCES`.
//!
//! Their mac1 is right, so the node must look at each; nobody knows their keys. Prints what was sent and what was answered as
//! one line of JSON.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use e2e::control::random_bytes;
use mesh_proto::key::NodeKey;
use serde_json::json;

/// Made once and sent in turn: making one costs more than the node's look at it.
const N_MADE: usize = 2_000;
const BURST_EACH: Duration = Duration::from_millis(1);
const BURSTS_PER_SECOND: u32 = 1_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let target: SocketAddr = next("an address with a port")?.parse()?;
    let key: NodeKey = next("a node key")?.parse()?;
    let rate: u32 = next("initiations a second")?.parse()?;
    let time = Duration::from_secs(next("seconds")?.parse()?);
    let n_sources: usize = next("a number of sources")?.parse()?;

    let made = (0..N_MADE)
        .map(|_| initiation(&key))
        .collect::<Result<Vec<_>>>()?;
    let sockets = (0..n_sources)
        .map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    println!("ready");
    let (start, mut n_bursts, mut n_sent, mut n_answers) =
        (Instant::now(), 0_u32, 0_usize, 0_usize);
    let mut answer = [0; 2048];
    while start.elapsed() < time {
        n_bursts += 1;
        let n_due = u64::from(n_bursts) * u64::from(rate) / u64::from(BURSTS_PER_SECOND);
        while (n_sent as u64) < n_due {
            let (Some(datagram), Some(socket)) =
                (made.get(n_sent % N_MADE), sockets.get(n_sent % n_sources))
            else {
                bail!("no sources");
            };
            match socket.send_to(datagram, target) {
                Ok(_) => {}
                // The link's queue is full, or the node's machine said that nobody is there.
                Err(err)
                    if err.raw_os_error() == Some(105)
                        || matches!(
                            err.kind(),
                            ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
                        ) => {}
                Err(err) => return Err(err).context("sending"),
            }
            while socket.recv(&mut answer).is_ok() {
                n_answers += 1;
            }
            n_sent += 1;
        }
        std::thread::sleep((BURST_EACH * n_bursts).saturating_sub(start.elapsed()));
    }
    println!(
        "{}",
        json!({ "n_sent": n_sent, "n_answers": n_answers, "seconds": start.elapsed().as_secs_f64() })
    );
    Ok(())
}

/// One of a stranger.
fn initiation(to: &NodeKey) -> Result<Vec<u8>> {
    let secret = StaticSecret::from(random_bytes()?);
    let mut tunnel = Tunn::new(secret, PublicKey::from(*to.as_bytes()), None, None, 1, None);
    let mut out = [0; 148];
    let TunnResult::WriteToNetwork(datagram) = tunnel.format_handshake_initiation(&mut out, false)
    else {
        bail!("no initiation was made");
    };
    Ok(datagram.to_vec())
}
