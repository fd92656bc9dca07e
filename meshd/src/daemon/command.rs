//! What the control socket asks of the loop, and what the loop does about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::control::code;
use mesh_proto::id::NodeId;
use mesh_proto::local::{
    DnsAnswer, DnsQuery, DnsStatus, NetCheck, PingReply, PingRequest, PullChange, RunState,
    SetRequest, Settings, ShareRequest, ShareStatus, Status, UpRequest, UserspaceMode,
};
use mesh_proto::share::PullPolicy;
use tokio::sync::oneshot;

use super::api::UP_TIMEOUT;
use super::{Daemon, internal};
use crate::control::Link;
use crate::gateway::Gateway;
use crate::inventory::ShareConfig;
use crate::local::{LocalError, apply_settings};
use crate::state_dir::Membership;

/// The most users that may have this machine pull models.
const N_PULL_USERS_MAX: usize = 256;

/// What is left of a policy on pulls after a change.
fn changed_pulls(pulls: PullPolicy, change: PullChange) -> Result<PullPolicy, LocalError> {
    let pulls = PullPolicy {
        users: change.users.unwrap_or(pulls.users),
        budget_bytes: change.budget_bytes.unwrap_or(pulls.budget_bytes),
    };
    let bad = |message: String| Err(LocalError::new(code::BAD_REQUEST, message));
    if pulls.users.len() > N_PULL_USERS_MAX {
        return bad(format!("at most {N_PULL_USERS_MAX} users can be named"));
    }
    if !pulls.users.is_empty() && pulls.budget_bytes == 0 {
        return bad(
            "say how much of the disk their models may take: `meshctl share set --pull-budget 50GiB`"
                .to_owned(),
        );
    }
    Ok(pulls)
}

/// Where the answer to a command goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, LocalError>>;

/// A request of the control socket.
#[derive(Debug)]
pub(super) enum Command {
    Status(Answer<Status>),
    Up(UpRequest, Answer<()>),
    Down(Answer<()>),
    Logout(Answer<()>),
    Rotate(Answer<()>),
    Ping(PingRequest, Answer<PingReply>),
    /// A link to the coordinator for one question.
    Link(Answer<Link>),
    /// The way to other hosts.
    Gateway(Answer<Arc<Gateway>>),
    ShareStatus(Answer<ShareStatus>),
    Share(ShareRequest, Answer<ShareConfig>),
    Settings(Answer<Settings>),
    Set(SetRequest, Answer<Settings>),
    Dns(Answer<DnsStatus>),
    DnsQuery(DnsQuery, Answer<DnsAnswer>),
    /// Asks what the network looks like.
    LookAround(Answer<()>),
    /// What it looks like, and whether that is all that can be known now.
    NetCheck(Answer<(bool, NetCheck)>),
    /// Brings the metrics up to date.
    Observe(Answer<()>),
}

impl Daemon {
    pub(super) async fn on_command(&mut self, command: Command) {
        // An answer that nobody waits for any more is dropped: the caller went away.
        match command {
            Command::Status(answer) => drop(answer.send(Ok(self.status()))),
            Command::Up(request, answer) => self.up(&request, answer).await,
            Command::Down(answer) => self.down(answer),
            Command::Logout(answer) => self.logout(answer),
            Command::Rotate(answer) => self.rotate(answer),
            Command::Ping(request, answer) => self.ping(&request, answer),
            Command::Link(answer) => drop(answer.send(self.link())),
            Command::Gateway(answer) => drop(answer.send(self.gateway())),
            Command::ShareStatus(answer) => drop(answer.send(Ok(self.share_status()))),
            Command::Share(request, answer) => drop(answer.send(self.share(request))),
            Command::Settings(answer) => drop(answer.send(Ok(self.settings.clone()))),
            Command::Set(request, answer) => drop(answer.send(self.set(&request).await)),
            Command::Dns(answer) => drop(answer.send(self.dns_status())),
            Command::DnsQuery(query, answer) => drop(answer.send(self.dns_query(&query))),
            Command::LookAround(answer) => drop(answer.send(self.look_around())),
            Command::NetCheck(answer) => drop(answer.send(self.net_check())),
            Command::Observe(answer) => {
                self.observe();
                drop(answer.send(Ok(())));
            }
        }
    }

    async fn up(&mut self, request: &UpRequest, answer: Answer<()>) {
        if request.userspace && self.settings.userspace != UserspaceMode::On {
            let settings = Settings {
                userspace: UserspaceMode::On,
                ..self.settings.clone()
            };
            if let Err(err) = self.change_settings(settings).await {
                return drop(answer.send(Err(err)));
            }
        }
        match self.plan_up(request) {
            Ok(Plan::Join(key)) => self.join(key, request.hostname.clone(), None, answer),
            Ok(Plan::SwitchOn(membership)) => {
                drop(answer.send(self.switch_on(membership).await));
            }
            Ok(Plan::Ask(key, membership)) => {
                // Traffic does not wait for the coordinator's word.
                if !self.is_up()
                    && let Err(err) = self.start_session(membership).await
                {
                    return drop(answer.send(Err(internal(err))));
                }
                let patience = request.timeout_ms.map_or(UP_TIMEOUT, Duration::from_millis) / 2;
                self.join(key, request.hostname.clone(), Some(patience), answer);
            }
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    /// What `up` means here.
    fn plan_up(&self, request: &UpRequest) -> Result<Plan, LocalError> {
        let key: Option<AuthKey> = match &request.auth_key {
            Some(text) => Some(
                text.parse()
                    .map_err(|err| LocalError::new(code::BAD_REQUEST, format!("{err}")))?,
            ),
            None => None,
        };
        let membership = self.state.membership().map_err(internal)?;
        let is_refused = *self.run_state.borrow() == RunState::Refused;
        match (membership, key) {
            (None, None) => Err(LocalError::new(
                code::NEEDS_LOGIN,
                "this node belongs to no mesh yet: run `meshctl up --auth-key pxk_…` with a key from `coordinator key create`",
            )),
            (None, Some(key)) => Ok(Plan::Join(key)),
            (Some(membership), Some(key)) if pin_of(&membership.coordinator_key) != *key.pin() => {
                Err(LocalError::new(
                    code::CONFLICT,
                    "this node belongs to another mesh: leave it with `meshctl logout` first",
                ))
            }
            (Some(_), Some(key)) if is_refused => Ok(Plan::Join(key)),
            (Some(_), None) if is_refused => {
                let trouble = self.trouble.borrow();
                let why = trouble
                    .as_ref()
                    .map_or("the coordinator refuses this node", |problem| {
                        problem.message.as_str()
                    });
                Err(LocalError::new(code::NEEDS_LOGIN, why))
            }
            // A newer key of the same mesh tells where its coordinators are by now.
            (Some(mut membership), Some(key)) => {
                membership.learn_urls(key.urls());
                Ok(Plan::Ask(key, membership))
            }
            (Some(membership), None) => Ok(Plan::SwitchOn(membership)),
        }
    }

    fn down(&mut self, answer: Answer<()>) {
        self.break_off_join();
        let known = self.state.membership();
        // Off now, whatever can be written down of it.
        let stored = self.state.set_on(false);
        self.stop_session();
        self.trouble.send_replace(None);
        let state = if matches!(known, Ok(None)) {
            RunState::NeedsLogin
        } else {
            RunState::Stopped
        };
        self.run_state.send_replace(state);
        match stored {
            Ok(()) => self.answer_when_ended(answer),
            Err(err) => drop(answer.send(Err(LocalError::new(
                code::INTERNAL,
                format!("the node is off, but will be on again after a restart of meshd: {err}"),
            )))),
        }
    }

    fn ping(&mut self, request: &PingRequest, answer: Answer<PingReply>) {
        let Some(session) = &mut self.session else {
            let stopped =
                LocalError::new(code::NEEDS_LOGIN, "the node is not up: run `meshctl up`");
            return drop(answer.send(Err(stopped)));
        };
        if session.is_own_name(&request.target) {
            let own = LocalError::new(
                code::BAD_REQUEST,
                format!("`{}` is this node itself: nothing to probe", request.target),
            );
            return drop(answer.send(Err(own)));
        }
        let target = session.find_peer(&request.target);
        match target {
            Some(node) => session.ping(Instant::now(), node, answer),
            None => {
                let message = format!(
                    "no node `{}` in this mesh: `meshctl status` lists them",
                    request.target
                );
                drop(answer.send(Err(LocalError::new(code::NOT_FOUND, message))));
            }
        }
    }

    fn share(&mut self, request: ShareRequest) -> Result<ShareConfig, LocalError> {
        let mut share = self.share.borrow().clone();
        share.is_on = request.is_on.unwrap_or(share.is_on);
        share.models = request.models.unwrap_or(share.models);
        share.audience = request.audience.unwrap_or(share.audience);
        share.backends = request.backends.unwrap_or(share.backends);
        if let Some(change) = request.pulls {
            share.pulls = changed_pulls(share.pulls, change)?;
        }
        if let Some(n_slots) = request.n_slots {
            if !(1..=1024).contains(&n_slots) {
                return Err(LocalError::new(
                    code::BAD_REQUEST,
                    "slots must be 1 to 1024",
                ));
            }
            share.n_slots = n_slots;
        }
        if let Some(change) = request.door {
            share.door = share
                .door
                .changed(change)
                .map_err(|err| LocalError::new(code::BAD_REQUEST, err.to_string()))?;
        }
        check_share(&share).map_err(|message| LocalError::new(code::BAD_REQUEST, message))?;
        self.state.set_share(&share).map_err(internal)?;
        self.share.send_replace(share.clone());
        Ok(share)
    }

    async fn set(&mut self, request: &SetRequest) -> Result<Settings, LocalError> {
        let settings = apply_settings(&self.settings, request)?;
        self.change_settings(settings).await?;
        Ok(self.settings.clone())
    }

    /// Keeps the settings and has the node follow them.
    async fn change_settings(&mut self, settings: Settings) -> Result<(), LocalError> {
        self.state.set_settings(&settings).map_err(internal)?;
        let face = |settings: &Settings| {
            let listeners = (settings.socks5, settings.http_proxy, settings.gateway);
            (settings.userspace, listeners)
        };
        let is_face_changed = face(&settings) != face(&self.settings);
        let is_dns_changed = settings.dns != self.settings.dns;
        let is_relay_changed = settings.relay != self.settings.relay;
        self.settings = settings;
        self.publish_view();
        if is_dns_changed {
            let wants_dns = self.settings.dns && self.config.dns;
            if let Some(overlay) = self
                .session
                .as_mut()
                .and_then(|session| session.overlay.as_mut())
            {
                overlay.wire(wants_dns, &self.state).await;
            }
        }
        if is_relay_changed {
            self.offer_relay().await;
        }
        if is_face_changed {
            self.remake_overlay().await;
        }
        Ok(())
    }
}

/// What `up` comes to.
enum Plan {
    /// Not a member: the key is used.
    Join(AuthKey),
    /// A member, as far as this node knows, with a key in case that it is none any more.
    Ask(AuthKey, Membership),
    /// A member without a key.
    SwitchOn(Membership),
}

/// The most patterns and backends that a share may name.
const N_SHARE_ENTRIES_MAX: usize = 64;

/// Refuses what could never work, so that the owner hears of it at once.
fn check_share(share: &ShareConfig) -> Result<(), String> {
    if share.models.len().max(share.backends.len()) > N_SHARE_ENTRIES_MAX {
        return Err(format!(
            "at most {N_SHARE_ENTRIES_MAX} model patterns and backends can be named"
        ));
    }
    if let Some(pattern) = share
        .models
        .iter()
        .find(|pattern| pattern.is_empty() || pattern.len() > 256)
    {
        return Err(format!(
            "`{pattern}` is no pattern of model names, such as `llama3*`"
        ));
    }
    let is_url = |url: &&String| {
        let uri: Option<http::Uri> = url.parse().ok();
        uri.is_some_and(|uri| {
            uri.scheme_str() == Some("http")
                && uri.host().is_some()
                && matches!(uri.path(), "" | "/")
        })
    };
    match share.backends.iter().find(|url| !is_url(url)) {
        Some(url) => Err(format!(
            "`{url}` is no backend: give it as http://127.0.0.1:11434"
        )),
        None => Ok(()),
    }
}

/// Whether a text names this node: its name, DNS name, id or an overlay address.
pub(super) fn names_node(
    text: &str,
    id: &NodeId,
    name: &str,
    suffix: &str,
    addrs: [std::net::IpAddr; 2],
) -> bool {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let bare = text
        .strip_suffix(suffix)
        .and_then(|rest| rest.strip_suffix(".node."))
        .unwrap_or(&text);
    bare.trim_end_matches(".node") == name
        || text == id.to_string()
        || text
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| addrs.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_in_several_ways() {
        let id = NodeId::from_bytes([1; 10]);
        let addrs = ["10.77.1.0".parse().unwrap(), "fd00::1".parse().unwrap()];
        for text in [
            "gpu1",
            "GPU1",
            "gpu1.node",
            "gpu1.node.proxima",
            "gpu1.node.proxima.",
            "10.77.1.0",
            "fd00::1",
        ] {
            assert!(names_node(text, &id, "gpu1", "proxima", addrs), "{text}");
        }
        assert!(names_node(&id.to_string(), &id, "gpu1", "proxima", addrs));
        for text in ["gpu2", "gpu1.proxima", "10.77.1.1", ""] {
            assert!(!names_node(text, &id, "gpu1", "proxima", addrs), "{text}");
        }
    }
}
