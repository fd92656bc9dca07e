//! What is asked of the system while the overlay is up, packet rules and names: put in place, kept there, taken out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::local::Problem;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::dns::upstream::Upstreams;
use crate::os::linux::firewall::Firewall;
use crate::os::linux::names::{NameWiring, Plan, System, WiringStatus};

/// How long taking the names out may last before the daemon ends without it; the journal lets the next start do it.
const UNDO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the system's resolver is looked at; the first looks come sooner, while others still settle.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(15);
/// The problem that lasts until the system's resolver was asked, some milliseconds after the start.
pub(super) const NAMES_PENDING: &str = "names_pending";

/// The work on the system, beside the daemon's loop: a slow system bus must not hold packets up.
#[derive(Debug)]
pub(super) struct Wiring {
    wired: Arc<Mutex<Wired>>,
    upstreams: Arc<Upstreams>,
    look: Arc<Notify>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// What was asked of the system and how that went.
#[derive(Debug, Default)]
struct Wired {
    names: Option<NameWiring>,
    firewall: Option<Problem>,
}

impl Wiring {
    /// Nothing asked of the system yet.
    pub(super) fn new(upstreams: Arc<Upstreams>) -> Self {
        Self {
            wired: Arc::default(),
            upstreams,
            look: Arc::default(),
            cancel: CancellationToken::new(),
            task: None,
        }
    }

    /// Tells the firewall of the overlay, and the resolver too where its owner wants that.
    pub(super) async fn set(&mut self, firewall: Firewall, names: Option<(System, Plan)>) {
        self.take_names_out().await;
        self.cancel = CancellationToken::new();
        let (wired, upstreams) = (Arc::clone(&self.wired), Arc::clone(&self.upstreams));
        let (look, cancel) = (Arc::clone(&self.look), self.cancel.clone());
        self.task = Some(tokio::spawn(async move {
            let problem = firewall.apply().await;
            lock(&wired).firewall = problem;
            if let Some((system, plan)) = names {
                keep(&system, &plan, &wired, &upstreams, &look, &cancel).await;
            }
        }));
    }

    /// Takes names and rules out again.
    pub(super) async fn clear(&mut self) {
        self.take_names_out().await;
        // Failing to remove our own table leaves nothing open: it only drops.
        if let Err(err) = Firewall::undo().await {
            tracing::warn!(%err, "cannot remove the firewall table");
        }
    }

    /// The network changed, and the system's resolver perhaps with it.
    pub(super) fn look_again(&self) {
        self.look.notify_one();
    }

    async fn take_names_out(&mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            let abort = task.abort_handle();
            if tokio::time::timeout(UNDO_TIMEOUT, task).await.is_err() {
                abort.abort();
            }
        }
        let names = lock(&self.wired).names.take();
        if let Some(names) = names {
            match tokio::time::timeout(UNDO_TIMEOUT, names.undo()).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => {
                    tracing::warn!(%err, "cannot take the mesh's names out of the system; the next start tries again");
                }
                Err(_) => tracing::warn!(
                    "the system's resolver does not answer; the next start takes the mesh's names out"
                ),
            }
        }
    }

    /// How names stand; nothing while nobody was asked.
    pub(super) fn names(&self) -> Option<WiringStatus> {
        lock(&self.wired).names.as_ref().map(NameWiring::status)
    }

    /// What the owner should look at.
    pub(super) fn problems(&self, wants_names: bool) -> Vec<Problem> {
        let mut problems: Vec<Problem> = lock(&self.wired).firewall.iter().cloned().collect();
        if !wants_names {
            return problems;
        }
        match self.names() {
            None => problems.push(Problem {
                code: NAMES_PENDING.to_owned(),
                message: "the system's resolver is being told of the mesh's names".to_owned(),
                fix: None,
            }),
            Some(status) if !status.is_wired => problems.push(Problem {
                code: "dns_unmanaged".to_owned(),
                message: "this system's resolver does not know the mesh's names, and must be told by hand"
                    .to_owned(),
                fix: Some("meshctl dns".to_owned()),
            }),
            Some(_) => {}
        }
        problems
    }
}

fn lock(wired: &Mutex<Wired>) -> MutexGuard<'_, Wired> {
    wired.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wires the names in, and anew whenever the system's resolver became another one or forgot them.
async fn keep(
    system: &System,
    plan: &Plan,
    wired: &Mutex<Wired>,
    upstreams: &Upstreams,
    look: &Notify,
    cancel: &CancellationToken,
) {
    let mut told = None;
    let mut pause = LOOK_FIRST;
    loop {
        let names = NameWiring::detect_and_apply(system.clone(), plan.clone()).await;
        let (watch, status) = (names.watch(), names.status());
        upstreams.set(names.upstreams());
        lock(wired).names = Some(names);
        if told.as_ref() != Some(&status) {
            report(&status);
            told = Some(status);
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK_MAX),
                () = look.notified() => {}
            }
            if let Some(names) = &lock(wired).names {
                upstreams.set(names.upstreams());
            }
            if watch.is_stale().await {
                break;
            }
            // What comes in bursts is looked at once a second.
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_FIRST) => {}
            }
        }
    }
}

fn report(status: &WiringStatus) {
    let manager = status.manager;
    match &status.hint {
        None => tracing::info!(manager, "names wired"),
        Some(hint) => {
            let reason = hint.lines().next().unwrap_or_default();
            tracing::warn!(
                manager,
                reason,
                "plain programs do not resolve the mesh's names; `meshctl dns` says what to do"
            );
        }
    }
}
