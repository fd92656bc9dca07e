//! What this machine can share: its model servers, their models, its GPUs. Watched, and told on change only.

mod closing;
mod gpu_use;
mod listen;
mod nvml;
pub(crate) mod pattern;
mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::door::{Closed, DoorPolicy, Guests};
use mesh_proto::local::BackendStatus;
use mesh_proto::share::{
    Audience, BackendApi, Gpu, HostOffers, N_MODELS_MAX, Offer, Protocol, PullPolicy,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use closing::Occupancy;
pub(crate) use closing::Working;
use listen::OpenPorts;
use nvml::GpuReader;
use probe::{Miss, Probe};

use crate::gateway::Pace;

/// How often the model servers are asked.
const POLL: Duration = Duration::from_secs(2);
/// And how often while sharing is off, when nobody but the owner wants to know.
const POLL_UNSHARED: Duration = Duration::from_secs(10);
/// How often the GPUs are read.
const POLL_GPUS: Duration = Duration::from_secs(10);
/// How many answers in a row a busy server may owe before its models go; one that refuses connections has none.
const N_SILENT_MAX: u32 = 2;
/// How long it is believed what protocols a server speaks: it may be replaced by another version at any time.
const SPOKEN_KEPT: Duration = Duration::from_secs(60);
/// Where model servers listen when nobody says otherwise: Ollama, llama-server, vLLM, LM Studio.
const USUAL: [&str; 4] = [
    "http://127.0.0.1:11434",
    "http://127.0.0.1:8080",
    "http://127.0.0.1:8000",
    "http://127.0.0.1:1234",
];

/// What the owner shares, as `meshctl share` sets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShareConfig {
    /// Sharing on or off.
    pub is_on: bool,
    /// Patterns of model names to share (`llama3*`); all when empty.
    pub models: Vec<String>,
    /// With whom.
    pub audience: Audience,
    /// How many requests to work on at once.
    pub n_slots: u32,
    /// Backends by URL; found by themselves when empty.
    pub backends: Vec<String>,
    /// What guests are granted.
    pub door: DoorPolicy,
    /// Who may have this machine pull models.
    pub pulls: PullPolicy,
}

impl Default for ShareConfig {
    fn default() -> Self {
        Self {
            is_on: false,
            models: Vec::new(),
            audience: Audience::default(),
            n_slots: 2,
            backends: Vec::new(),
            door: DoorPolicy::default(),
            pulls: PullPolicy::default(),
        }
    }
}

impl ShareConfig {
    /// What is left of it when the node leaves its mesh: nothing is shared in another mesh before its owner says so, and
    /// then with nobody whom the name of a stranger would let in. What the owner chose of this machine stays.
    #[must_use]
    pub fn after_leaving(&self) -> Self {
        let audience = match &self.audience {
            Audience::Users(_) => Audience::Mine,
            same @ (Audience::Everyone | Audience::Mine) => same.clone(),
        };
        let mut door = self.door.clone();
        // A name is another's in another mesh.
        door.limits
            .retain(|limit| !matches!(limit.who, Guests::User(_)));
        Self {
            is_on: false,
            audience,
            door,
            pulls: PullPolicy::default(),
            ..self.clone()
        }
    }
}

/// All that is known of this machine as a host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InventoryStatus {
    /// What the owner set.
    pub config: ShareConfig,
    /// The model servers that answer, and the set ones that do not.
    pub backends: Vec<Backend>,
    /// The models that may be used from the mesh, sorted by name; empty while sharing is off.
    pub shared: Vec<Shared>,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// Why guests are not served; the owner always is.
    pub closed: Option<Closed>,
}

impl InventoryStatus {
    /// What the control socket shows of the model servers.
    #[must_use]
    pub fn backend_statuses(&self) -> Vec<BackendStatus> {
        self.backends
            .iter()
            .map(|backend| BackendStatus {
                url: backend.url.clone(),
                api: backend.api,
                n_models: backend.models.len(),
                error: backend.error.clone(),
                warning: backend.warning.clone(),
            })
            .collect()
    }

    /// What the mesh is told.
    #[must_use]
    pub fn offers(&self) -> HostOffers {
        if !self.config.is_on {
            return HostOffers::default();
        }
        HostOffers {
            models: self.shared.iter().map(|s| Arc::clone(&s.offer)).collect(),
            gpus: self.gpus.iter().map(public_gpu).collect(),
            // Guests are not sent to a door that is closed to them.
            audience: match self.closed {
                Some(_) => Audience::Mine,
                None => self.config.audience.clone(),
            },
            n_slots: self.config.n_slots.max(1),
        }
    }
}

/// The lasting facts of a card: figures that move would make each reading a change for the whole mesh.
fn public_gpu(gpu: &Gpu) -> Gpu {
    Gpu {
        name: gpu.name.clone(),
        memory_total_bytes: gpu.memory_total_bytes,
        driver: gpu.driver.clone(),
        cuda: gpu.cuda.clone(),
        is_mig: gpu.is_mig,
        ..Gpu::default()
    }
}

/// A model server.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Where it listens, as an owner writes it.
    pub url: String,
    /// Where it listens, as `host:port`.
    pub authority: String,
    /// What it speaks.
    pub api: BackendApi,
    /// All its models, shared or not.
    pub models: Vec<Arc<Offer>>,
    /// Why it cannot be used.
    pub error: Option<String>,
    /// What its owner should know.
    pub warning: Option<String>,
}

impl Backend {
    fn has(&self, model: &str) -> bool {
        self.models.iter().any(|offer| offer.model == model)
    }
}

/// A model that may be used from the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// The model.
    pub offer: Arc<Offer>,
    /// The server that has it, as `host:port`.
    pub authority: String,
}

/// The watcher. It stops when this is dropped.
#[derive(Debug)]
pub struct Inventory {
    /// What to tell the mesh; changes only when something in it does.
    pub offers: watch::Receiver<Arc<HostOffers>>,
    /// Everything else.
    pub status: watch::Receiver<Arc<InventoryStatus>>,
    /// How much the door works; it tells that here.
    pub occupancy: Arc<Occupancy>,
    /// How fast this host answers; its gateway notes it here.
    pub pace: Arc<Pace>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Inventory {
    /// Begins to watch.
    #[must_use]
    pub fn start(share: watch::Receiver<ShareConfig>) -> Self {
        let pace = Arc::new(Pace::default());
        let (offers_tx, offers) = watch::channel(Arc::new(HostOffers::default()));
        let (status_tx, status) = watch::channel(Arc::new(InventoryStatus::default()));
        let (closed_tx, closed) = watch::channel(None);
        let occupancy = Arc::new(Occupancy::default());
        let closing = closing::watch(share.clone(), Arc::clone(&occupancy), closed_tx);
        let watcher = Watcher {
            share,
            closed,
            pace: Arc::clone(&pace),
            offers: offers_tx,
            status: status_tx,
            silent: BTreeMap::new(),
            spoken: BTreeMap::new(),
            open_ports: OpenPorts::default(),
            gpus: Vec::new(),
        };
        Self {
            offers,
            status,
            occupancy,
            pace,
            _tasks: [
                AbortOnDropHandle::new(tokio::spawn(watcher.run())),
                AbortOnDropHandle::new(tokio::spawn(closing)),
            ],
        }
    }
}

struct Watcher {
    share: watch::Receiver<ShareConfig>,
    closed: watch::Receiver<Option<Closed>>,
    pace: Arc<Pace>,
    offers: watch::Sender<Arc<HostOffers>>,
    status: watch::Sender<Arc<InventoryStatus>>,
    /// Servers that did not answer of late: what they said last, and how often they owed an answer.
    silent: BTreeMap<String, (Backend, u32)>,
    /// What servers were found to speak, and when.
    spoken: BTreeMap<String, (Instant, BackendApi, Vec<Protocol>)>,
    open_ports: OpenPorts,
    gpus: Vec<Gpu>,
}

impl Watcher {
    async fn run(mut self) {
        let mut reader = Some(GpuReader::default());
        let mut gpus_due = Instant::now();
        loop {
            if Instant::now() >= gpus_due {
                gpus_due = Instant::now() + POLL_GPUS;
                let mut taken = reader.take().unwrap_or_default();
                let read = tokio::task::spawn_blocking(move || {
                    let gpus = taken.read();
                    (taken, gpus)
                });
                if let Ok((taken, gpus)) = read.await {
                    reader = Some(taken);
                    self.gpus = gpus;
                }
            }
            let begun = Instant::now();
            self.poll().await;
            let pause = if self.share.borrow().is_on {
                POLL
            } else {
                POLL_UNSHARED
            };
            tokio::select! {
                () = tokio::time::sleep_until((begun + pause).into()) => {}
                changed = self.share.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = self.closed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn poll(&mut self) {
        let config = self.share.borrow_and_update().clone();
        let is_set = !config.backends.is_empty();
        let urls: Vec<String> = if is_set {
            config.backends.clone()
        } else {
            USUAL.map(str::to_owned).to_vec()
        };
        let probes = urls.iter().map(|url| probe::probe(url));
        let mut answers = futures_util::future::join_all(probes).await;
        self.spoken.retain(|url, _| urls.contains(url));
        for (url, answer) in urls.iter().zip(&mut answers) {
            match answer {
                Ok(probe) => self.learn(url, probe).await,
                Err(Miss::Gone(_)) => {
                    self.spoken.remove(url);
                }
                Err(Miss::Silent(_)) => {}
            }
        }
        let mut backends: Vec<Backend> = Vec::new();
        for (url, answer) in urls.into_iter().zip(answers) {
            if let Some(mut backend) = self.settle(url, answer, is_set) {
                // Where there is no server of this machine, the kernel's tables are not looked at.
                backend.warning = listen::loopback_port(&backend.authority).and_then(|port| {
                    listen::warning(port, backend.api, self.open_ports.at(Instant::now()))
                });
                backends.push(backend);
            }
        }
        let mut shared = if config.is_on {
            select(&backends, &config.models)
        } else {
            Vec::new()
        };
        let closed = *self.closed.borrow_and_update();
        let now = Instant::now();
        for shared in &mut shared {
            let speed = self.pace.told(&shared.offer.model, now);
            if shared.offer.speed != speed {
                Arc::make_mut(&mut shared.offer).speed = speed;
            }
        }
        self.pace
            .retain(|model| backends.iter().any(|backend| backend.has(model)));
        self.tell(InventoryStatus {
            config,
            backends,
            shared,
            gpus: self.gpus.clone(),
            closed,
        });
    }

    /// Puts what the server speaks into its offers.
    async fn learn(&mut self, url: &str, probe: &mut Probe) {
        let known = self.spoken.get(url).filter(|(_, api, _)| *api == probe.api);
        let is_fresh = known.is_some_and(|(at, _, _)| at.elapsed() < SPOKEN_KEPT);
        let speaks = if is_fresh {
            known.map(|(_, _, speaks)| speaks.clone())
        } else {
            probe::spoken(&probe.authority, probe.api).await
        };
        let Some(speaks) = speaks.or_else(|| known.map(|(_, _, speaks)| speaks.clone())) else {
            return;
        };
        for offer in &mut probe.models {
            offer.speaks.clone_from(&speaks);
        }
        if !is_fresh {
            let entry = (Instant::now(), probe.api, speaks);
            self.spoken.insert(url.to_owned(), entry);
        }
    }

    fn settle(
        &mut self,
        url: String,
        answer: Result<Probe, Miss>,
        is_set: bool,
    ) -> Option<Backend> {
        match answer {
            Ok(probe) => {
                let backend = Backend {
                    url: url.clone(),
                    authority: probe.authority,
                    api: probe.api,
                    models: probe.models.into_iter().map(Arc::new).collect(),
                    error: None,
                    warning: None,
                };
                self.silent.insert(url, (backend.clone(), 0));
                Some(backend)
            }
            Err(Miss::Silent(error)) => {
                if let Some((last, n_silent)) = self.silent.get_mut(&url)
                    && *n_silent < N_SILENT_MAX
                    && last.error.is_none()
                {
                    *n_silent += 1;
                    return Some(last.clone());
                }
                self.lost(url, error, is_set)
            }
            Err(Miss::Gone(error)) => self.lost(url, error, is_set),
        }
    }

    fn lost(&mut self, url: String, error: String, is_set: bool) -> Option<Backend> {
        let last = self.silent.remove(&url).map(|(last, _)| last);
        is_set.then(|| Backend {
            authority: String::new(),
            api: last.map_or(BackendApi::OpenAi, |last| last.api),
            models: Vec::new(),
            error: Some(error),
            warning: None,
            url,
        })
    }

    fn tell(&self, status: InventoryStatus) {
        let offers = status.offers();
        // Before the status: who waited for that one reads the offers next.
        self.offers.send_if_modified(|current| {
            let is_new = **current != offers;
            if is_new {
                tracing::info!(n_models = offers.models.len(), "offers changed");
                *current = Arc::new(offers);
            }
            is_new
        });
        self.status.send_if_modified(|current| {
            let is_new = **current != status;
            if is_new {
                *current = Arc::new(status);
            }
            is_new
        });
    }
}

/// The models to share: those that a pattern names and no cloud serves, one a name, sorted.
fn select(backends: &[Backend], patterns: &[String]) -> Vec<Shared> {
    let mut by_name: BTreeMap<&str, Shared> = BTreeMap::new();
    for backend in backends {
        for offer in &backend.models {
            if !pattern::matches_any(patterns, &offer.model) {
                continue;
            }
            by_name.entry(&offer.model).or_insert_with(|| Shared {
                offer: Arc::clone(offer),
                authority: backend.authority.clone(),
            });
        }
    }
    if by_name.len() > N_MODELS_MAX {
        tracing::warn!(
            n_models = by_name.len(),
            n_max = N_MODELS_MAX,
            "more models than can be shared"
        );
    }
    by_name.into_values().take(N_MODELS_MAX).collect()
}

#[cfg(test)]
mod tests;
