//! The relay: carries sealed packets between nodes that have no direct path. It cannot open them.
//!
//! `hub` decides who gets what, in turns and within bounds; `session` is the sockets around it; `members` is who may
//! come. A node takes a connection by an HTTP upgrade and proves its node key.

pub(crate) mod alone;
pub(crate) mod feed;
mod follow;
mod hub;
mod lane;
pub(crate) mod members;
mod rate;
mod session;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use mesh_proto::relay::{self, Pin};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::hub::Hub;
use self::members::Members;
use crate::clock::unix_ms;
use crate::metrics;

/// Nodes that may be connected.
const N_CLIENTS_MAX: usize = 8_192;
/// Connections that have not said yet whose they are.
const N_UNKNOWN_MAX: usize = 512;
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How often keys that expire are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// A relay of one mesh.
#[derive(Debug)]
pub(crate) struct Relay {
    pin: Pin,
    bytes_per_second: u64,
    members: watch::Receiver<Arc<Members>>,
    hub: Mutex<Hub<Arc<Notify>>>,
    unknown: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Relay {
    /// A relay whose certificate has this pin, for these members; each may send so many bytes a second, 0 for any.
    pub(crate) fn new(
        pin: Pin,
        bytes_per_second: u64,
        members: watch::Receiver<Arc<Members>>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            pin,
            bytes_per_second,
            members,
            hub: Mutex::new(Hub::new(N_CLIENTS_MAX, bytes_per_second)),
            unknown: Arc::new(Semaphore::new(N_UNKNOWN_MAX)),
            stop,
            tasks,
        })
    }

    /// Ends the connections of those who are members no more, until told to stop.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut members = self.members.clone();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = members.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            let known = Arc::clone(&members.borrow_and_update());
            let now_ms = unix_ms();
            self.with_hub(|hub, wake| {
                hub.retain(|key| known.has(key, now_ms), wake);
                metrics::relay_queued(hub.n_bytes());
            });
        }
    }

    /// Works on the hub, then wakes whom that concerns.
    fn with_hub<R>(
        &self,
        work: impl FnOnce(&mut Hub<Arc<Notify>>, &mut Vec<Arc<Notify>>) -> R,
    ) -> R {
        let mut wake = Vec::new();
        let result = {
            let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut hub, &mut wake)
        };
        for writer in wake {
            writer.notify_one();
        }
        result
    }
}

/// The relay's route.
pub(crate) fn router(relay: Arc<Relay>) -> Router {
    Router::new()
        .route(relay::PATH, get(upgrade))
        .with_state(relay)
}

async fn upgrade(State(relay): State<Arc<Relay>>, mut request: Request) -> Response {
    let protocol = HeaderValue::from_static(relay::UPGRADE);
    if !asks_for_upgrade(request.headers()) {
        let text = "this is the relay of a Proxima mesh: ask for the upgrade `proxima-relay`\n";
        return (StatusCode::UPGRADE_REQUIRED, [(UPGRADE, protocol)], text).into_response();
    }
    let place = Arc::clone(&relay.unknown).try_acquire_owned();
    let (Ok(place), false) = (place, relay.stop.is_cancelled()) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the relay is busy\n").into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let tasks = relay.tasks.clone();
    tasks.spawn(async move {
        let upgraded = tokio::select! {
            () = relay.stop.cancelled() => return,
            upgraded = tokio::time::timeout(UPGRADE_DEADLINE, upgraded) => upgraded,
        };
        if let Ok(Ok(stream)) = upgraded {
            let ended = session::run(relay, TokioIo::new(stream), place).await;
            tracing::debug!(%ended, "a relay connection ended");
        }
    });
    let headers = [
        (UPGRADE, protocol),
        (CONNECTION, HeaderValue::from_static("upgrade")),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    let has = |name: HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    has(UPGRADE, relay::UPGRADE) && has(CONNECTION, "upgrade")
}
