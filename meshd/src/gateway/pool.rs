//! Connections whose last reply came to its end, kept for the next request to the same place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio_util::task::AbortOnDropHandle;

/// How long one is kept. Model servers close theirs after 5 s, doors after 10.
const IDLE: Duration = Duration::from_secs(4);
/// How many are kept for one place: llama-server spends a thread on each.
const N_IDLE_MAX: usize = 2;
/// For how many places.
const N_PLACES_MAX: usize = 64;

/// A connection with the task that moves its bytes; dropping it closes the socket at once.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    pub(crate) _driver: AbortOnDropHandle<()>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// The idle connections, by `host:port`.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<BTreeMap<String, Vec<(Instant, Connection)>>>,
}

impl Pool {
    /// The connection that was used last, when one is left that is open and ready.
    pub(crate) fn take(&self, place: &str) -> Option<Connection> {
        let mut idle = self.lock();
        let kept = idle.get_mut(place)?;
        while let Some((since, connection)) = kept.pop() {
            if since.elapsed() < IDLE && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        idle.remove(place);
        None
    }

    /// Keeps a connection, if there is room.
    pub(crate) fn put(&self, place: &str, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() >= N_PLACES_MAX && !idle.contains_key(place) {
            return;
        }
        let kept = idle.entry(place.to_owned()).or_default();
        if kept.len() < N_IDLE_MAX {
            kept.push((Instant::now(), connection));
        }
    }

    /// Closes what was idle for too long; never returns.
    pub(crate) async fn tidy(&self) {
        loop {
            tokio::time::sleep(IDLE / 2).await;
            self.lock().retain(|_, kept| {
                kept.retain(|(since, connection)| {
                    since.elapsed() < IDLE && !connection.sender.is_closed()
                });
                !kept.is_empty()
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<(Instant, Connection)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
