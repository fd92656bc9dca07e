//! HTTP/1.1 on the control socket: binding it, bounding it, and routing each call to the daemon.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::control::{ErrorBody, code};
use mesh_proto::local::{
    DnsQuery, PATH_BUGREPORT, PATH_DNS, PATH_DNS_QUERY, PATH_DOWN, PATH_LOGOUT, PATH_METRICS,
    PATH_MODELS, PATH_NETCHECK, PATH_PING, PATH_PULL, PATH_ROTATE, PATH_SETTINGS, PATH_SHARE,
    PATH_STATUS, PATH_TOP, PATH_UP, PATH_USAGE, PATH_WANTS, PATH_WHY,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::auth::{self, Caller};
use super::{LocalApi, LocalError, WaitFor};

const SOCKET_GROUP: &str = "proxima";
const SOCKET_MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o755;
const LOCK_MODE: u32 = 0o600;
const BODY_LEN_MAX: usize = 64 * 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Of 64 connections, so many are kept free of readers: they cannot lock an administrator out.
const N_OWNER_CONNECTIONS: usize = 16;
const N_READER_CONNECTIONS: usize = 48;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon has it.
    #[error(
        "another meshd is already running and answers on {path}: use it, or stop it first (`systemctl stop meshd`), \
         or give this one another socket"
    )]
    AlreadyRunning {
        /// The socket's path.
        path: String,
    },
    /// Something that is no socket lies there.
    #[error("{path} exists and is not a socket: move it away, or give meshd another socket path")]
    NotASocket {
        /// The socket's path.
        path: String,
    },
    /// The system refused.
    #[error("cannot open the control socket {path}: {source}")]
    Io {
        /// The socket's path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The bound control socket. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct LocalServer {
    listener: UnixListener,
    path: PathBuf,
    own_uid: u32,
    /// Held for as long as the daemon lives; the kernel lets go of it however the daemon ends.
    _lock: File,
}

impl LocalServer {
    /// Binds the socket: directory 0755, socket 0660 and of group `proxima` where there is one.
    ///
    /// A socket left behind by a daemon that died is replaced. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`BindError::AlreadyRunning`] when another daemon answers there; otherwise what the system refused.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, BindError> {
        let path = path.into();
        let io = |source| BindError::Io {
            path: path.display().to_string(),
            source,
        };
        let running = || BindError::AlreadyRunning {
            path: path.display().to_string(),
        };

        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        if !dir.exists() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE)
                .create(dir)
                .map_err(io)?;
            // Whatever the umask says: the group must get through.
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(DIR_MODE)).map_err(io)?;
        }
        // Readable by nobody else: whoever can open a file can also hold its lock, and so keep a daemon from starting.
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(with_suffix(&path, ".lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(running()),
            Err(std::fs::TryLockError::Error(err)) => return Err(io(err)),
        }
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(BindError::NotASocket {
                    path: path.display().to_string(),
                });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(&path).is_ok() => {
                return Err(running());
            }
            Ok(_) => debug!("replacing the socket of a daemon that ended"),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(io(err)),
        }

        // Bound under another name and moved into place, so that nobody meets it before its mode is right.
        let fresh = with_suffix(&path, ".new");
        match std::fs::remove_file(&fresh) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(io(err)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(io)?;
        let made = std::fs::metadata(&fresh).map_err(io)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(SOCKET_MODE))
            .map_err(io)?;
        if let Some(gid) = group_id(SOCKET_GROUP)
            && gid != made.gid()
            && let Err(err) = std::os::unix::fs::chown(&fresh, None, Some(gid))
        {
            warn!(%err, group = SOCKET_GROUP, "the control socket stays with the daemon's own group");
        }
        std::fs::rename(&fresh, &path).map_err(io)?;
        Ok(Self {
            listener,
            path,
            own_uid: made.uid(),
            _lock: lock,
        })
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until cancelled; calls that are under way are then dropped.
    pub async fn run<A: LocalApi>(self, api: Arc<A>, cancel: CancellationToken) {
        let owners = Arc::new(Semaphore::new(N_OWNER_CONNECTIONS));
        let readers = Arc::new(Semaphore::new(N_READER_CONNECTIONS));
        let mut calls = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                Some(_) = calls.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    warn!(%err, "the control socket cannot accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let caller = match stream.peer_cred() {
                Ok(cred) => Caller {
                    uid: cred.uid(),
                    own_uid: self.own_uid,
                },
                Err(err) => {
                    debug!(%err, "a caller without credentials");
                    continue;
                }
            };
            let room = if caller.is_owner() { &owners } else { &readers };
            match Arc::clone(room).try_acquire_owned() {
                Ok(permit) => {
                    calls.spawn(serve(stream, caller, Arc::clone(&api), permit));
                }
                Err(_) => turn_away(&stream),
            }
        }
        calls.shutdown().await;
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        if let Err(err) = std::fs::remove_file(&self.path) {
            debug!(%err, "the control socket's file was gone already");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

/// Best effort: a caller that does not even read this sees the connection close.
fn turn_away(stream: &UnixStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
        connection: close\r\n\r\n\
        {\"error\":{\"code\":\"unavailable\",\"message\":\"meshd has too many callers at once: try again soon\"}}";
    let _ = stream.try_write(ANSWER);
}

async fn serve<A: LocalApi>(
    stream: UnixStream,
    caller: Caller,
    api: Arc<A>,
    _permit: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(answer(&*api, caller, request).await) }
    });
    // One call a connection: an idle one would hold a place for ever.
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(err) = served {
        debug!(%err, uid = caller.uid, "a call on the control socket broke off");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer<A: LocalApi>(api: &A, caller: Caller, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let answered = route(api, caller, request).await;
    if let Err(err) = &answered {
        debug!(%method, path, uid = caller.uid, code = err.code, "refused on the control socket");
    }
    answered.unwrap_or_else(|err| refusal(&err))
}

async fn route<A: LocalApi>(
    api: &A,
    caller: Caller,
    request: Request<Incoming>,
) -> Result<Answer, LocalError> {
    auth::check_headers(request.headers())?;
    let method = request.method().clone();
    if !auth::is_read(&method)
        && !caller.is_owner()
        && !caller.may_write(api.settings().await?.operator_uid)
    {
        return Err(auth::refuse_write(caller));
    }
    let path = request.uri().path().to_owned();
    match (&method, path.as_str()) {
        (&Method::GET, PATH_STATUS) => {
            let (wait, timeout) = parse_wait(request.uri().query().unwrap_or_default())?;
            json(&api.status(wait, timeout).await?)
        }
        (&Method::POST, PATH_UP) => json(&api.up(body(request).await?).await?),
        (&Method::POST, PATH_DOWN) => done(api.down().await),
        (&Method::POST, PATH_LOGOUT) => done(api.logout().await),
        (&Method::POST, PATH_ROTATE) => done(api.rotate().await),
        (&Method::POST, PATH_PING) => json(&api.ping(body(request).await?).await?),
        (&Method::POST, PATH_WHY) => json(&api.why(body(request).await?).await?),
        (&Method::GET, PATH_MODELS) => json(&api.models().await?),
        (&Method::GET, PATH_TOP) => json(&api.top().await?),
        (&Method::POST, PATH_PULL) => json(&api.pull(body(request).await?).await?),
        (&Method::GET, PATH_WANTS) => json(&api.suggestions().await?),
        (&Method::POST, PATH_WANTS) => done(api.want(body(request).await?).await),
        (&Method::GET, PATH_SHARE) => json(&api.share_status().await?),
        (&Method::POST, PATH_SHARE) => json(&api.share(body(request).await?).await?),
        (&Method::GET, PATH_USAGE) => {
            let n_days = parse_days(request.uri().query().unwrap_or_default())?;
            json(&api.usage(n_days).await?)
        }
        (&Method::GET, PATH_SETTINGS) => json(&api.settings().await?),
        (&Method::POST, PATH_SETTINGS) => json(&api.set(body(request).await?).await?),
        (&Method::GET, PATH_DNS) => json(&api.dns().await?),
        (&Method::GET, PATH_DNS_QUERY) => {
            let query = parse_query(request.uri().query().unwrap_or_default())?;
            json(&api.dns_query(query).await?)
        }
        (&Method::GET, PATH_NETCHECK) => json(&api.netcheck().await?),
        (&Method::GET, PATH_METRICS) => Ok(text(api.metrics().await?)),
        (&Method::GET, PATH_BUGREPORT) => json(&api.bugreport().await?),
        _ => Err(LocalError::new(
            code::NOT_FOUND,
            format!(
                "this meshd has no `{method} {path}`: meshctl and meshd may be of different versions"
            ),
        )),
    }
}

fn parse_days(query: &str) -> Result<u32, LocalError> {
    match query.strip_prefix("days=").map(str::parse::<u32>) {
        None if query.is_empty() => Ok(30),
        Some(Ok(n_days)) if (1..=400).contains(&n_days) => Ok(n_days),
        Some(_) | None => Err(LocalError::new(
            code::BAD_REQUEST,
            "the query must be days=N, from 1 to 400",
        )),
    }
}

/// A DNS name needs no escapes, and one that has any is none.
fn parse_query(query: &str) -> Result<DnsQuery, LocalError> {
    let mut asked = DnsQuery {
        name: String::new(),
        kind: "A".to_owned(),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("name", name)) => asked.name = name.to_owned(),
            Some(("type", kind)) => asked.kind = kind.to_owned(),
            _ => {
                return Err(LocalError::new(
                    code::BAD_REQUEST,
                    format!("`{pair}` is not understood: a DNS query takes name and type"),
                ));
            }
        }
    }
    Ok(asked)
}

fn parse_wait(query: &str) -> Result<(Option<WaitFor>, Duration), LocalError> {
    let bad = |message: String| LocalError::new(code::BAD_REQUEST, message);
    let (mut wait, mut timeout) = (None, WAIT_DEFAULT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("wait", "running")) => wait = Some(WaitFor::Running),
            Some(("wait", "ready")) => wait = Some(WaitFor::Ready),
            Some(("timeout_ms", ms)) => {
                let ms = ms
                    .parse()
                    .map_err(|_| bad(format!("timeout_ms takes a number, not `{ms}`")))?;
                timeout = Duration::from_millis(ms).min(WAIT_MAX);
            }
            _ => {
                return Err(bad(format!(
                    "`{pair}` is not understood: status takes wait and timeout_ms"
                )));
            }
        }
    }
    Ok((wait, timeout))
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, LocalError> {
    let bad = |message: String| LocalError::new(code::BAD_REQUEST, message);
    let read = Limited::new(request.into_body(), BODY_LEN_MAX).collect();
    let bytes = tokio::time::timeout(BODY_TIMEOUT, read)
        .await
        .map_err(|_| bad("the request's body did not arrive in time".to_owned()))?
        .map_err(|err| bad(format!("the request's body cannot be read: {err}")))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|err| {
        bad(format!(
            "the request's body is not what this call takes: {err}"
        ))
    })
}

fn json<T: Serialize>(value: &T) -> Result<Answer, LocalError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|err| LocalError::new(code::INTERNAL, err.to_string()))?;
    Ok(response(StatusCode::OK, "application/json", bytes))
}

fn done(result: Result<(), LocalError>) -> Result<Answer, LocalError> {
    result.map(|()| {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        answer
    })
}

fn text(text: String) -> Answer {
    response(
        StatusCode::OK,
        "text/plain; version=0.0.4",
        text.into_bytes(),
    )
}

fn refusal(err: &LocalError) -> Answer {
    let body =
        serde_json::to_vec(&ErrorBody::new(err.code, err.message.as_str())).unwrap_or_default();
    response(status_of(err.code), "application/json", body)
}

fn response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The one place where codes become HTTP statuses.
fn status_of(error_code: &str) -> StatusCode {
    match error_code {
        code::BAD_REQUEST => StatusCode::BAD_REQUEST,
        code::AUTH_KEY_UNKNOWN
        | code::AUTH_KEY_SPENT
        | code::AUTH_KEY_EXPIRED
        | code::AUTH_KEY_REVOKED
        | code::NOT_REGISTERED
        | code::NODE_EXPIRED
        | code::BAD_PROOF
        | code::BAD_NONCE
        | code::UNAUTHORIZED => StatusCode::UNAUTHORIZED,
        code::FORBIDDEN | code::REFUSED => StatusCode::FORBIDDEN,
        code::NOT_FOUND => StatusCode::NOT_FOUND,
        code::CONFLICT | code::NEEDS_LOGIN => StatusCode::CONFLICT,
        code::RATE_LIMITED => StatusCode::TOO_MANY_REQUESTS,
        code::POOL_EXHAUSTED | code::UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        code::TIMEOUT => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
