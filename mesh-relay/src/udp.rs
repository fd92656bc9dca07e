//! The relay's UDP sockets: a thread each, which forwards batches as they came and answers STUN beside it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use mesh_io::udp::{RecvBatch, UdpSocket};
use mesh_io::wait::{Interest, Poller, Waker};
use mesh_proto::relay::is_relay_udp;
use mesh_proto::stun::{binding_success, parse_request};

use super::Relay;
use super::hub::Verdict;
use crate::meter::Meter;

const SOCKET: u32 = 0;
const WAKER: u32 = 1;
/// A socket that gives nothing but errors will not recover.
const N_ERRORS_MAX: u32 = 1000;
/// No binding request of ours is longer; a longer one is not answered, so answers stay about as small as requests.
const REQUEST_LEN_MAX: usize = 512;

/// Serves a socket on a thread of its own until the relay stops.
///
/// # Errors
/// When the process has no descriptor left.
pub(crate) fn start(relay: &Arc<Relay>, socket: std::net::UdpSocket) -> anyhow::Result<()> {
    let socket = UdpSocket::from_std(socket).context("cannot use the relay's UDP socket")?;
    let waker = Arc::new(Waker::new().context("opening an event descriptor")?);
    let (relay_here, waker_here) = (Arc::clone(relay), Arc::clone(&waker));
    let thread = relay
        .tasks
        .spawn_blocking(move || run(&relay_here, &socket, &waker_here));
    let stop = relay.stop.clone();
    // A runtime that goes away without `stop` drops this task, and then waits for the thread.
    let end = EndOnDrop(waker);
    relay.tasks.spawn(async move {
        tokio::pin!(thread);
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => {
                drop(end);
                thread.await
            }
            outcome = thread.as_mut() => outcome,
        };
        match outcome {
            Ok(Ok(())) => {}
            // Nodes notice that nobody answers and go by their links.
            Ok(Err(err)) => tracing::error!(%err, "the relay's UDP socket is lost"),
            Err(err) => tracing::error!(%err, "the relay's UDP thread broke"),
        }
    });
    Ok(())
}

/// Ends the thread.
struct EndOnDrop(Arc<Waker>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Err(err) = self.0.wake() {
            tracing::error!(%err, "the relay's UDP thread cannot be woken");
        }
    }
}

fn run(relay: &Relay, socket: &UdpSocket, waker: &Waker) -> io::Result<()> {
    let poller = Poller::new()?;
    poller.add(socket.as_fd(), SOCKET, Interest::Readable)?;
    poller.add(waker.as_fd(), WAKER, Interest::Readable)?;
    let mut batch = RecvBatch::new();
    let mut n_errors = 0;
    while !waker.is_woken() {
        match socket.recv_batch(&mut batch) {
            Ok(()) => {
                n_errors = 0;
                let now = Instant::now();
                for datagrams in batch.iter_mut() {
                    let (from, stride) = (datagrams.from, datagrams.stride);
                    if is_relay_udp(datagrams.bytes) {
                        forward(relay, socket, now, (from, datagrams.bytes, stride));
                    } else {
                        answer_stun(relay, socket, from, datagrams.bytes, stride);
                    }
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                poller.wait(None)?;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => {
                // Tells of an earlier send that came to nothing.
                n_errors += 1;
                if n_errors == N_ERRORS_MAX {
                    return Err(err);
                }
            }
        }
    }
    Ok(())
}

fn forward(
    relay: &Relay,
    socket: &UdpSocket,
    now: Instant,
    (from, bytes, stride): (SocketAddr, &mut [u8], usize),
) {
    let verdict = relay.with_hub(|hub, wake| hub.on_udp(now, from, bytes, stride, wake));
    let mut n_unsent = 0;
    for run in &verdict.runs {
        let part = bytes.get(run.range.clone()).unwrap_or_default();
        let n_sent = socket.send(run.to, part, run.stride).unwrap_or(0);
        n_unsent += (part.len() - n_sent.min(part.len())).div_ceil(run.stride.max(1));
    }
    if let Some(answer) = &verdict.answer {
        // One that is lost is asked for again.
        drop(socket.send(from, answer, answer.len()));
    }
    count(&*relay.meter, &verdict, n_unsent);
}

fn count(meter: &dyn Meter, verdict: &Verdict, n_unsent: usize) {
    if verdict.n_datagrams > 0 {
        meter.forwarded(verdict.n_datagrams, verdict.n_bytes);
        let n_udp = verdict
            .runs
            .iter()
            .map(|run| run.range.len().div_ceil(run.stride.max(1)));
        meter.forwarded_by_udp(n_udp.sum());
    }
    let drops = [
        ("full", verdict.n_full + n_unsent),
        ("not_here", verdict.n_not_here),
        ("rate", verdict.n_limited),
    ];
    for (reason, n_datagrams) in drops {
        if n_datagrams > 0 {
            meter.dropped(reason, n_datagrams);
        }
    }
}

fn answer_stun(relay: &Relay, socket: &UdpSocket, from: SocketAddr, bytes: &[u8], stride: usize) {
    for datagram in bytes.chunks(stride.max(1)) {
        if let Some(answer) = stun_answer(datagram, from) {
            // A full socket drops the answer, and the node asks again.
            drop(socket.send(from, &answer, answer.len()));
            relay.meter.stun_answered();
        }
    }
}

/// The answer to a STUN binding request; `None` for anything else.
#[must_use]
pub fn stun_answer(datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    if datagram.len() > REQUEST_LEN_MAX {
        return None;
    }
    let id = parse_request(datagram)?;
    let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
    Some(binding_success(&id, seen))
}

#[cfg(test)]
mod tests {
    use mesh_proto::stun::{binding_request, parse_success};

    use super::*;

    #[test]
    fn answers_requests_and_nothing_else() {
        let from: SocketAddr = "[::ffff:192.0.2.7]:4000".parse().unwrap();
        let request = binding_request(&[9; 12]);
        let reply = stun_answer(&request, from).unwrap();
        assert_eq!(
            parse_success(&reply),
            Some(([9; 12], "192.0.2.7:4000".parse().unwrap()))
        );
        assert!(reply.len() <= 2 * request.len());
        assert_eq!(stun_answer(&reply, from), None);
        assert_eq!(stun_answer(b"hello", from), None);
        assert_eq!(stun_answer(&[0; REQUEST_LEN_MAX + 1], from), None);
    }
}
