//! Models that guests have this host pull, where its owner lets them: named users, within a budget of disk, one at a time.
//!
//! A guest's request is never passed on: what is sent to Ollama is made here, out of a name that was checked.

mod ledger;
mod progress;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesh_proto::local::{PullState, PullStatus};
use mesh_proto::name::normalise;
use mesh_proto::share::BackendApi;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use self::progress::{Progress, Step};
use super::Core;
use super::admit::is_cloud_name;
use super::dialect::Refusal;
use super::pool::Pool;
use super::upstream::{self, Patience, Target};
use crate::inventory::InventoryStatus;
use crate::view::View;

pub(crate) use ledger::LEDGER_FILE;
pub use ledger::Ledger;

/// Where a door takes it; not a path of any model server.
pub(crate) const PATH: &str = "/proxima/pull";
/// The registry is far: silence is borne for so long.
const PATIENCE: Patience = Patience {
    head: Duration::from_mins(1),
    idle: Duration::from_mins(2),
};
/// The longest line of progress.
const LINE_MAX: usize = 64 << 10;
const NAME_LEN_MAX: usize = 128;

/// The pulls of this host.
#[derive(Debug)]
pub(crate) struct Puller {
    ledger: Arc<Ledger>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The pull under way, or how the last one ended.
    last: Option<PullStatus>,
    task: Option<AbortOnDropHandle<()>>,
}

impl Puller {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            inner: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to pull a model, or tells how its pull stands.
    ///
    /// # Errors
    /// A refusal that says why this host does not pull it.
    pub(crate) fn ask(
        &self,
        pool: &Arc<Pool>,
        share: &InventoryStatus,
        model: &str,
    ) -> Result<PullStatus, Refusal> {
        let model = checked_name(model)?;
        if has(share, &model) {
            return Ok(PullStatus::of(&model, PullState::Done));
        }
        let mut inner = self.lock();
        if let Some(last) = &inner.last {
            match last.state {
                PullState::Pulling if last.model == model => return Ok(last.clone()),
                PullState::Pulling => {
                    return Err(Refusal::busy(format!(
                        "this host is pulling {} at the moment; ask again when that is done",
                        last.model
                    )));
                }
                // The list of models follows within seconds.
                PullState::Done if last.model == model => return Ok(last.clone()),
                PullState::Failed if last.model == model => {
                    // Told once; the next request tries again.
                    let told = last.clone();
                    inner.last = None;
                    return Ok(told);
                }
                PullState::Done | PullState::Failed => {}
            }
        }
        let ollama = share
            .backends
            .iter()
            .find(|backend| backend.api == BackendApi::Ollama && backend.error.is_none());
        let ollama = ollama.ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                "no Ollama runs on this host, and nothing else can pull models",
            )
        })?;
        let used: u64 = self.used_bytes(share);
        let left = share.config.pulls.budget_bytes.saturating_sub(used);
        if left == 0 {
            return Err(over_budget(share.config.pulls.budget_bytes));
        }
        let status = PullStatus::of(&model, PullState::Pulling);
        inner.last = Some(status.clone());
        let pull = Pull {
            pool: Arc::clone(pool),
            ledger: Arc::clone(&self.ledger),
            inner: Arc::clone(&self.inner),
            authority: ollama.authority.clone(),
            model,
            left,
        };
        inner.task = Some(AbortOnDropHandle::new(tokio::spawn(pull.run())));
        Ok(status)
    }

    /// What the models that guests had pulled take of the disk.
    fn used_bytes(&self, share: &InventoryStatus) -> u64 {
        let pulled = self.ledger.models();
        let offers = share.backends.iter().flat_map(|backend| &backend.models);
        let theirs = offers.filter(|offer| pulled.contains(&normalise(&offer.model)));
        theirs.fold(0, |sum, offer| sum.saturating_add(offer.size_bytes))
    }
}

fn has(share: &InventoryStatus, model: &str) -> bool {
    let mut offers = share.backends.iter().flat_map(|backend| &backend.models);
    offers.any(|offer| normalise(&offer.model) == model)
}

fn over_budget(budget: u64) -> Refusal {
    Refusal::new(
        StatusCode::INSUFFICIENT_STORAGE,
        format!(
            "models that guests had pulled fill the {} MiB that this host's owner grants them",
            budget >> 20
        ),
    )
}

/// A name of the public registry, in one spelling: no other registry, no path, and nothing of the vendor's cloud.
fn checked_name(model: &str) -> Result<String, Refusal> {
    let wrong = || {
        Refusal::bad_request(
            "a host pulls models of Ollama's own registry alone; name one as it is there, such as llama3.2:1b",
        )
    };
    let name = normalise(model);
    if is_cloud_name(&name) {
        return Err(Refusal::forbidden(
            "ollama cloud is disabled: remote model is unavailable",
        ));
    }
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name.as_str(), None),
    };
    let is_part = |part: &str, more: &[u8]| {
        part.bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    let is_path = match path.split_once('/') {
        Some((namespace, model)) => is_part(namespace, b"-_") && is_part(model, b"-_."),
        None => is_part(path, b"-_."),
    };
    let is_name =
        name.len() <= NAME_LEN_MAX && is_path && tag.is_none_or(|tag| is_part(tag, b"-_."));
    if is_name { Ok(name) } else { Err(wrong()) }
}

/// One pull.
struct Pull {
    pool: Arc<Pool>,
    ledger: Arc<Ledger>,
    inner: Arc<Mutex<Inner>>,
    authority: String,
    model: String,
    /// Bytes of the budget that are left.
    left: u64,
}

impl Pull {
    async fn run(self) {
        let outcome = self.pull().await;
        let mut status = self.status();
        match outcome {
            Ok(()) => {
                tracing::info!("a model that a guest asked for was pulled");
                status.state = PullState::Done;
            }
            Err(why) => {
                tracing::info!(%why, "a model that a guest asked for was not pulled");
                let (ledger, model) = (Arc::clone(&self.ledger), self.model.clone());
                let forgotten = tokio::task::spawn_blocking(move || ledger.remove(&model));
                if !matches!(forgotten.await, Ok(Ok(()))) {
                    tracing::warn!("a model that did not come still counts as pulled");
                }
                status.state = PullState::Failed;
                status.message = Some(why);
            }
        }
        self.tell(status);
    }

    fn status(&self) -> PullStatus {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let last = inner.last.clone();
        last.unwrap_or_else(|| PullStatus::of(&self.model, PullState::Pulling))
    }

    fn tell(&self, status: PullStatus) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last = Some(status);
    }

    /// An error here drops the connection, which ends the pull.
    fn within_budget(&self, progress: &Progress) -> Result<(), String> {
        if progress.total_bytes() <= self.left {
            return Ok(());
        }
        Err(format!(
            "the model takes {} MiB, and {} MiB are left of what this host's owner grants",
            progress.total_bytes().div_ceil(1 << 20),
            self.left >> 20
        ))
    }

    async fn pull(&self) -> Result<(), String> {
        // Before the first byte is on the disk: what comes counts, should this daemon end meanwhile.
        let (ledger, model) = (Arc::clone(&self.ledger), self.model.clone());
        let noted = tokio::task::spawn_blocking(move || ledger.add(&model));
        noted
            .await
            .map_err(|err| err.to_string())?
            .map_err(|err| format!("this host cannot note what it pulls: {err}"))?;
        let body = json!({ "model": self.model, "stream": true });
        let target = Target::Backend(self.authority.clone());
        let body = Bytes::from(body.to_string());
        let sent = upstream::post(&self.pool, &target, "/api/pull", body, PATIENCE);
        let reply = sent
            .await
            .map_err(|_| "this host's Ollama does not answer".to_owned())?;
        let (head, mut body) = reply.into_parts();
        if head.status != StatusCode::OK {
            let told = body.collect(LINE_MAX).await.unwrap_or_default();
            let words = super::translate::error_message(&told);
            return Err(words.unwrap_or_else(|| format!("Ollama answered {}", head.status)));
        }
        let mut progress = Progress::default();
        let mut line = Vec::new();
        while let Some(chunk) = std::future::poll_fn(|task| body.poll_data(task)).await {
            let chunk = chunk.map_err(|_| "the pull broke off".to_owned())?;
            for byte in chunk {
                if byte != b'\n' {
                    if line.len() >= LINE_MAX {
                        return Err(
                            "Ollama told of its progress in no way that is known".to_owned()
                        );
                    }
                    line.push(byte);
                    continue;
                }
                let step = progress.take(&line);
                line.clear();
                self.within_budget(&progress)?;
                match step {
                    Step::Going => {}
                    Step::Done => return Ok(()),
                    Step::Failed(why) => return Err(why),
                }
            }
            self.tell(PullStatus {
                completed_bytes: progress.completed_bytes(),
                total_bytes: progress.total_bytes(),
                ..PullStatus::of(&self.model, PullState::Pulling)
            });
        }
        match progress.take(&line) {
            Step::Done => Ok(()),
            Step::Failed(why) => Err(why),
            Step::Going => Err("the pull broke off".to_owned()),
        }
    }
}

/// Why a host did not take an order to pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// There is no map of a mesh.
    #[error("the node is not up: run `meshctl up`")]
    NotUp,
    /// No such node, or it is away.
    #[error("{0}")]
    NoHost(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status of its answer.
        status: u16,
        /// Why.
        message: String,
    },
    /// It could not be asked.
    #[error("the host cannot be reached at the moment")]
    Unreachable,
}

/// Asks another host, or this one.
pub(super) async fn send(
    core: &Core,
    view: &View,
    host: &str,
    model: &str,
) -> Result<PullStatus, PullError> {
    let own = &view.netmap.node.name;
    if own.as_str() == host {
        return Err(PullError::NoHost(format!(
            "{host} is this machine: pull the model with `ollama pull`"
        )));
    }
    let mut peers = view.netmap.peers.values();
    let peer = peers.find(|peer| peer.name.as_str() == host);
    let peer = peer.ok_or_else(|| {
        PullError::NoHost(format!("there is no node {host}; see `meshctl status`"))
    })?;
    let addr = SocketAddr::new(IpAddr::V4(peer.ipv4), core.peer_port);
    let target = Target::Host(addr, core.outward.clone());
    let body = Bytes::from(json!({ "model": model }).to_string());
    let sent = upstream::post(&core.pool, &target, PATH, body, Patience::SHORT);
    let reply = sent.await.map_err(|_| PullError::Unreachable)?;
    let status = reply.status();
    let body = reply.into_body().collect(LINE_MAX).await;
    let body = body.map_err(|_| PullError::Unreachable)?;
    if status != StatusCode::OK {
        let message = super::translate::error_message(&body);
        return Err(PullError::Refused {
            status: status.as_u16(),
            message: message.unwrap_or_else(|| format!("the host answered {status}")),
        });
    }
    serde_json::from_slice(&body).map_err(|_| PullError::Refused {
        status: status.as_u16(),
        message: "the host's answer is not understood; its meshd may be of another version"
            .to_owned(),
    })
}

/// The models that guests had pulled, in one spelling.
type Names = BTreeSet<String>;

#[cfg(test)]
mod tests;
