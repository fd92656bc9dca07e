//! One connection of a node to the relay: who it is, then frames both ways until it ends.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mesh_proto::key::NodeKey;
use mesh_proto::relay::{
    Alias, ChallengeSecret, Denial, FRAME_MAX, Frame, FrameError, HELLO_MAX, SILENCE_MAX_MS, Token,
    VERSION, frame_len, turn_round,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;

use super::Relay;
use super::hub::{ClientId, End, Forwarded, Received, Taken};
use super::members;
use crate::meter::Meter;
use crate::random;

const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A node that takes nothing for this long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);
/// Room for a few of the longest frames.
const READ_LEN: usize = 256 << 10;
/// What is taken from the hub at once.
const WRITE_LEN: usize = 256 << 10;
/// How long a sender waits at most for a receiver that is about to take what waits for it.
const MOMENT: Duration = Duration::from_millis(2);
/// A shorter frame is copied: what is kept of a read keeps all of it in memory.
const COPIED_BELOW: usize = 16 << 10;
/// Nodes that are turned away come back no sooner.
const RETRY_AFTER_MS: u32 = 5_000;
/// When a relay that stops can be reached again, at the earliest.
const RECONNECT_IN_MS: u32 = 500;
const TRY_FOR_MS: u32 = 30_000;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("unexpected frame")]
    Unexpected,
    #[error("silent for too long")]
    Silent,
    #[error("turned away: {0:?}")]
    Denied(Denial),
    #[error("the node hung up")]
    HungUp,
    #[error("ended: {0:?}")]
    Ended(End),
}

/// What wakes those who wait for a connection.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    /// Something waits for it: its writer is to take it.
    pub(crate) waiting: Notify,
    /// Its writer took of what waits: senders may go on.
    taken: Arc<Notify>,
}

/// Serves one connection to its end. It keeps its place among the unknown until it said whose it is.
pub(crate) async fn run<S>(
    relay: Arc<Relay>,
    mut stream: S,
    unknown: OwnedSemaphorePermit,
) -> SessionError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut read = BytesMut::new();
    let node = match timeout(HELLO_DEADLINE, greet(&relay, &mut stream, &mut read)).await {
        Ok(Ok(node)) => node,
        Ok(Err(err)) => {
            if let SessionError::Denied(reason) = err {
                relay.meter.refused(reason);
                deny(&mut stream, reason).await;
            }
            return err;
        }
        Err(_) => return SessionError::Silent,
    };
    drop(unknown);
    let wakers = Arc::new(Wakers::default());
    let entered =
        relay.with_hub(|hub, wake| hub.enter(node, Arc::clone(&wakers), Instant::now(), wake));
    let Some(id) = entered else {
        relay.meter.refused(Denial::Full);
        deny(&mut stream, Denial::Full).await;
        return SessionError::Denied(Denial::Full);
    };
    relay.meter.entered();
    let _place = Place {
        relay: Arc::clone(&relay),
        id,
    };
    let greeting = match greeting(&relay, id, &node) {
        Ok(greeting) => greeting,
        Err(err) => return err.into(),
    };
    serve(&relay, id, &wakers, (stream, read), &greeting).await
}

/// The welcome, and the offer of UDP where there is any.
fn greeting(relay: &Relay, id: ClientId, node: &NodeKey) -> io::Result<Vec<u8>> {
    let welcome = Frame::Welcome {
        bytes_per_second: relay.bytes_per_second,
    };
    let mut greeting = welcome.to_vec();
    if let Some(&port) = relay.udp_port.get() {
        let token = Token::from_bytes(random()?);
        let alias = Alias::of(&relay.pin, node);
        relay.with_hub(|hub, _| {
            hub.offer_udp(id, token, alias, Instant::now());
        });
        Frame::UdpOffer { port, token }.write(&mut greeting);
    }
    Ok(greeting)
}

/// Leaves the hub when the connection ends, however it does.
struct Place {
    relay: Arc<Relay>,
    id: ClientId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.relay.with_hub(|hub, wake| hub.leave(self.id, wake));
        self.relay.meter.left();
    }
}

async fn serve<S>(
    relay: &Arc<Relay>,
    id: ClientId,
    wakers: &Wakers,
    (stream, read): (S, BytesMut),
    greeting: &[u8],
) -> SessionError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    if let Err(err) = write(&mut writer, greeting).await {
        return err.into();
    }
    let (ended, says_goodbye) = tokio::select! {
        biased;
        () = relay.stop.cancelled() => (SessionError::HungUp, true),
        err = take_frames(relay, id, &mut reader, read) => (err, false),
        err = give_frames(relay, id, wakers, &mut writer) => (err, false),
    };
    if says_goodbye {
        let goodbye = Frame::Restarting {
            reconnect_in_ms: RECONNECT_IN_MS,
            try_for_ms: TRY_FOR_MS,
        };
        // A frame that was cut in two makes this one unreadable; the node then sees the end of the connection alone.
        drop(timeout(GOODBYE_DEADLINE, write(&mut writer, &goodbye.to_vec())).await);
    }
    drop(timeout(GOODBYE_DEADLINE, writer.shutdown()).await);
    ended
}

/// Learns whose connection it is.
async fn greet<S>(
    relay: &Relay,
    stream: &mut S,
    read: &mut BytesMut,
) -> Result<NodeKey, SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let secret = ChallengeSecret::from_bytes(random()?);
    let challenge = Frame::Challenge {
        version: VERSION,
        challenge: secret.challenge(),
    };
    write(stream, &challenge.to_vec()).await?;
    let hello = loop {
        if let Some(len) = frame_len(read, HELLO_MAX)? {
            break read.split_to(len);
        }
        if stream.read_buf(read).await? == 0 {
            return Err(SessionError::HungUp);
        }
    };
    let Frame::Hello {
        version,
        node,
        proof,
    } = Frame::parse(&hello)?
    else {
        return Err(SessionError::Unexpected);
    };
    if version != VERSION {
        return Err(SessionError::Denied(Denial::Version));
    }
    // The proof first: who does not hold the key learns nothing of who is in the mesh.
    if !secret.verify(&relay.pin, &node, &proof) {
        return Err(SessionError::Denied(Denial::BadProof));
    }
    if !members::admits(&relay.members, &node).await {
        return Err(SessionError::Denied(Denial::NotRegistered));
    }
    Ok(node)
}

async fn deny<S: AsyncWrite + Unpin>(stream: &mut S, reason: Denial) {
    let denied = Frame::Denied {
        reason,
        retry_after_ms: RETRY_AFTER_MS,
    };
    let farewell = async {
        write(stream, &denied.to_vec()).await?;
        stream.shutdown().await
    };
    // The connection ends either way.
    drop(timeout(GOODBYE_DEADLINE, farewell).await);
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// From the node: forwards its datagrams and answers its pings.
async fn take_frames(
    relay: &Relay,
    id: ClientId,
    reader: &mut (impl AsyncRead + Unpin),
    mut read: BytesMut,
) -> SessionError {
    let silence_max = Duration::from_millis(SILENCE_MAX_MS);
    loop {
        let pause = match on_read(relay, id, &mut read) {
            Ok(pause) => pause,
            Err(err) => return err,
        };
        match pause {
            None => {}
            Some(Pause::For(duration)) => tokio::time::sleep(duration).await,
            // Whether it took something or not: what is lost for it then is lost.
            Some(Pause::UntilTaken(taken)) => drop(timeout(MOMENT, taken).await),
        }
        if read.capacity() - read.len() < FRAME_MAX {
            read.reserve(READ_LEN);
        }
        match timeout(silence_max, reader.read_buf(&mut read)).await {
            Ok(Ok(0)) => return SessionError::HungUp,
            Ok(Ok(_)) => {}
            Ok(Err(err)) => return err.into(),
            Err(_) => return SessionError::Silent,
        }
    }
}

/// What a sender waits for before more of it is read.
enum Pause {
    /// It sent faster than it may.
    For(Duration),
    /// Much waits for a receiver of it, which is about to take that.
    UntilTaken(OwnedNotified),
}

/// Passes all whole frames on, under one lock.
fn on_read(
    relay: &Relay,
    id: ClientId,
    read: &mut BytesMut,
) -> Result<Option<Pause>, SessionError> {
    if frame_len(read, FRAME_MAX)?.is_none() {
        return Ok(None);
    }
    let now = Instant::now();
    let mut n_read = 0;
    let mut tally = Tally::default();
    let mut full = None;
    let result = relay.with_hub(|hub, wake| {
        let sender = hub.node_of(id).ok_or(SessionError::HungUp)?;
        while let Some(len) = frame_len(read, FRAME_MAX)? {
            n_read += len;
            let mut bytes = read.split_to(len);
            match Frame::parse(&bytes)? {
                Frame::Send { to, datagrams } => {
                    let (n_datagrams, is_urgent) = (datagrams.n_datagrams(), datagrams.is_urgent());
                    let n_bytes = datagrams.contents().len();
                    if !turn_round(&mut bytes, &sender) {
                        return Err(SessionError::Unexpected);
                    }
                    let bytes = if len < COPIED_BELOW {
                        Bytes::copy_from_slice(&bytes)
                    } else {
                        bytes.freeze()
                    };
                    let frame = Received {
                        bytes,
                        n_datagrams,
                        is_urgent,
                    };
                    match hub.forward(id, &to, frame, now, wake) {
                        Forwarded::Queued { n_lost, is_filling } => {
                            if is_filling && let Some(wakers) = hub.waker(&to) {
                                // Made under the lock, it misses no taking after it.
                                full = Some(Arc::clone(&wakers.taken).notified_owned());
                            }
                            tally.n_bytes += n_bytes;
                            tally.n_datagrams += n_datagrams;
                            tally.n_full += n_lost;
                        }
                        Forwarded::NotHere => tally.n_not_here += n_datagrams,
                    }
                }
                Frame::Ping(bytes) => hub.on_ping(id, bytes, wake),
                Frame::UdpOff => hub.unbind(id),
                Frame::Pong(_) | Frame::Unknown(_) => {}
                Frame::Challenge { .. }
                | Frame::Hello { .. }
                | Frame::Welcome { .. }
                | Frame::Denied { .. }
                | Frame::Received { .. }
                | Frame::PeerGone { .. }
                | Frame::Health(_)
                | Frame::Restarting { .. }
                | Frame::RateLimited { .. }
                | Frame::UdpOffer { .. } => return Err(SessionError::Unexpected),
            }
        }
        let pause = hub.on_read(id, n_read, now, wake);
        Ok(pause
            .map(Pause::For)
            .or_else(|| full.map(Pause::UntilTaken)))
    });
    tally.count(&*relay.meter);
    result
}

/// What one read came to.
#[derive(Debug, Default)]
struct Tally {
    n_bytes: usize,
    n_datagrams: usize,
    n_full: usize,
    n_not_here: usize,
}

impl Tally {
    fn count(&self, meter: &dyn Meter) {
        if self.n_datagrams > 0 {
            meter.forwarded(self.n_datagrams, self.n_bytes);
        }
        if self.n_full > 0 {
            meter.dropped("full", self.n_full);
        }
        if self.n_not_here > 0 {
            meter.dropped("not_here", self.n_not_here);
        }
    }
}

/// To the node: what waits for it.
async fn give_frames(
    relay: &Relay,
    id: ClientId,
    wakers: &Wakers,
    writer: &mut (impl AsyncWrite + Unpin),
) -> SessionError {
    let mut frames = Vec::new();
    let mut joined = Vec::new();
    loop {
        let taken = relay.with_hub(|hub, _| hub.take(id, WRITE_LEN, &mut frames));
        if taken == Taken::More {
            wakers.taken.notify_waiters();
        }
        let written = timeout(
            WRITE_DEADLINE,
            write_frames(writer, &mut frames, &mut joined),
        );
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => return err.into(),
            Err(_) => return SessionError::Silent,
        }
        match taken {
            Taken::More => {}
            Taken::Nothing => {
                // An idle connection keeps no memory but this.
                joined.shrink_to(0);
                wakers.waiting.notified().await;
            }
            Taken::End(end) => return SessionError::Ended(end),
        }
    }
}

/// Writes short frames joined and long ones as they are.
async fn write_frames(
    writer: &mut (impl AsyncWrite + Unpin),
    frames: &mut Vec<Bytes>,
    joined: &mut Vec<u8>,
) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    for frame in frames.drain(..) {
        if frame.len() < COPIED_BELOW {
            joined.extend_from_slice(&frame);
            if joined.len() < 2 * COPIED_BELOW {
                continue;
            }
        }
        if !joined.is_empty() {
            writer.write_all(joined).await?;
            joined.clear();
        }
        if frame.len() >= COPIED_BELOW {
            writer.write_all(&frame).await?;
        }
    }
    if !joined.is_empty() {
        writer.write_all(joined).await?;
        joined.clear();
    }
    writer.flush().await
}

#[cfg(test)]
mod tests;
