//! `coordinator relay`: a relay without a coordinator beside it. It knows nothing but who is in the mesh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::key::{CoordinatorKey, CoordinatorPrivateKey, MachinePrivateKey};
use mesh_proto::relay::{Member, Pin, RelayRegistration};
use mesh_relay::{Members, Relay, RelayConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::follow::{Follower, Talk};
use super::{Counted, router};
use crate::api::proof::source_ip;
use crate::config::host_of;
use crate::serve::{bind_all, find_urls, give_udp, public_stun};
use crate::server::{self, Shared};
use crate::state_dir::{MEMBERSHIP_FILE, StateDir};
use crate::tls::Tls;
use crate::{local_addr, metrics, stun};

/// Where the state of a relay is kept by default.
pub const RELAY_STATE_DIR: &str = "/var/lib/proxima-relay";

const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Members are written down when they have not changed for this long.
const KEEP_AFTER: Duration = Duration::from_secs(1);

/// How to run a relay alone.
#[derive(Debug)]
pub struct RelaySettings {
    /// The key that `coordinator relay add` made; only the first run needs it.
    pub auth_key: Option<AuthKey>,
    /// TCP addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Whether an address that the machine lacks is left out.
    pub is_listen_default: bool,
    /// UDP addresses for STUN; the TCP ones' addresses and port when absent.
    pub stun: Option<Vec<SocketAddr>>,
    /// The public URLs; empty to find them out.
    pub urls: Vec<String>,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// How many bytes a second each node may send; 0 for any.
    pub bytes_per_second: u64,
}

/// A relay that runs alone.
pub struct RelayServer {
    addresses: Vec<SocketAddr>,
    urls: Vec<String>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _state_dir: StateDir,
}

impl std::fmt::Debug for RelayServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayServer")
            .field("addresses", &self.addresses)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// What a relay keeps of its mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Membership {
    coordinator_key: CoordinatorKey,
    urls: Vec<String>,
}

const MEMBERS_FILE: &str = "members.json";

impl RelayServer {
    /// Starts a relay.
    ///
    /// # Errors
    /// When its state or an address cannot be used, or the coordinator refuses it; the text says what to do.
    pub async fn start(settings: RelaySettings) -> anyhow::Result<Self> {
        metrics::init();
        let state_dir = StateDir::open(&settings.state_dir)?;
        let secret = state_dir.relay_key()?;
        let key = MachinePrivateKey::from_bytes(&secret);
        let tls_key = CoordinatorPrivateKey::from_bytes(&secret);
        let pin = Pin::from_bytes(pin_of(&tls_key.public()));

        let (listeners, addresses) = server::listen(&settings.listen, settings.is_listen_default)?;
        let (stun_sockets, stun) = bind_all(settings.stun.as_deref(), &addresses)?;
        let urls = if settings.urls.is_empty() {
            find_urls(&addresses, &local_addr::list(), |_| false)
        } else {
            settings.urls
        };
        let hosts: Vec<String> = urls.iter().filter_map(|url| host_of(url)).collect();
        let registration = RelayRegistration {
            auth_secret: None,
            urls: urls.clone(),
            stun: public_stun(&hosts, &stun).await,
        };
        let membership = join(&state_dir, settings.auth_key.as_ref(), &key, &registration).await?;
        let known: Option<Vec<Member>> = state_dir.read_json(MEMBERS_FILE)?;
        let known = known.unwrap_or_default();
        let known = Members::new(
            known
                .iter()
                .map(|member| (member.node_key, member.expires_at_ms)),
        );
        let (members_tx, members) = watch::channel(Arc::new(known));

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let relay = Relay::new(RelayConfig {
            pin,
            bytes_per_second: settings.bytes_per_second,
            members: members.clone(),
            meter: Arc::new(Counted),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        let stun_sockets = give_udp(&relay, stun_sockets)?;
        let tls = Tls::own(tls_key, hosts)?;
        let acceptor = TlsAcceptor::from(tls.server_config()?);
        let follower = Follower {
            talk: Talk::new(membership.urls, pin_of(&membership.coordinator_key), key)?,
            coordinator: membership.coordinator_key,
            registration,
            members: members_tx,
        };
        let shared = Shared {
            router: router(Arc::clone(&relay))
                .route("/healthz", get(health).with_state(members.clone()))
                .route("/metrics", get(scrape)),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        for listener in listeners {
            tasks.spawn(server::serve_tls(
                shared.clone(),
                listener,
                acceptor.clone(),
            ));
        }
        for socket in stun_sockets {
            tasks.spawn(stun::serve(socket, stop.clone()));
        }
        tasks.spawn(relay.keep());
        tasks.spawn(follower.run(stop.clone()));
        tasks.spawn(keep_members(
            state_dir.path().to_owned(),
            members,
            stop.clone(),
        ));
        tasks.spawn(crate::serve::keep_tls_fresh(tls, stop.clone()));
        Ok(Self {
            addresses,
            urls,
            stop,
            tasks,
            _state_dir: state_dir,
        })
    }

    /// Where nodes reach it.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The URLs that the netmap names.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Stops: nodes are told that it comes back.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("stopping with connections open");
        }
    }
}

/// Takes up the membership of an earlier run, or comes into the mesh by the key.
async fn join(
    state_dir: &StateDir,
    auth_key: Option<&AuthKey>,
    key: &MachinePrivateKey,
    registration: &RelayRegistration,
) -> anyhow::Result<Membership> {
    let kept: Option<Membership> = state_dir.read_json(MEMBERSHIP_FILE)?;
    let auth_key = match (kept, auth_key) {
        (Some(kept), None) => return Ok(kept),
        // The same mesh again: the key was used by the first run.
        (Some(kept), Some(auth_key)) if pin_of(&kept.coordinator_key) == *auth_key.pin() => {
            return Ok(kept);
        }
        (_, Some(auth_key)) => auth_key,
        (None, None) => bail!(
            "this relay belongs to no mesh yet: give it the key that this prints where the coordinator runs: \
             coordinator relay add NAME"
        ),
    };
    let talk = Talk::new(auth_key.urls().to_vec(), *auth_key.pin(), key.clone())?;
    let asked = RelayRegistration {
        auth_secret: Some(auth_key.secret_text()),
        ..registration.clone()
    };
    let registered = talk.register(&asked).await?;
    if pin_of(&registered.coordinator_key) != *auth_key.pin() {
        bail!("another coordinator answers than the key names");
    }
    let membership = Membership {
        coordinator_key: registered.coordinator_key,
        urls: auth_key.urls().to_vec(),
    };
    state_dir.write_json(MEMBERSHIP_FILE, &membership)?;
    tracing::info!(relay = %registered.id, name = %registered.name, "the mesh has this relay");
    Ok(membership)
}

/// Writes the members down, so that a restart serves them with no coordinator in reach.
async fn keep_members(
    state_dir: PathBuf,
    mut members: watch::Receiver<Arc<Members>>,
    stop: CancellationToken,
) {
    loop {
        let more = async {
            members.changed().await.is_ok() && {
                tokio::time::sleep(KEEP_AFTER).await;
                true
            }
        };
        let goes_on = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            goes_on = more => goes_on,
        };
        let newest = members.borrow_and_update().list();
        let dir = state_dir.clone();
        let kept = tokio::task::spawn_blocking(move || {
            crate::state_dir::write_json_in(&dir, MEMBERS_FILE, &newest)
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(err = format!("{err:#}"), "cannot keep the members"),
            Err(err) => tracing::warn!(%err, "cannot keep the members"),
        }
        if !goes_on {
            return;
        }
    }
}

async fn health(State(members): State<watch::Receiver<Arc<Members>>>) -> Response {
    if members.borrow().list().is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no member is known yet\n").into_response();
    }
    "ok\n".into_response()
}

/// Metrics, for programs on this machine.
async fn scrape(request: Request) -> Response {
    if source_ip(&request).is_some_and(|source| source.to_canonical().is_loopback()) {
        return metrics::render().into_response();
    }
    (
        StatusCode::FORBIDDEN,
        "metrics are told on this machine alone\n",
    )
        .into_response()
}
