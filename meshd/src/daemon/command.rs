//! What the control socket asks of the loop, and what the loop does about it.

use std::time::Instant;

use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::control::code;
use mesh_proto::id::NodeId;
use mesh_proto::local::{
    DnsStatus, NetCheck, PingReply, PingRequest, RunState, SetRequest, Settings, ShareRequest,
    ShareStatus, Status, UpRequest,
};
use tokio::sync::oneshot;

use super::{Daemon, TALK_TIMEOUT, Talk, TalkUnderWay, hostname, internal};
use crate::control::{self, ControlError, Joined, Link};
use crate::inventory::ShareConfig;
use crate::local::{LocalError, apply_settings};

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
    ShareStatus(Answer<ShareStatus>),
    Share(ShareRequest, Answer<ShareConfig>),
    Settings(Answer<Settings>),
    Set(SetRequest, Answer<Settings>),
    Dns(Answer<DnsStatus>),
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
            Command::Down(answer) => drop(answer.send(self.down().await)),
            Command::Logout(answer) => self.logout(answer),
            Command::Rotate(answer) => self.rotate(answer),
            Command::Ping(request, answer) => self.ping(&request, answer),
            Command::ShareStatus(answer) => drop(answer.send(Ok(self.share_status()))),
            Command::Share(request, answer) => drop(answer.send(self.share(request))),
            Command::Settings(answer) => drop(answer.send(Ok(self.settings.clone()))),
            Command::Set(request, answer) => drop(answer.send(self.set(&request).await)),
            Command::Dns(answer) => drop(answer.send(self.dns_status())),
            Command::LookAround(answer) => drop(answer.send(self.look_around())),
            Command::NetCheck(answer) => drop(answer.send(self.net_check())),
            Command::Observe(answer) => {
                self.observe();
                drop(answer.send(Ok(())));
            }
        }
    }

    async fn up(&mut self, request: &UpRequest, answer: Answer<()>) {
        match self.plan_up(request).await {
            Ok(None) => drop(answer.send(Ok(()))),
            Ok(Some(key)) => self.join(key, request.hostname.clone(), answer),
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    /// What `up` means here: nothing more to do, or a join with this key.
    async fn plan_up(&mut self, request: &UpRequest) -> Result<Option<AuthKey>, LocalError> {
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
            (None, Some(key)) => Ok(Some(key)),
            (Some(membership), Some(key)) if pin_of(&membership.coordinator_key) != *key.pin() => {
                Err(LocalError::new(
                    code::CONFLICT,
                    "this node belongs to another mesh: leave it with `meshctl logout` first",
                ))
            }
            (Some(_), Some(key)) if is_refused => Ok(Some(key)),
            (Some(_), None) if is_refused => {
                let trouble = self.trouble.borrow();
                let why = trouble
                    .as_ref()
                    .map_or("the coordinator refuses this node", |problem| {
                        problem.message.as_str()
                    });
                Err(LocalError::new(code::NEEDS_LOGIN, why))
            }
            (Some(mut membership), key) => {
                // A newer key of the same mesh tells where its coordinators are by now.
                let is_moved = key.is_some_and(|key| {
                    let is_moved = membership.urls != key.urls();
                    membership.urls = key.urls().to_vec();
                    is_moved
                });
                if is_moved {
                    self.state.set_membership(&membership).map_err(internal)?;
                }
                self.state.set_on(true).map_err(internal)?;
                if is_moved
                    || self
                        .session
                        .as_ref()
                        .is_none_or(|session| session.overlay.is_none())
                {
                    self.start_session(membership).await.map_err(internal)?;
                }
                Ok(None)
            }
        }
    }

    fn join(&mut self, auth_key: AuthKey, name: Option<String>, answer: Answer<()>) {
        let keys = self
            .state
            .machine_key()
            .and_then(|machine| Ok((machine, self.state.node_key()?)));
        let (machine_key, node_key) = match keys {
            Ok(keys) => keys,
            Err(err) => return drop(answer.send(Err(internal(err)))),
        };
        let hostname = name.unwrap_or_else(hostname);
        let dialer = self.config.dialer();
        self.start_talk(answer, true, async move {
            let ask = Joined {
                auth_key: &auth_key,
                machine_key: &machine_key,
                node_key: &node_key,
                hostname,
                dialer,
            };
            let urls = auth_key.urls().join(", ");
            Talk::Joined(timed(urls, control::join(ask)).await)
        });
    }

    async fn down(&mut self) -> Result<(), LocalError> {
        // A join that ended after this would switch the node on again.
        if self.talk.as_ref().is_some_and(|talk| talk.is_join)
            && let Some(talk) = self.talk.take()
        {
            talk.task.abort();
            let stopped = LocalError::new(code::CONFLICT, "`meshctl down` came in between");
            drop(talk.answer.send(Err(stopped)));
        }
        self.state.set_on(false).map_err(internal)?;
        self.stop_session().await;
        let state = if self.state.membership().map_err(internal)?.is_some() {
            RunState::Stopped
        } else {
            RunState::NeedsLogin
        };
        self.run_state.send_replace(state);
        self.trouble.send_replace(None);
        Ok(())
    }

    fn logout(&mut self, answer: Answer<()>) {
        match self.link() {
            Ok(mut link) => self.start_talk(answer, false, async move {
                let url = link.url().to_owned();
                Talk::LoggedOut(timed(url, control::logout(&mut link)).await)
            }),
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    fn rotate(&mut self, answer: Answer<()>) {
        let prepared = self.link().and_then(|link| {
            let machine_key = self.state.machine_key().map_err(internal)?;
            let node_key = self.state.next_node_key().map_err(internal)?;
            Ok((link, machine_key, node_key))
        });
        match prepared {
            Ok((mut link, machine_key, node_key)) => self.start_talk(answer, false, async move {
                let url = link.url().to_owned();
                let asked = control::rotate(&mut link, &machine_key, &node_key);
                let told = timed(url, asked).await;
                Talk::Rotated(told.map(|()| node_key))
            }),
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    /// A link to the coordinator for one talk.
    fn link(&self) -> Result<Link, LocalError> {
        let membership = self.state.membership().map_err(internal)?;
        let membership = membership.ok_or_else(|| {
            LocalError::new(
                code::NEEDS_LOGIN,
                "this node belongs to no mesh: there is nothing to do",
            )
        })?;
        let tls = control::tls_config(pin_of(&membership.coordinator_key))
            .map_err(|reason| LocalError::new(code::INTERNAL, reason))?;
        Ok(Link::new(
            membership.urls,
            tls,
            self.state.machine_key().map_err(internal)?,
        )
        .through(self.config.dialer()))
    }

    fn start_talk(
        &mut self,
        answer: Answer<()>,
        is_join: bool,
        talk: impl Future<Output = Talk> + Send + 'static,
    ) {
        if self.talk.is_some() {
            let busy = LocalError::new(
                code::CONFLICT,
                "another up, logout or rotate is under way: try again when it is done",
            );
            return drop(answer.send(Err(busy)));
        }
        self.talk = Some(TalkUnderWay {
            task: tokio::spawn(talk),
            is_join,
            answer,
        });
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
        if let Some(n_slots) = request.n_slots {
            if !(1..=1024).contains(&n_slots) {
                return Err(LocalError::new(
                    code::BAD_REQUEST,
                    "slots must be 1 to 1024",
                ));
            }
            share.n_slots = n_slots;
        }
        check_share(&share).map_err(|message| LocalError::new(code::BAD_REQUEST, message))?;
        self.state.set_share(&share).map_err(internal)?;
        self.share.send_replace(share.clone());
        Ok(share)
    }

    async fn set(&mut self, request: &SetRequest) -> Result<Settings, LocalError> {
        let settings = apply_settings(&self.settings, request)?;
        self.state.set_settings(&settings).map_err(internal)?;
        let is_dns_changed = settings.dns != self.settings.dns;
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
        Ok(self.settings.clone())
    }
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

async fn timed<T>(
    url: String,
    talk: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    let late = || ControlError::Unreachable {
        url,
        reason: "no answer in time".to_owned(),
    };
    tokio::time::timeout(TALK_TIMEOUT, talk)
        .await
        .unwrap_or_else(|_| Err(late()))
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
