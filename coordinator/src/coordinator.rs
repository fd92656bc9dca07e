//! The coordinator's one writer: each change goes into the store first, then into memory, then to the map streams.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mesh_proto::id::{NodeId, NodeName, UserId, UserName};
use mesh_proto::key::{CoordinatorPrivateKey, MachineKey};
use mesh_proto::relay::RelayEntry;
use mesh_relay::Members;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::limit::FailureLimit;
use crate::auth::nonce::Nonces;
use crate::clock::{to_ms, unix_ms};
use crate::map::hub::Hub;
use crate::map::stream::{self, Line};
use crate::metrics;
use crate::relay::feed;
use crate::state::{State, Told};
use crate::store::{
    NewRelayRecord, NodeChange, NodeRecord, Registration, RelayAnswer, RelayRecord, Store,
    StoreError, UserRecord,
};

/// How often time is looked at: a host without beats is noticed this much after its deadline.
const TICK: Duration = Duration::from_millis(250);
/// How often presence goes into the store.
const KEEP_PRESENCE_EVERY: Duration = Duration::from_secs(5);
/// How long the relay's members stand before the mesh is looked at again.
const MEMBERS_REST: Duration = Duration::from_millis(50);
/// Keys that ended this long ago are forgotten.
const FORGET_KEYS_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the coordinator does by, apart from what the store knows.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// How long a node key is good; for ever when absent.
    pub(crate) node_key_ttl: Option<Duration>,
    /// How long an ephemeral node may be away.
    pub(crate) ephemeral_ttl: Duration,
    /// The URLs that go into auth keys.
    pub(crate) urls: Vec<String>,
}

/// The control plane of one mesh.
#[derive(Debug)]
pub(crate) struct Coordinator {
    key: CoordinatorPrivateKey,
    rules: Rules,
    store: Store,
    state: RwLock<State>,
    /// Held over a write to the store and to memory, so that both see changes in one order. True when a write ended
    /// in a way that leaves open whether the store has it.
    writer: Mutex<bool>,
    hub: Hub,
    pub(crate) nonces: Nonces,
    pub(crate) failures: FailureLimit,
    started: Instant,
    is_store_well: AtomicBool,
    is_stopping: AtomicBool,
    members: watch::Sender<Arc<Members>>,
    /// Streams that nodes opened to offer a relay.
    n_offers: AtomicU64,
    stopping: CancellationToken,
    /// Writes and streams in progress. They go on when the asking connection goes away.
    tasks: TaskTracker,
}

impl Coordinator {
    pub(crate) fn new(
        key: CoordinatorPrivateKey,
        rules: Rules,
        store: Store,
        state: State,
        nonces: Nonces,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            rules,
            store,
            hub: Hub::new(),
            nonces,
            failures: FailureLimit::default(),
            started: Instant::now(),
            state: RwLock::new(state),
            writer: Mutex::new(false),
            is_store_well: AtomicBool::new(true),
            is_stopping: AtomicBool::new(false),
            members: watch::Sender::new(Arc::default()),
            n_offers: AtomicU64::new(0),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    pub(crate) const fn key(&self) -> &CoordinatorPrivateKey {
        &self.key
    }

    pub(crate) const fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the last use of the store went well.
    pub(crate) fn is_store_well(&self) -> bool {
        self.is_store_well.load(Ordering::Relaxed)
    }

    /// Looks at the mesh.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<R>(&self, change: impl FnOnce(&mut State, Instant, u64) -> R) -> R {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state, Instant::now(), unix_ms());
        let version = state.revision().version;
        drop(state);
        self.hub.publish(version);
        result
    }

    /// Does a write to its end, also when whoever asked for it goes away, and then changes memory by its result.
    async fn write<T, F>(
        self: &Arc<Self>,
        store: impl FnOnce(Arc<Self>) -> F,
        apply: impl FnOnce(&mut State, &T, Instant, u64) + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let this = Arc::clone(self);
        let write = store(Arc::clone(self));
        let task = self.tasks.spawn(async move {
            let mut is_in_doubt = this.writer.lock().await;
            if *is_in_doubt {
                this.reload().await?;
                *is_in_doubt = false;
            }
            let result = write.await;
            *is_in_doubt = matches!(result, Err(StoreError::Unavailable(_)));
            this.note(&result);
            let value = result?;
            this.change(|state, now, now_ms| apply(state, &value, now, now_ms));
            Ok(value)
        });
        task.await
            .map_err(|err| StoreError::Unavailable(err.to_string()))?
    }

    /// Keeps in mind whether the store works, and says so once when that changes.
    pub(crate) fn note<T>(&self, result: &Result<T, StoreError>) {
        let failure = match result {
            Err(err @ (StoreError::Unavailable(_) | StoreError::Broken(_))) => Some(err),
            Ok(_)
            | Err(StoreError::NotFound(_) | StoreError::Conflict(_) | StoreError::Refused(_)) => {
                None
            }
        };
        if failure.is_some() {
            metrics::store_error();
        }
        let was_well = self
            .is_store_well
            .swap(failure.is_none(), Ordering::Relaxed);
        match failure {
            Some(err) if was_well => {
                tracing::error!(%err, "the store fails; requests that write are refused")
            }
            None if !was_well => tracing::info!("the store works again"),
            Some(_) | None => {}
        }
    }

    /// Fills memory from the store.
    pub(crate) async fn reload(&self) -> Result<(), StoreError> {
        let users = self.store.list_users().await?;
        let nodes = self.store.list_nodes().await?;
        let relays = self.store.list_relays().await?;
        self.change(|state, now, now_ms| state.reload(users, nodes, relays, now, now_ms));
        Ok(())
    }

    pub(crate) async fn register(
        self: &Arc<Self>,
        asked: Registration,
    ) -> Result<NodeRecord, StoreError> {
        self.write(
            |this| async move { this.store.register(&asked).await },
            |state, record: &NodeRecord, now, now_ms| state.put_node(record.clone(), now, now_ms),
        )
        .await
    }

    pub(crate) async fn change_node(
        self: &Arc<Self>,
        id: NodeId,
        change: NodeChange,
    ) -> Result<NodeRecord, StoreError> {
        let record = self
            .write(
                move |this| async move { this.store.change_node(id, &change).await },
                |state, record: &NodeRecord, now, now_ms| {
                    state.put_node(record.clone(), now, now_ms)
                },
            )
            .await?;
        if record.is_expired(unix_ms()) {
            self.hub.end(&id);
        }
        Ok(record)
    }

    pub(crate) async fn delete_node(self: &Arc<Self>, id: NodeId) -> Result<(), StoreError> {
        self.write(
            move |this| async move { this.store.delete_node(id).await },
            move |state, (), _, _| {
                state.remove_node(id);
            },
        )
        .await?;
        self.hub.end(&id);
        Ok(())
    }

    pub(crate) async fn insert_user(
        self: &Arc<Self>,
        name: UserName,
    ) -> Result<UserRecord, StoreError> {
        self.write(
            |this| async move { this.store.insert_user(&name, unix_ms()).await },
            |state, user: &UserRecord, _, _| state.put_user(user.clone()),
        )
        .await
    }

    pub(crate) async fn rename_user(
        self: &Arc<Self>,
        name: UserName,
        new_name: UserName,
    ) -> Result<UserRecord, StoreError> {
        self.write(
            |this| async move { this.store.rename_user(&name, &new_name).await },
            |state, user: &UserRecord, _, _| state.put_user(user.clone()),
        )
        .await
    }

    pub(crate) async fn delete_user(
        self: &Arc<Self>,
        name: UserName,
    ) -> Result<UserId, StoreError> {
        self.write(
            |this| async move { this.store.delete_user(&name).await },
            |state, id: &UserId, _, _| state.remove_user(*id),
        )
        .await
    }

    pub(crate) async fn insert_relay(
        self: &Arc<Self>,
        relay: NewRelayRecord,
    ) -> Result<RelayRecord, StoreError> {
        self.write(
            |this| async move { this.store.insert_relay(&relay).await },
            |state, relay: &RelayRecord, _, _| state.put_relay(relay.clone()),
        )
        .await
    }

    pub(crate) async fn register_relay(
        self: &Arc<Self>,
        answer: RelayAnswer,
    ) -> Result<RelayRecord, StoreError> {
        self.write(
            |this| async move { this.store.register_relay(&answer).await },
            |state, relay: &RelayRecord, _, _| state.put_relay(relay.clone()),
        )
        .await
    }

    pub(crate) async fn delete_relay(self: &Arc<Self>, name: NodeName) -> Result<(), StoreError> {
        let gone = name.clone();
        self.write(
            |this| async move { this.store.delete_relay(&name).await },
            move |state, (), _, _| state.remove_relay(&gone),
        )
        .await
    }

    /// Opens a relay's stream of members.
    pub(crate) fn open_members(self: &Arc<Self>, relay: MachineKey) -> mpsc::Receiver<Line> {
        let (lines, receiver) = mpsc::channel(stream::N_FRAMES_QUEUED);
        let (version, members) = (self.hub.version(), self.members.subscribe());
        self.tasks
            .spawn(feed::run(Arc::clone(self), relay, version, members, lines));
        receiver
    }

    /// Opens the stream of members of a relay that a node offers. The map names it until that stream is over.
    pub(crate) fn open_offer(
        self: &Arc<Self>,
        machine_key: MachineKey,
        relay: RelayEntry,
    ) -> mpsc::Receiver<Line> {
        let (lines, receiver) = mpsc::channel(stream::N_FRAMES_QUEUED);
        let (version, members) = (self.hub.version(), self.members.subscribe());
        let this = Arc::clone(self);
        let node = NodeId::of(&machine_key);
        let number = self.n_offers.fetch_add(1, Ordering::Relaxed);
        self.change(|state, _, _| state.put_offer(node, number, relay));
        self.tasks.spawn(async move {
            feed::run(Arc::clone(&this), machine_key, version, members, lines).await;
            this.change(|state, _, _| state.end_offer(&node, number));
        });
        receiver
    }

    /// Who may use relays, as it changes.
    pub(crate) fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// Ends when the coordinator stops.
    pub(crate) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// A host lives.
    pub(crate) fn on_beat(&self, id: &NodeId) {
        self.change(|state, now, now_ms| state.on_beat(id, now, now_ms));
    }

    /// A node told of its present run.
    pub(crate) fn on_told(&self, id: &NodeId, told: Told) {
        self.change(|state, _, _| state.on_told(id, told));
    }

    pub(crate) fn on_stream_opened(&self, id: &NodeId) {
        metrics::map_stream_opened();
        self.change(|state, now, now_ms| state.on_stream_opened(id, now, now_ms));
    }

    pub(crate) fn on_stream_closed(&self, id: &NodeId, number: u64) {
        metrics::map_stream_closed();
        let is_last = self.hub.leave(id, number);
        if is_last && !self.is_stopping.load(Ordering::Relaxed) {
            self.change(|state, now, now_ms| state.on_stream_closed(id, now, now_ms));
        }
    }

    /// Opens a node's map stream, in place of the one it may have.
    pub(crate) fn open_stream(
        self: &Arc<Self>,
        id: NodeId,
        resume: Option<mesh_proto::netmap::Revision>,
    ) -> mpsc::Receiver<Line> {
        let (lines, receiver) = mpsc::channel(stream::N_FRAMES_QUEUED);
        let place = self.hub.enter(id);
        self.tasks
            .spawn(stream::run(Arc::clone(self), id, resume, place, lines));
        receiver
    }

    /// Tells relays, this one and others, who is in the mesh, until told to stop.
    pub(crate) async fn keep_members(self: Arc<Self>, stop: CancellationToken) {
        let mut version = self.hub.version();
        loop {
            version.borrow_and_update();
            let newest = self.read(State::members);
            self.members.send_if_modified(|known| {
                let is_changed = **known != newest;
                if is_changed {
                    *known = Arc::new(newest);
                }
                is_changed
            });
            // At once after a change, and then a while of rest: hosts that beat change the mesh all the time.
            let next = async {
                tokio::time::sleep(MEMBERS_REST).await;
                version.changed().await
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = next => if changed.is_err() { return },
            }
        }
    }

    /// When a node that registers at a time expires.
    pub(crate) fn expiry(&self, now_ms: u64) -> Option<u64> {
        self.rules
            .node_key_ttl
            .map(|ttl| now_ms.saturating_add(to_ms(ttl)))
    }

    /// Whether a source guessed too often.
    pub(crate) fn is_limited(&self, source: Option<IpAddr>) -> bool {
        source.is_some_and(|source| self.failures.is_exceeded(source, Instant::now()))
    }

    /// A source failed to prove itself.
    pub(crate) fn on_failure(&self, source: Option<IpAddr>) {
        if let Some(source) = source {
            self.failures.on_failure(source, Instant::now());
        }
    }

    /// Does what is due with time, until told to stop.
    pub(crate) async fn keep_time(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut kept = Instant::now();
        let mut swept: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            self.on_tick().await;
            if kept.elapsed() >= KEEP_PRESENCE_EVERY {
                kept = Instant::now();
                self.keep_presence().await;
            }
            if swept.is_none_or(|at| at.elapsed() >= Duration::from_secs(3600)) {
                swept = Some(Instant::now());
                let before = unix_ms().saturating_sub(to_ms(FORGET_KEYS_AFTER));
                let result = self.store.forget_keys(before).await;
                self.note(&result);
            }
        }
    }

    async fn on_tick(self: &Arc<Self>) {
        let ttl_ms = to_ms(self.rules.ephemeral_ttl);
        let due = self.change(|state, now, now_ms| state.on_tick(now, now_ms, ttl_ms));
        for id in &due.expired {
            self.hub.end(id);
        }
        for id in due.forgotten {
            match self.delete_node(id).await {
                Ok(()) => tracing::info!(node = %id, "removed an ephemeral node that stayed away"),
                Err(err) => {
                    tracing::debug!(node = %id, %err, "cannot remove an ephemeral node yet")
                }
            }
        }
        let (n_nodes, n_online) = self.read(|state| (state.n_nodes(), state.n_online()));
        metrics::nodes(n_nodes, n_online);
    }

    async fn keep_presence(&self) {
        if !self.is_store_well() {
            let result = self.store.probe().await;
            self.note(&result);
        }
        let records = self.change(|state, _, _| state.take_presence_to_keep());
        if !records.is_empty() {
            let result = self.store.keep_presence(&records).await;
            self.note(&result);
        }
    }

    /// Ends all streams and waits for writes. Who is online is kept as it was before.
    pub(crate) async fn stop(&self, patience: Duration) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.keep_presence().await;
        self.stopping.cancel();
        self.hub.end_all();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("stopping with requests unfinished");
        }
    }
}
