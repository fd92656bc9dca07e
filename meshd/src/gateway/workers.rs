//! The threads on which requests are worked: a connection, and those that its requests open, stay on one of them, so that
//! no byte on its way wakes another thread.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Core;
use super::pool;
use super::server::{self, PeerPlace, Side};
use super::stream::Parked;

/// Connections that may be on their way to one thread.
const N_ARRIVING_MAX: usize = 1_024;

/// While there are connections, a thread wakes as often at least. The runtime wakes itself, by a system call and a round for
/// nothing, for each timer that is due before all others, as that of the next request's head would be.
const TICK: Duration = Duration::from_secs(2);

/// The niceness of a thread: more than two usual shares of a core that it has to share. What it does stands between a client and
/// a model server, and serves both; with one share it is cut off, at nearly every request, by whom it just woke.
const NICENESS: i32 = -4;

/// A connection that was let in.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) socket: Parked,
    pub(crate) from: IpAddr,
    pub(crate) side: Side,
    pub(crate) core: Arc<Core>,
    /// Held while it is open.
    pub(crate) place: (OwnedSemaphorePermit, PeerPlace),
}

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    cancel: CancellationToken,
    _ends_them: DropGuard,
}

#[derive(Debug)]
struct Worker {
    arrivals: mpsc::Sender<Arrival>,
    n_open: Arc<AtomicUsize>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Workers {
    /// Starts one for each core, up to a bound.
    pub(crate) fn start() -> io::Result<Self> {
        let n = thread::available_parallelism().map_or(1, usize::from);
        let cancel = CancellationToken::new();
        let workers = (0..n.clamp(1, pool::N_SHARDS)).map(|shard| Worker::start(shard, &cancel));
        Ok(Self {
            workers: workers.collect::<io::Result<_>>()?,
            _ends_them: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// Gives a connection to the thread that has the fewest; it is closed where that one takes no more.
    pub(crate) fn take(&self, arrival: Arrival) {
        let least = self
            .workers
            .iter()
            .min_by_key(|worker| worker.n_open.load(Ordering::Relaxed));
        let Some(worker) = least else { return };
        worker.n_open.fetch_add(1, Ordering::Relaxed);
        if worker.arrivals.try_send(arrival).is_err() {
            worker.n_open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("connection refused: the gateway is overloaded");
        }
    }

    /// Ends them with all their connections when dropped.
    pub(crate) fn guard(&self) -> DropGuard {
        self.cancel.clone().drop_guard()
    }

    /// Cuts all connections and waits until the threads have ended.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        for worker in &self.workers {
            let ended = worker
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(ended) = ended {
                // An error says that it has ended, too.
                let _ = ended.await;
            }
        }
    }
}

impl Worker {
    fn start(shard: usize, cancel: &CancellationToken) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()?;
        let (arrivals, waiting) = mpsc::channel(N_ARRIVING_MAX);
        let (end, ended) = oneshot::channel();
        let n_open = Arc::new(AtomicUsize::new(0));
        let (counter, cancel) = (Arc::clone(&n_open), cancel.clone());
        thread::Builder::new()
            .name(format!("gateway-{shard}"))
            .spawn(move || {
                pool::adopt(shard);
                // Where the system does not let it, it works as well, if a little later.
                if let Err(err) = mesh_io::thread::serve_in_turn(NICENESS) {
                    tracing::debug!(%err, "the gateway's threads have the usual priority");
                }
                runtime.block_on(work(waiting, &counter, &cancel));
                drop(runtime);
                // Nobody may wait for it any more.
                let _ = end.send(());
            })?;
        Ok(Self {
            arrivals,
            n_open,
            ended: Mutex::new(Some(ended)),
        })
    }
}

async fn work(
    mut arrivals: mpsc::Receiver<Arrival>,
    n_open: &Arc<AtomicUsize>,
    cancel: &CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next() => {}
            _ = tick.tick(), if !connections.is_empty() => {}
            arrival = arrivals.recv() => {
                let Some(arrival) = arrival else { return };
                let open = Open(Arc::clone(n_open));
                connections.spawn(async move {
                    let Arrival { socket, from, side, core, place } = arrival;
                    let _held = (place, open);
                    match socket.resume() {
                        Ok(stream) => server::connection(stream, from, side, core).await,
                        Err(err) => tracing::warn!(%err, "cannot serve a connection"),
                    }
                });
            }
        }
    }
}

/// Counts an open connection.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
