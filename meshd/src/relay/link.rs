//! One link: dials a relay, keeps it open while it is wanted, and moves frames both ways.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use mesh_io::udp::UdpSocket;
use mesh_proto::relay::{
    FRAME_MAX, Frame, FrameError, Health, PING_EVERY_MS, PONG_DEADLINE_MS, RelayEntry, frame_len,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dial::{Credentials, DialError, dial};
use super::outbox::Outbox;
use super::udp::{Keeper, Offer};
use super::{Chunk, Intake, RelayEvent, RelaySender};
use crate::control::backoff::{Backoff, random};

/// A link that is not the home relay's and carries nothing for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_secs(1);
/// Something was sent and nothing heard for this long: the relay is asked whether it lives.
const UNANSWERED_MAX: Duration = Duration::from_secs(2);
const N_MISSED_MAX: u32 = 2;
/// A tick that is this late means that the machine slept, and the connection with it.
const SLEPT_MIN: Duration = Duration::from_secs(10);
/// No relay keeps a node away for longer, whatever it says.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Room for a few of the longest frames.
const READ_LEN: usize = 256 << 10;

/// What the daemon wants of a link. It ends by itself when it is wanted no more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) is_home: bool,
    /// When a packet last needed it.
    pub(super) wanted_at: Instant,
    /// Rises when the network changed: what is open leads by a network that is gone.
    pub(super) n_redials: u64,
}

impl Wish {
    fn is_live(&self) -> bool {
        self.is_home || self.wanted_at.elapsed() < IDLE_MAX
    }
}

/// A link to one relay.
pub(super) struct Link {
    pub(super) relay: RelayEntry,
    pub(super) credentials: Credentials,
    pub(super) outbox: Arc<Outbox>,
    pub(super) sender: Arc<RelaySender>,
    /// Where UDP to the relay goes out, if it may.
    pub(super) socket: Option<Arc<UdpSocket>>,
    pub(super) intake: Intake,
    pub(super) events: mpsc::Sender<RelayEvent>,
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) cancel: CancellationToken,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the relay sends what is not understood: {0}")]
    Frame(#[from] FrameError),
    #[error("the relay hung up")]
    HungUp,
    #[error("the relay does not answer")]
    Dead,
    #[error("the machine slept")]
    Slept,
    #[error("the relay restarts")]
    Restarting { reconnect_in: Duration },
    #[error("this node is not of the mesh any more")]
    Removed,
    #[error("not needed any more")]
    Idle,
    #[error("the network changed")]
    Redial,
    #[error("the daemon stops")]
    Stopped,
}

impl Link {
    /// Runs until it is cancelled or wanted no more.
    pub(super) async fn run(mut self) {
        let id = self.relay.id;
        let mut backoff = Backoff::default();
        while self.wish.borrow_and_update().is_live() {
            let cancel = self.cancel.clone();
            let outcome = tokio::select! {
                () = cancel.cancelled() => return,
                () = redialled(&mut self.wish) => { backoff.reset(); continue }
                outcome = dial(&self.relay, &self.credentials) => outcome,
            };
            let pause = match outcome {
                Ok((stream, read)) => {
                    tracing::info!(relay = %id, name = self.relay.name, "relay connected");
                    self.outbox.set_open(true);
                    self.tell(RelayEvent::Up(id)).await;
                    let since = Instant::now();
                    let ended = self.serve(stream, read).await;
                    self.outbox.set_open(false);
                    tracing::info!(relay = %id, %ended, "relay disconnected");
                    if since.elapsed() > SLEPT_MIN {
                        backoff.reset();
                    }
                    match ended {
                        Ended::Stopped => return,
                        Ended::Restarting { reconnect_in } => {
                            reconnect_in.min(PAUSE_MAX).mul_f64(1.0 + share(random()))
                        }
                        Ended::Slept | Ended::Redial | Ended::Dead => Duration::ZERO,
                        Ended::Io(_)
                        | Ended::Frame(_)
                        | Ended::HungUp
                        | Ended::Removed
                        | Ended::Idle => backoff.next(random()),
                    }
                }
                Err(err) => {
                    tracing::info!(relay = %id, name = self.relay.name, %err, "relay not reached");
                    let pause = backoff.next(random());
                    match err {
                        DialError::Denied { retry_after, .. } => {
                            pause.max(retry_after.min(PAUSE_MAX))
                        }
                        DialError::Io { .. } | DialError::NoRelay { .. } | DialError::NoUrl => {
                            pause
                        }
                    }
                }
            };
            self.tell(RelayEvent::Down(id)).await;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = redialled(&mut self.wish) => backoff.reset(),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tell(&self, event: RelayEvent) {
        // Without a receiver the daemon stops, and so will this.
        let _ = self.events.send(event).await;
    }

    async fn serve<S>(&mut self, stream: S, read: BytesMut) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let pulse = Pulse::new();
        let (offer_tx, offers) = watch::channel(None);
        let mut wish = self.wish.clone();
        let ended = tokio::select! {
            () = self.cancel.cancelled() => Ended::Stopped,
            () = redialled(&mut wish) => Ended::Redial,
            ended = self.take_frames(&mut reader, read, &pulse, &offer_tx) => ended,
            ended = give_frames(&self.outbox, &mut writer, &pulse) => ended,
            ended = self.watch(&pulse) => ended,
            ended = self.keep_udp(&pulse, offers) => ended,
        };
        self.wish = wish;
        if matches!(ended, Ended::Stopped | Ended::Idle) {
            // The relay need not wait for a timeout; when it does not take this, it will.
            drop(tokio::time::timeout(TICK, writer.shutdown()).await);
        }
        ended
    }

    /// Sends data by UDP while that passes; ends with the link alone.
    async fn keep_udp(&self, pulse: &Pulse, offers: watch::Receiver<Option<Offer>>) -> Ended {
        if let Some(socket) = &self.socket {
            let keeper = Keeper {
                relay: &self.relay,
                routes: &self.sender.udp,
                socket,
            };
            let on_lost = || self.outbox.say(&Frame::UdpOff);
            keeper.keep(offers, || pulse.carried(), on_lost).await;
        }
        std::future::pending().await
    }

    /// From the relay: what is for the packet threads goes there in large pieces.
    async fn take_frames(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        mut read: BytesMut,
        pulse: &Pulse,
        offers: &watch::Sender<Option<Offer>>,
    ) -> Ended {
        loop {
            match self.on_read(&mut read, pulse, offers) {
                Ok(Some(frames)) => {
                    let chunk = Chunk {
                        relay: self.relay.id,
                        frames,
                    };
                    if !self.intake.send(chunk).await {
                        return Ended::Stopped;
                    }
                }
                Ok(None) => {}
                Err(ended) => return ended,
            }
            if read.capacity() - read.len() < FRAME_MAX {
                read.reserve(READ_LEN);
            }
            match reader.read_buf(&mut read).await {
                Ok(0) => return Ended::HungUp,
                Ok(_) => pulse.heard(),
                Err(err) => return err.into(),
            }
        }
    }

    /// Looks at the whole frames at hand; gives them when there are datagrams among them.
    fn on_read(
        &self,
        read: &mut BytesMut,
        pulse: &Pulse,
        offers: &watch::Sender<Option<Offer>>,
    ) -> Result<Option<Bytes>, Ended> {
        let mut end = 0;
        let mut has_datagrams = false;
        loop {
            let rest = read.get(end..).unwrap_or_default();
            let Some(len) = frame_len(rest, FRAME_MAX)? else {
                break;
            };
            let frame = rest.get(..len).unwrap_or_default();
            end += len;
            match Frame::parse(frame)? {
                Frame::Received { .. } => has_datagrams = true,
                Frame::PeerGone { node } => {
                    // Its own word or another path brings it back; until then what is sent there is lost.
                    tracing::debug!(relay = %self.relay.id, %node, "a peer is not at the relay");
                }
                Frame::Ping(bytes) => self.outbox.say(&Frame::Pong(bytes)),
                Frame::Health(Health::Removed) => return Err(Ended::Removed),
                Frame::Health(Health::Duplicate) => tracing::warn!(
                    relay = %self.relay.id,
                    "another machine is connected with this node's key; was its state directory copied?"
                ),
                Frame::RateLimited { pause_ms } => {
                    tracing::debug!(relay = %self.relay.id, pause_ms, "the relay slows this node down");
                }
                Frame::Restarting {
                    reconnect_in_ms, ..
                } => {
                    let reconnect_in = Duration::from_millis(u64::from(reconnect_in_ms));
                    return Err(Ended::Restarting { reconnect_in });
                }
                Frame::UdpOffer { port, token } => {
                    // One for each connection.
                    offers.send_if_modified(|offer| {
                        let is_first = offer.is_none();
                        offer.get_or_insert(Offer { port, token });
                        is_first
                    });
                }
                Frame::Pong(_)
                | Frame::UdpOff
                | Frame::Health(Health::Well | Health::Other(_))
                | Frame::Unknown(_)
                | Frame::Challenge { .. }
                | Frame::Hello { .. }
                | Frame::Welcome { .. }
                | Frame::Denied { .. }
                | Frame::Send { .. } => {}
            }
        }
        if has_datagrams {
            pulse.carried();
        }
        let frames = read.split_to(end);
        Ok(has_datagrams.then(|| frames.freeze()))
    }

    /// Ends a link that is dead, slept or idle.
    async fn watch(&self, pulse: &Pulse) -> Ended {
        let mut n_missed = 0;
        // When it was asked, and how often it had been heard by then: an answer may come within the same millisecond.
        let mut asked: Option<(Duration, u64)> = None;
        let mut wall = SystemTime::now();
        let mut before = Instant::now();
        loop {
            tokio::time::sleep(TICK).await;
            // The monotonic clock stands still while a machine is suspended, the wall clock while a process is stopped.
            let slept = wall.elapsed().unwrap_or_default().max(before.elapsed());
            (wall, before) = (SystemTime::now(), Instant::now());
            if slept >= SLEPT_MIN {
                return Ended::Slept;
            }
            if !self.wish.borrow().is_live() && pulse.since_carried() >= IDLE_MAX {
                return Ended::Idle;
            }
            match asked {
                Some((_, n_heard)) if pulse.n_heard() != n_heard => (n_missed, asked) = (0, None),
                Some((at, _))
                    if pulse.now().saturating_sub(at) < Duration::from_millis(PONG_DEADLINE_MS) =>
                {
                    continue;
                }
                Some(_) => {
                    n_missed += 1;
                    if n_missed >= N_MISSED_MAX {
                        return Ended::Dead;
                    }
                }
                None => {}
            }
            let is_silent = pulse.since_heard() >= Duration::from_millis(PING_EVERY_MS);
            let is_unanswered = pulse
                .since_unanswered()
                .is_some_and(|since| since >= UNANSWERED_MAX);
            if is_silent || is_unanswered || n_missed > 0 {
                asked = Some((pulse.now(), pulse.n_heard()));
                self.outbox
                    .say(&Frame::Ping(u64::from(n_missed).to_be_bytes()));
            }
        }
    }
}

/// To the relay: what waits, small packets first.
async fn give_frames(
    outbox: &Outbox,
    writer: &mut (impl AsyncWrite + Unpin),
    pulse: &Pulse,
) -> Ended {
    let (mut urgent, mut bulk) = (Vec::new(), Vec::new());
    loop {
        let n_datagrams = outbox.take(&mut urgent, &mut bulk).await;
        pulse.sent();
        if n_datagrams > 0 {
            pulse.carried();
        }
        let written = async {
            writer.write_all(&urgent).await?;
            writer.write_all(&bulk).await?;
            writer.flush().await
        };
        if let Err(err) = written.await {
            return err.into();
        }
        urgent.clear();
        bulk.clear();
    }
}

/// Waits until the network changed.
async fn redialled(wish: &mut watch::Receiver<Wish>) {
    let before = wish.borrow().n_redials;
    if wish
        .wait_for(|wish| wish.n_redials != before)
        .await
        .is_err()
    {
        // The daemon stops; the cancellation comes by another way.
        std::future::pending::<()>().await;
    }
}

/// A share between 0 and 1.
fn share(random: u32) -> f64 {
    f64::from(random) / f64::from(u32::MAX)
}

/// When what passed, in milliseconds since the connection stood.
struct Pulse {
    start: Instant,
    heard_ms: AtomicU64,
    n_heard: AtomicU64,
    carried_ms: AtomicU64,
    /// Since when something is sent and nothing heard; 0 for nothing.
    unanswered_ms: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            heard_ms: AtomicU64::new(0),
            n_heard: AtomicU64::new(0),
            carried_ms: AtomicU64::new(0),
            unanswered_ms: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX)
    }

    fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
        self.n_heard.fetch_add(1, Ordering::Relaxed);
        self.unanswered_ms.store(0, Ordering::Relaxed);
    }

    fn carried(&self) {
        self.carried_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn sent(&self) {
        let now_ms = self.now_ms().max(1);
        // Only the first counts, until something is heard.
        let _ =
            self.unanswered_ms
                .compare_exchange(0, now_ms, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn n_heard(&self) -> u64 {
        self.n_heard.load(Ordering::Relaxed)
    }

    fn heard_at(&self) -> Duration {
        Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    fn since_heard(&self) -> Duration {
        self.now().saturating_sub(self.heard_at())
    }

    fn since_carried(&self) -> Duration {
        let carried = Duration::from_millis(self.carried_ms.load(Ordering::Relaxed));
        self.now().saturating_sub(carried)
    }

    fn since_unanswered(&self) -> Option<Duration> {
        let since_ms = self.unanswered_ms.load(Ordering::Relaxed);
        (since_ms != 0).then(|| self.now().saturating_sub(Duration::from_millis(since_ms)))
    }
}

#[cfg(test)]
mod tests;
