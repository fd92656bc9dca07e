//! Talks with the coordinator that a command started: joining, leaving, a new tunnel key. One at a time, beside the loop.

use std::time::Duration;

use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::code;
use mesh_proto::key::NodePrivateKey;
use mesh_proto::local::{Problem, RunState};

use super::command::Answer;
use super::session::Session;
use super::{Daemon, control_error, hostname, internal};
use crate::control::{self, ControlError, Join, Joined, Link};
use crate::local::LocalError;

/// A join, logout or rotation must end within this.
const TALK_TIMEOUT: Duration = Duration::from_secs(30);
/// A member that works from its map asks whether it still is one no longer than this.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(10);

/// A talk under way, and who waits for it.
pub(super) struct TalkUnderWay {
    pub(super) task: tokio::task::JoinHandle<Talk>,
    pub(super) is_join: bool,
    pub(super) answer: Answer<()>,
}

/// How a talk ended.
#[derive(Debug)]
pub(super) enum Talk {
    Joined {
        outcome: Result<Joined, ControlError>,
        /// Where the auth key says that the coordinators are, when the node is a member that can go on without their word.
        urls_if_member: Option<Vec<String>>,
    },
    LoggedOut(Result<(), ControlError>),
    Rotated(Result<NodePrivateKey, ControlError>),
    /// It broke; a fault of this program.
    Broken(String),
}

impl Daemon {
    /// Joins with an auth key. A member's is used only if the coordinator does not know it any more, and a member asks no
    /// longer than `patience`.
    pub(super) fn join(
        &mut self,
        auth_key: AuthKey,
        name: Option<String>,
        member_patience: Option<Duration>,
        answer: Answer<()>,
    ) {
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
        let is_member = member_patience.is_some();
        let limit = member_patience.map_or(TALK_TIMEOUT, |patience| patience.min(MEMBER_TIMEOUT));
        self.start_talk(answer, true, async move {
            let ask = Join {
                auth_key: &auth_key,
                machine_key: &machine_key,
                node_key: &node_key,
                hostname,
                dialer,
                is_member,
            };
            let urls = auth_key.urls();
            let outcome = timed(limit, urls.join(", "), control::join(ask)).await;
            Talk::Joined {
                outcome,
                urls_if_member: is_member.then(|| urls.to_vec()),
            }
        });
    }

    pub(super) fn logout(&mut self, answer: Answer<()>) {
        match self.link() {
            Ok(mut link) => self.start_talk(answer, false, async move {
                let url = link.url().to_owned();
                Talk::LoggedOut(timed(TALK_TIMEOUT, url, control::logout(&mut link)).await)
            }),
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    pub(super) fn rotate(&mut self, answer: Answer<()>) {
        let prepared = self.link().and_then(|link| {
            let machine_key = self.state.machine_key().map_err(internal)?;
            let node_key = self.state.next_node_key().map_err(internal)?;
            Ok((link, machine_key, node_key))
        });
        match prepared {
            Ok((mut link, machine_key, node_key)) => self.start_talk(answer, false, async move {
                let url = link.url().to_owned();
                let asked = control::rotate(&mut link, &machine_key, &node_key);
                let told = timed(TALK_TIMEOUT, url, asked).await;
                Talk::Rotated(told.map(|()| node_key))
            }),
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    /// A link to the coordinator for one talk.
    pub(super) fn link(&self) -> Result<Link, LocalError> {
        let membership = self.state.membership().map_err(internal)?;
        let membership = membership.ok_or_else(|| {
            LocalError::new(
                code::NEEDS_LOGIN,
                "this node belongs to no mesh: there is nothing to do",
            )
        })?;
        let pin = mesh_proto::auth_key::pin_of(&membership.coordinator_key);
        let tls =
            control::tls_config(pin).map_err(|reason| LocalError::new(code::INTERNAL, reason))?;
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

    /// Ends a join under way: what comes after it must not be undone by its end.
    pub(super) fn break_off_join(&mut self) {
        if self.talk.as_ref().is_some_and(|talk| talk.is_join)
            && let Some(talk) = self.talk.take()
        {
            talk.task.abort();
            let stopped = LocalError::new(code::CONFLICT, "`meshctl down` came in between");
            drop(talk.answer.send(Err(stopped)));
        }
    }

    pub(super) async fn on_talked(&mut self, talk: Talk) {
        let answer = self.talk.take().map(|talk| talk.answer);
        let result = match talk {
            Talk::Joined {
                outcome: Ok(joined),
                ..
            } => self.on_joined(joined).await,
            Talk::Joined {
                outcome: Err(err),
                urls_if_member,
            } => self.on_not_joined(err, urls_if_member).await,
            Talk::LoggedOut(told) => match self.on_logged_out(told) {
                Ok(()) => {
                    if let Some(answer) = answer {
                        self.answer_when_ended(answer);
                    }
                    return;
                }
                Err(err) => Err(err),
            },
            Talk::Rotated(Ok(node_key)) => self.on_rotated(&node_key),
            Talk::Rotated(Err(err)) => Err(control_error(err)),
            Talk::Broken(why) => Err(LocalError::new(code::INTERNAL, why)),
        };
        if let Some(answer) = answer {
            // Nobody waits any more when the caller went away; the outcome stands all the same.
            let _ = answer.send(result);
        }
    }

    async fn on_joined(&mut self, joined: Joined) -> Result<(), LocalError> {
        let Joined { membership, is_new } = joined;
        tracing::info!(node = %membership.node_id, name = %membership.name, is_new, "joined");
        let before = self.state.membership().map_err(internal)?;
        if is_new {
            // Its address is another than before, and the kept map would bring the old one up.
            self.stop_session();
            self.state.forget_map().map_err(internal)?;
        }
        self.state.set_membership(&membership).map_err(internal)?;
        self.state.set_on(true).map_err(internal)?;
        let is_same = before.is_some_and(|before| before.urls == membership.urls);
        if is_same && self.is_up() {
            return Ok(());
        }
        self.start_session(membership).await.map_err(internal)
    }

    /// A member whose coordinator said nothing goes on by its map, and its auth key is as good as before.
    async fn on_not_joined(
        &mut self,
        err: ControlError,
        urls_if_member: Option<Vec<String>>,
    ) -> Result<(), LocalError> {
        let is_refused = *self.run_state.borrow() == RunState::Refused;
        let membership = self.state.membership().map_err(internal)?;
        let (Some(urls), Some(mut membership), true, false) =
            (urls_if_member, membership, err.is_no_word(), is_refused)
        else {
            return Err(control_error(err));
        };
        tracing::info!(%err, "no word of the coordinator; going on by the last map");
        let is_moved = membership.learn_urls(&urls);
        if is_moved {
            self.state.set_membership(&membership).map_err(internal)?;
        }
        let is_heard = self.session.as_ref().is_some_and(Session::is_connected);
        if is_moved && !is_heard {
            self.stop_session();
        }
        self.switch_on(membership).await?;
        if !is_heard {
            self.unused_key = Some(err.to_string());
        }
        Ok(())
    }

    fn on_logged_out(&mut self, told: Result<(), ControlError>) -> Result<(), LocalError> {
        self.stop_session();
        // First of all: a crash in between must not leave a share that the next mesh would see.
        let share = self.share.borrow().after_leaving();
        self.state.end_share(&share).map_err(internal)?;
        self.share.send_replace(share);
        self.state.forget().map_err(internal)?;
        self.trouble.send_replace(None);
        self.run_state.send_replace(RunState::NeedsLogin);
        match told {
            Err(err) if !err.needs_person() => {
                tracing::warn!(%err, "left, but the coordinator could not be told; it lists the node until its key expires");
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    fn on_rotated(&mut self, node_key: &NodePrivateKey) -> Result<(), LocalError> {
        self.state.set_node_key(node_key).map_err(internal)?;
        if let Some(overlay) = self
            .session
            .as_mut()
            .and_then(|session| session.overlay.as_mut())
        {
            overlay.set_node_key(node_key.clone());
        }
        Ok(())
    }

    /// What the owner should know of an auth key that was not looked at.
    pub(super) fn unused_key_problem(&self) -> Option<Problem> {
        self.unused_key.as_ref().map(|why| Problem {
            code: "auth_key_unused".to_owned(),
            message: format!(
                "the auth key was not used and is not spent: {why}. Should the coordinator not know this node any more, \
                 run the same `meshctl up` again when it is back"
            ),
            fix: None,
        })
    }
}

async fn timed<T>(
    limit: Duration,
    url: String,
    talk: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    let late = || ControlError::Unreachable {
        url,
        reason: "no answer in time".to_owned(),
    };
    tokio::time::timeout(limit, talk)
        .await
        .unwrap_or_else(|_| Err(late()))
}
