//! The control socket's calls, passed to the loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::control::{
    AllowedReply, AllowedRequest, PATH_ALLOWED, PATH_WANT, PATH_WANTED, WantRequest, Wanted, code,
};
use mesh_proto::filter::Allow;
use mesh_proto::local::{
    DnsAnswer, DnsQuery, DnsStatus, Models, NetCheck, PingReply, PingRequest, Problem, PullRequest,
    PullStatus, RunState, SetRequest, Settings, ShareRequest, ShareStatus, Status, Suggestions,
    Top, UpRequest, Why, WhyRequest,
};
use mesh_proto::share::HostOffers;
use mesh_proto::usage::UsageReport;
use tokio::sync::{mpsc, oneshot, watch};

use super::OVERLAY_FAILED;
use super::command::{Answer, Command};
use super::wants;
use super::why::{Question, Read};
use super::wiring::NAMES_PENDING;
use crate::catalog::Catalog;
use crate::choice::Hosts;
use crate::control::ControlError;
use crate::gateway::PullError;
use crate::inventory::InventoryStatus;
use crate::local::{LocalApi, LocalError, WaitFor};
use crate::meter::Meter;
use crate::view::ViewReceiver;

pub(super) const UP_TIMEOUT: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `netcheck` waits for servers' answers: a lost question is repeated twice within it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_POLL: Duration = Duration::from_millis(50);
/// How long `share` waits for the backends to be looked at.
const SHARE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long `why` waits for the other node's answer, and for the coordinator's.
const WHY_PING: Duration = Duration::from_secs(2);
const WHY_POLICY: Duration = Duration::from_secs(3);
/// How long the coordinator may take to take in or tell what is wanted.
const WANTS_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How often `wait ready` looks again; readiness has parts outside the loop.
const READY_POLL: Duration = Duration::from_millis(50);

/// What the control socket holds of the daemon.
#[derive(Debug)]
pub(super) struct Api {
    commands: mpsc::Sender<Command>,
    run_state: watch::Receiver<RunState>,
    trouble: watch::Receiver<Option<Problem>>,
    view: ViewReceiver,
    hosts: Arc<Hosts>,
    inventory: watch::Receiver<Arc<InventoryStatus>>,
    meter: Arc<Meter>,
}

impl Api {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        run_state: watch::Receiver<RunState>,
        trouble: watch::Receiver<Option<Problem>>,
        view: ViewReceiver,
        hosts: Arc<Hosts>,
        inventory: watch::Receiver<Arc<InventoryStatus>>,
        meter: Arc<Meter>,
    ) -> Self {
        Self {
            commands,
            run_state,
            trouble,
            view,
            hosts,
            inventory,
            meter,
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, LocalError> {
        let stopping = || LocalError::new(code::UNAVAILABLE, "meshd is stopping");
        let (answer, reply) = oneshot::channel();
        self.commands
            .send(command(answer))
            .await
            .map_err(|_| stopping())?;
        reply.await.map_err(|_| stopping())?
    }

    async fn wait_running(&self, timeout: Duration) -> Result<(), LocalError> {
        let mut run_state = self.run_state.clone();
        let settled = run_state.wait_for(|state| {
            matches!(
                state,
                RunState::Running | RunState::Refused | RunState::NeedsLogin | RunState::Stopped
            )
        });
        let state = tokio::time::timeout(timeout, settled)
            .await
            .map(|state| state.map(|state| *state));
        match state {
            Ok(Ok(RunState::Running)) => Ok(()),
            Ok(Ok(RunState::Starting)) | Err(_) => Err(self.late().await),
            Ok(Ok(RunState::Refused | RunState::NeedsLogin | RunState::Stopped)) => {
                let status = self.ask(Command::Status).await?;
                let why = status
                    .problems
                    .first()
                    .map_or("the node is not up: run `meshctl up`", |problem| {
                        &problem.message
                    });
                Err(LocalError::new(code::NEEDS_LOGIN, why))
            }
            Ok(Err(_)) => Err(LocalError::new(code::UNAVAILABLE, "meshd is stopping")),
        }
    }

    /// Asks the coordinator what one node may open on another; why it cannot be known otherwise.
    async fn allowed(&self, asked: &AllowedRequest) -> Result<Vec<Allow>, ControlError> {
        let link = self.ask(Command::Link).await;
        let mut link = link.map_err(|err| ControlError::Unreachable {
            url: String::new(),
            reason: err.to_string(),
        })?;
        let url = link.url().to_owned();
        let told = link.call::<_, AllowedReply>(PATH_ALLOWED, asked);
        match tokio::time::timeout(WHY_POLICY, told).await {
            Ok(told) => told.map(|told| told.allow),
            Err(_) => Err(ControlError::Unreachable {
                url,
                reason: "no answer in time".to_owned(),
            }),
        }
    }

    /// Why the node is not up yet, as far as is known.
    async fn late(&self) -> LocalError {
        let problem = self
            .ask(Command::Status)
            .await
            .ok()
            .and_then(|status| status.problems.into_iter().next());
        let why = problem.map_or_else(
            || "the coordinator has sent no map yet".to_owned(),
            |problem| problem.message,
        );
        LocalError::new(code::TIMEOUT, format!("the node is not up yet: {why}"))
    }

    async fn wait_ready(&self, timeout: Duration) -> Result<(), LocalError> {
        let deadline = Instant::now() + timeout;
        self.wait_running(timeout).await?;
        loop {
            let status = self.ask(Command::Status).await?;
            let is_connected = status
                .coordinator
                .is_some_and(|coordinator| coordinator.is_connected);
            let is_wired = status
                .problems
                .iter()
                .all(|problem| problem.code != NAMES_PENDING);
            if status.state == RunState::Running && is_connected && is_wired {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.late().await);
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
}

impl LocalApi for Api {
    async fn status(&self, wait: Option<WaitFor>, timeout: Duration) -> Result<Status, LocalError> {
        let timeout = timeout.min(TIMEOUT_MAX);
        match wait {
            Some(WaitFor::Running) => self.wait_running(timeout).await?,
            Some(WaitFor::Ready) => self.wait_ready(timeout).await?,
            None => {}
        }
        self.ask(Command::Status).await
    }

    async fn up(&self, request: UpRequest) -> Result<Status, LocalError> {
        let timeout = request
            .timeout_ms
            .map_or(UP_TIMEOUT, Duration::from_millis)
            .min(TIMEOUT_MAX);
        let started = Instant::now();
        let up = self.ask(|answer| Command::Up(request, answer));
        tokio::time::timeout(timeout, up)
            .await
            .unwrap_or_else(|_| {
                Err(LocalError::new(
                    code::TIMEOUT,
                    "the coordinator did not answer in time; the join goes on: `meshctl status`",
                ))
            })?;
        let mut trouble = self.trouble.clone();
        let is_failed = |trouble: &Option<Problem>| {
            trouble
                .as_ref()
                .is_some_and(|problem| problem.code == OVERLAY_FAILED)
        };
        tokio::select! {
            running = self.wait_running(timeout.saturating_sub(started.elapsed())) => running?,
            // Why it failed is known at once: waiting for a retry to work would only hide it.
            Ok(problem) = trouble.wait_for(is_failed) => {
                let why = problem.as_ref().map_or("", |problem| problem.message.as_str());
                return Err(LocalError::new(
                    code::UNAVAILABLE,
                    format!("the node joined, but its overlay cannot be made: {why}. meshd tries again from time to time"),
                ));
            }
        }
        self.ask(Command::Status).await
    }

    async fn down(&self) -> Result<(), LocalError> {
        self.ask(Command::Down).await
    }

    async fn logout(&self) -> Result<(), LocalError> {
        self.ask(Command::Logout).await
    }

    async fn rotate(&self) -> Result<(), LocalError> {
        self.ask(Command::Rotate).await
    }

    async fn ping(&self, request: PingRequest) -> Result<PingReply, LocalError> {
        let timeout = request
            .timeout_ms
            .map_or(PING_TIMEOUT, Duration::from_millis)
            .min(TIMEOUT_MAX);
        let target = request.target.clone();
        let ping = self.ask(|answer| Command::Ping(request, answer));
        tokio::time::timeout(timeout, ping)
            .await
            .unwrap_or_else(|_| {
                Err(LocalError::new(
                    code::TIMEOUT,
                    format!("no reply from {target}"),
                ))
            })
    }

    async fn why(&self, request: WhyRequest) -> Result<Why, LocalError> {
        let view = self.view.borrow().clone().ok_or_else(not_up)?;
        let now = Instant::now();
        let catalog = Catalog::build(&view, |node| self.hosts.is_down(node, now));
        let question = match Question::read(&view, &catalog, &request)? {
            Read::Asks(question) => question,
            Read::Answered(why) => return Ok(why),
        };
        let policy = match question.local_policy() {
            Some(allow) => Ok(allow),
            None => self.allowed(&question.asks_coordinator()).await,
        };
        let (status, pong) = match question.far_end() {
            Some(node) => {
                let target = node.to_string();
                let timeout_ms = Some(u64::try_from(WHY_PING.as_millis()).unwrap_or(u64::MAX));
                let pong = self.ping(PingRequest { target, timeout_ms }).await;
                let status = self.ask(Command::Status).await?;
                let peer = status.peers.into_iter().find(|peer| peer.id == node);
                (peer, Some(pong))
            }
            None => (None, None),
        };
        Ok(question.answer(policy, status.as_ref(), pong))
    }

    async fn models(&self) -> Result<Models, LocalError> {
        let view = self.view.borrow().clone().ok_or_else(not_up)?;
        let now = Instant::now();
        let mut models = Catalog::build(&view, |node| self.hosts.is_down(node, now)).models();
        for host in models.models.iter_mut().flat_map(|model| &mut model.hosts) {
            let offers: &HostOffers = match view.netmap.peers.get(&host.id) {
                Some(peer) => &peer.offers,
                None => &view.own_offers,
            };
            host.n_slots = offers.n_slots;
            host.gpus.clone_from(&offers.gpus);
        }
        Ok(models)
    }

    async fn top(&self) -> Result<Top, LocalError> {
        let gateway = self.ask(Command::Gateway).await?;
        gateway.top().await.ok_or_else(not_up)
    }

    async fn pull(&self, request: PullRequest) -> Result<PullStatus, LocalError> {
        let gateway = self.ask(Command::Gateway).await?;
        let told = gateway.pull(&request.host, &request.model).await;
        told.map_err(|err| {
            let code = match &err {
                PullError::NotUp => code::NEEDS_LOGIN,
                PullError::NoHost(_) => code::NOT_FOUND,
                PullError::Refused { status, .. } => match status {
                    400..=402 => code::BAD_REQUEST,
                    403 => code::REFUSED,
                    _ => code::UNAVAILABLE,
                },
                PullError::Unreachable => code::TIMEOUT,
            };
            LocalError::new(code, err.to_string())
        })
    }

    async fn want(&self, request: WantRequest) -> Result<(), LocalError> {
        let mut link = self.ask(Command::Link).await?;
        let told = link.post(PATH_WANT, &request);
        within(WANTS_TIMEOUT, told).await
    }

    async fn suggestions(&self) -> Result<Suggestions, LocalError> {
        let view = self.view.borrow().clone().ok_or_else(not_up)?;
        let mut link = self.ask(Command::Link).await?;
        let asked = link.call::<_, Wanted>(PATH_WANTED, &());
        let wanted = within(WANTS_TIMEOUT, asked).await?;
        let now = Instant::now();
        let catalog = Catalog::build(&view, |node| self.hosts.is_down(node, now));
        let inventory = self.inventory.borrow().clone();
        Ok(wants::suggestions(wanted, &catalog, &inventory))
    }

    async fn share_status(&self) -> Result<ShareStatus, LocalError> {
        self.ask(Command::ShareStatus).await
    }

    async fn share(&self, request: ShareRequest) -> Result<ShareStatus, LocalError> {
        let config = self.ask(|answer| Command::Share(request, answer)).await?;
        // What is shared now is known once the backends were looked at under the new configuration.
        let mut inventory = self.inventory.clone();
        let looked = inventory.wait_for(|status| status.config == config);
        // A backend that does not answer in time must not hold the answer up: the status tells of it.
        let _ = tokio::time::timeout(SHARE_TIMEOUT, looked).await;
        self.ask(Command::ShareStatus).await
    }

    async fn usage(&self, n_days: u32) -> Result<UsageReport, LocalError> {
        Ok(self.meter.report(n_days))
    }

    async fn settings(&self) -> Result<Settings, LocalError> {
        self.ask(Command::Settings).await
    }

    async fn set(&self, request: SetRequest) -> Result<Settings, LocalError> {
        self.ask(|answer| Command::Set(request, answer)).await
    }

    async fn netcheck(&self) -> Result<NetCheck, LocalError> {
        self.ask(Command::LookAround).await?;
        let deadline = Instant::now() + LOOK_TIMEOUT;
        loop {
            let (is_settled, report) = self.ask(Command::NetCheck).await?;
            if is_settled || Instant::now() >= deadline {
                return Ok(report);
            }
            tokio::time::sleep(LOOK_POLL).await;
        }
    }

    async fn dns(&self) -> Result<DnsStatus, LocalError> {
        self.ask(Command::Dns).await
    }

    async fn dns_query(&self, query: DnsQuery) -> Result<DnsAnswer, LocalError> {
        self.ask(|answer| Command::DnsQuery(query, answer)).await
    }

    async fn metrics(&self) -> Result<String, LocalError> {
        self.ask(Command::Observe).await?;
        Ok(crate::metrics::render())
    }

    async fn bugreport(&self) -> Result<serde_json::Value, LocalError> {
        self.ask(Command::Observe).await?;
        let status = self.ask(Command::Status).await?;
        let share = self.ask(Command::ShareStatus).await?;
        let settings = self.ask(Command::Settings).await?;
        let dns = self.ask(Command::Dns).await.ok();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": kernel.trim(),
            "status": status,
            "share": share,
            "settings": settings,
            "dns": dns,
            "metrics": crate::metrics::render(),
        }))
    }
}

/// What the coordinator says, if it does so in time.
async fn within<T>(
    timeout: Duration,
    asked: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, LocalError> {
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(ControlError::Refused { code, message })) => {
            Err(LocalError::from_wire(&code, message))
        }
        Ok(Err(err)) => Err(LocalError::new(code::UNAVAILABLE, err.to_string())),
        Err(_) => Err(LocalError::new(
            code::TIMEOUT,
            "the coordinator did not answer in time; see `meshctl status`",
        )),
    }
}

fn not_up() -> LocalError {
    LocalError::new(code::NEEDS_LOGIN, "the node is not up: run `meshctl up`")
}
