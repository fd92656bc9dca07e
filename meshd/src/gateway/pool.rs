//! Connections whose last reply came to its end, kept for the next request to the same place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::alarm::Alarm;
use super::stream::Stream;

/// How long one is kept. Model servers close theirs after 5 s, doors after 8.
const IDLE: Duration = Duration::from_secs(4);
/// How many are kept for one place by one thread.
const N_IDLE_MAX: usize = 64;
/// How many where each occupies a thread of the server, as with llama-server.
const N_IDLE_COSTLY_MAX: usize = 2;
/// For how many places.
const N_PLACES_MAX: usize = 64;
/// Threads that have connections of their own.
pub(super) const N_SHARDS: usize = 4;
/// Room for one read; more where more is known to come.
const READ_ROOM: usize = 4 << 10;
const READ_ROOM_MAX: usize = 64 << 10;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Gives this thread a share of the pool that no other one takes from: a connection that stays on the thread whose reactor
/// it is registered with costs no wake-up of another.
pub(super) fn adopt(shard: usize) {
    SHARD.set(shard % N_SHARDS);
}

/// A connection with what was read from it and not yet used; dropping it closes the socket at once.
pub(crate) struct Connection {
    pub(super) stream: Stream,
    pub(super) read: BytesMut,
    /// Whether `read` was given more room than another reply is likely to need.
    is_large: bool,
    /// For whoever waits for the other end.
    pub(super) alarm: Alarm,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            is_large: false,
            alarm: Alarm::default(),
        }
    }

    /// Reads what is there; 0 is the end. `n_left` is how much is known to come.
    pub(super) fn poll_fill(
        &mut self,
        task: &mut Context<'_>,
        n_left: Option<u64>,
    ) -> Poll<io::Result<usize>> {
        let n_left = n_left.map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let room = n_left.clamp(READ_ROOM, READ_ROOM_MAX);
        if self.read.capacity() - self.read.len() < room / 4 {
            self.read.reserve(room);
            self.is_large |= room > READ_ROOM;
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), task, &mut self.read)
    }

    /// What was read has been used: its room serves what comes next, unless it is large.
    pub(super) fn slim(&mut self) {
        if self.is_large && self.read.is_empty() {
            (self.read, self.is_large) = (BytesMut::new(), false);
        }
    }
}

type Idle = BTreeMap<String, Vec<(Instant, Connection)>>;

/// The idle connections of each thread, by `host:port`.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    shards: [Mutex<Idle>; N_SHARDS],
    /// Told when there is one to close some time.
    filled: Notify,
}

impl Pool {
    /// The connection that was used last, when one is left that is open.
    pub(crate) fn take(&self, place: &str) -> Option<Connection> {
        let mut idle = self.own();
        let kept = idle.get_mut(place)?;
        while let Some((since, connection)) = kept.pop() {
            if since.elapsed() < IDLE && connection.stream.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection, if there is room.
    pub(crate) fn put(&self, place: &str, mut connection: Connection, is_costly: bool) {
        if !connection.read.is_empty() {
            // More came than was asked for.
            return;
        }
        connection.slim();
        let n_max = if is_costly {
            N_IDLE_COSTLY_MAX
        } else {
            N_IDLE_MAX
        };
        let mut idle = self.own();
        if !idle.contains_key(place) {
            if idle.len() >= N_PLACES_MAX {
                return;
            }
            idle.insert(place.to_owned(), Vec::new());
        }
        if let Some(kept) = idle.get_mut(place)
            && kept.len() < n_max
        {
            kept.push((Instant::now(), connection));
            self.filled.notify_one();
        }
    }

    /// Closes what was idle for too long; never returns.
    pub(crate) async fn tidy(&self) {
        loop {
            if self.shards.iter().all(|shard| lock(shard).is_empty()) {
                self.filled.notified().await;
            }
            tokio::time::sleep(IDLE / 2).await;
            for shard in &self.shards {
                lock(shard).retain(|_, kept| {
                    kept.retain(|(since, connection)| {
                        since.elapsed() < IDLE && connection.stream.is_quiet()
                    });
                    !kept.is_empty()
                });
            }
        }
    }

    fn own(&self) -> MutexGuard<'_, Idle> {
        let [first, ..] = &self.shards;
        lock(self.shards.get(SHARD.get()).unwrap_or(first))
    }
}

fn lock(shard: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
