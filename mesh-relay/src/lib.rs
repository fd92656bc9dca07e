//! The relay: carries sealed packets between nodes that have no direct path. It cannot open them.
//!
//! `hub` decides who gets what, in turns and within bounds; `session` is the sockets around it; `members` is who may
//! come. A node takes a connection by an HTTP upgrade and proves its node key. What stands around a relay, a coordinator
//! or a node, has the listeners, the TLS, the metrics and the word of who is in the mesh.
#![forbid(unsafe_code)]

pub mod chain;
mod hub;
mod lane;
mod members;
mod meter;
mod rate;
mod session;
mod udp;

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::relay::{self, Pin};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::hub::Hub;
pub use self::members::Members;
pub use self::meter::Meter;
use self::session::Wakers;
pub use self::udp::stun_answer;

/// Nodes that may be connected.
const N_CLIENTS_MAX: usize = 8_192;
/// Connections that have not said yet whose they are.
const N_UNKNOWN_MAX: usize = 512;
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How often keys that expire are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What a relay is made with.
#[derive(Debug)]
pub struct RelayConfig {
    /// The pin of the certificate by which nodes reach it.
    pub pin: Pin,
    /// How many bytes a second each node may send; 0 for any.
    pub bytes_per_second: u64,
    /// Whom it serves.
    pub members: watch::Receiver<Arc<Members>>,
    /// What it counts goes there.
    pub meter: Arc<dyn Meter>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Owns its connections and threads.
    pub tasks: TaskTracker,
}

/// A relay of one mesh.
#[derive(Debug)]
pub struct Relay {
    pin: Pin,
    bytes_per_second: u64,
    members: watch::Receiver<Arc<Members>>,
    meter: Arc<dyn Meter>,
    hub: Mutex<Hub<Arc<Wakers>>>,
    unknown: Arc<Semaphore>,
    udp_port: OnceLock<u16>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Relay {
    /// A relay that nobody is connected to yet.
    #[must_use]
    pub fn new(config: RelayConfig) -> Arc<Self> {
        Arc::new(Self {
            pin: config.pin,
            bytes_per_second: config.bytes_per_second,
            members: config.members,
            meter: config.meter,
            hub: Mutex::new(Hub::new(N_CLIENTS_MAX, config.bytes_per_second)),
            unknown: Arc::new(Semaphore::new(N_UNKNOWN_MAX)),
            udp_port: OnceLock::new(),
            stop: config.stop,
            tasks: config.tasks,
        })
    }

    /// Takes sealed data by these sockets too, all of one port, and answers STUN there. Nodes that connect from then on
    /// are told of it.
    ///
    /// # Errors
    /// When the process has no descriptor left, or the system gives no random bytes.
    pub fn serve_udp(self: &Arc<Self>, sockets: Vec<tokio::net::UdpSocket>) -> anyhow::Result<()> {
        let secret = random()?;
        self.with_hub(|hub, _| hub.set_udp_secret(secret));
        for socket in sockets {
            let port = socket.local_addr()?.port();
            udp::start(self, socket.into_std()?)?;
            // The port of all of them.
            let _ = self.udp_port.set(port);
        }
        Ok(())
    }

    /// Ends the connections of those who are members no more, until told to stop.
    pub async fn keep(self: Arc<Self>) {
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
                self.meter.queued(hub.n_bytes());
            });
        }
    }

    /// Answers a request for [`relay::PATH`]; the connection becomes a node's where it asks for that.
    pub fn upgrade<B>(self: &Arc<Self>, request: &mut Request<B>) -> Response<&'static str> {
        if !asks_for_upgrade(request.headers()) {
            let text = "this is the relay of a Proxima mesh: ask for the upgrade `proxima-relay`\n";
            return answer(StatusCode::UPGRADE_REQUIRED, text);
        }
        let place = Arc::clone(&self.unknown).try_acquire_owned();
        let (Ok(place), false) = (place, self.stop.is_cancelled()) else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "the relay is busy\n");
        };
        let upgraded = hyper::upgrade::on(request);
        let relay = Arc::clone(self);
        self.tasks.spawn(async move {
            let upgraded = tokio::select! {
                () = relay.stop.cancelled() => return,
                upgraded = tokio::time::timeout(UPGRADE_DEADLINE, upgraded) => upgraded,
            };
            if let Ok(Ok(stream)) = upgraded {
                let ended = session::run(relay, TokioIo::new(stream), place).await;
                tracing::debug!(%ended, "a relay connection ended");
            }
        });
        let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, "");
        let upgrade = HeaderValue::from_static("upgrade");
        response.headers_mut().insert(CONNECTION, upgrade);
        response
    }

    /// Works on the hub, then wakes whom that concerns.
    fn with_hub<R>(
        &self,
        work: impl FnOnce(&mut Hub<Arc<Wakers>>, &mut Vec<Arc<Wakers>>) -> R,
    ) -> R {
        let mut wake = Vec::new();
        let result = {
            let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut hub, &mut wake)
        };
        for wakers in wake {
            wakers.waiting.notify_one();
        }
        result
    }
}

fn answer(status: StatusCode, text: &'static str) -> Response<&'static str> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let protocol = HeaderValue::from_static(relay::UPGRADE);
    response.headers_mut().insert(UPGRADE, protocol);
    response
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

/// Random bytes of the system.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|err| io::Error::other(err.to_string()))?;
    Ok(bytes)
}

/// The wall clock, Unix milliseconds.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
