//! Listeners and connections: how many, how slow, how large; and the checks that any request must pass.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode};
use memchr::memmem;
use mesh_proto::id::NodeId;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::admit::{Infer, Route};
use super::bodies::{Bodies, NoRoom, Room};
use super::caller::{self, Request};
use super::dialect::{Dialect, Refusal, full, json_reply};
use super::json::Object;
use super::stream::{Listener, Stream};
use super::wire::Fields;
use super::workers::{Arrival, Workers};
use super::{API_VERSION, Core, ReplyBody, clean, door, guest, json};

/// Connections at one listener.
const N_CONNECTIONS_MAX: usize = 4_096;
/// Connections of one peer at the door.
const N_CONNECTIONS_PER_PEER_MAX: usize = 128;
/// How long a body may take, beside the time for its length.
const BODY_GRACE: Duration = Duration::from_secs(10);
/// Bytes a second that a body must come with.
const BODY_RATE_MIN: usize = 64 << 10;
/// The largest body.
const BODY_MAX: usize = 8 << 20;
/// The largest body that holds pictures.
const BODY_WITH_IMAGES_MAX: usize = 32 << 20;
/// From this length on a body is parsed beside the thread that serves the others.
const BODY_LARGE: usize = 256 << 10;
/// How long a caller may leave a reply unread.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a pair of listeners is tried until one port is free for both protocols.
const N_BIND_TRIES: usize = 32;

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the mesh to this host's models.
    Door,
    /// From this machine's programs to the mesh's models.
    Guest,
}

/// Binds one free port on all addresses.
pub(crate) fn listen(
    addrs: &[IpAddr],
    device: Option<&str>,
) -> io::Result<(Vec<TcpListener>, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for _ in 0..N_BIND_TRIES {
        match listen_once(addrs, device) {
            Ok(bound) => return Ok(bound),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => last = err,
            Err(err) => return Err(err),
        }
    }
    Err(last)
}

fn listen_once(addrs: &[IpAddr], device: Option<&str>) -> io::Result<(Vec<TcpListener>, u16)> {
    let mut listeners = Vec::with_capacity(addrs.len());
    let mut port = 0;
    for addr in addrs {
        let addr = SocketAddr::new(*addr, port);
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(device) = device.filter(|name| !name.is_empty()) {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(1_024)?;
        let listener = TcpListener::from_std(socket.into())?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok((listeners, port))
}

/// Accepts until dropped.
pub(crate) async fn serve(mut listener: Listener, side: Side, core: Arc<Core>, workers: &Workers) {
    let places = Arc::new(Semaphore::new(N_CONNECTIONS_MAX));
    let per_peer = Arc::new(PerPeer::default());
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    continue;
                };
                let n_max = match side {
                    Side::Door => N_CONNECTIONS_PER_PEER_MAX,
                    Side::Guest => N_CONNECTIONS_MAX,
                };
                if let Some(peer_place) = PerPeer::enter(&per_peer, from, n_max) {
                    workers.take(Arrival {
                        socket,
                        from,
                        side,
                        core: Arc::clone(&core),
                        place: (place, peer_place),
                    });
                }
            }
            Err(err) => {
                // Out of file descriptors, mostly: existing connections have to end first.
                tracing::warn!(%err, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection to its end.
pub(crate) async fn connection(stream: Stream, from: IpAddr, side: Side, core: Arc<Core>) {
    if let Err(err) = stream.tune(Duration::from_secs(10), UNREAD_TIMEOUT) {
        tracing::debug!(%err, "connection gone");
        return;
    }
    let answering = |request| answer(&core, from, side, request);
    if let Err(err) = caller::serve(stream, answering).await {
        tracing::debug!(%err, "connection ended");
    }
}

async fn answer(core: &Core, from: IpAddr, side: Side, request: Request) -> Response<ReplyBody> {
    let dialect = Dialect::of_path(&request.head.path);
    let answered = match side {
        Side::Door => door::answer(core, from, request).await,
        Side::Guest => guest::answer(core, from, request).await,
    };
    answered.unwrap_or_else(|refusal| {
        let status = refusal.status.as_u16().to_string();
        metrics::counter!(crate::metrics::DOOR_REFUSED, "status" => status).increment(1);
        refusal.reply(dialect)
    })
}

/// What is answered the same way on both sides.
pub(crate) fn fixed(route: &Route) -> Option<Response<ReplyBody>> {
    let body = match route {
        Route::Root => {
            let mut reply = Response::new(full("Ollama is running"));
            reply.headers_mut().insert(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            return Some(reply);
        }
        Route::Version => serde_json::json!({ "version": API_VERSION }),
        Route::Status => serde_json::json!({ "cloud": { "disabled": true, "source": "none" } }),
        Route::Recommendations => serde_json::json!({ "recommendations": [] }),
        Route::Tags
        | Route::Ps
        | Route::Show
        | Route::Models
        | Route::Model(_)
        | Route::Live
        | Route::Pull
        | Route::Infer(_) => {
            return None;
        }
    };
    Some(json_reply(StatusCode::OK, body.to_string()))
}

/// Refuses what a web page of somebody else makes a browser send: a foreign `Origin`, or a name that was pointed here.
pub(crate) fn check_browser(fields: &Fields, suffix: &str) -> Result<(), Refusal> {
    let origin = fields.origin.as_ref();
    if origin.is_some_and(|origin| !is_own_origin(origin, suffix)) {
        return Err(Refusal::forbidden(
            "requests of web pages of other sites are refused",
        ));
    }
    let host = fields.host.as_ref();
    if host.is_some_and(|host| !is_own_host(host, suffix)) {
        return Err(Refusal::forbidden(format!(
            "this is no name of the mesh; use one that ends in .{suffix}, or an address"
        )));
    }
    Ok(())
}

fn is_own_origin(origin: &str, suffix: &str) -> bool {
    let Some((scheme, host)) = origin.split_once("://") else {
        return false;
    };
    match scheme {
        "app" | "file" | "tauri" | "vscode-webview" | "vscode-file" => true,
        "http" | "https" => {
            let name = without_port(host);
            matches!(name, "localhost" | "127.0.0.1" | "0.0.0.0" | "[::1]")
                || is_below(name, suffix)
                || is_below(name, "proxima.internal")
        }
        _ => false,
    }
}

fn is_own_host(host: &str, suffix: &str) -> bool {
    let name = without_port(host).to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let is_address = name.starts_with('[') || name.parse::<IpAddr>().is_ok();
    is_address
        || !name.contains('.')
        || ["localhost", "local", "internal", suffix]
            .iter()
            .any(|suffix| is_below(name, suffix))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

fn is_below(name: &str, suffix: &str) -> bool {
    name == suffix
        || name
            .strip_suffix(suffix)
            .is_some_and(|head| head.ends_with('.'))
}

/// A body that was read and parsed, with the memory that it was granted.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) body: Object,
    pub(crate) n_bytes: usize,
    _memory: Room,
}

/// Reads and parses a body, within the bounds of size, time and memory. `None` stands for this machine itself.
pub(crate) async fn read(
    bodies: &Arc<Bodies>,
    who: Option<NodeId>,
    request: Request,
) -> Result<Asked, Refusal> {
    let Request { head, body } = request;
    let encoding = head.fields.content_encoding;
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send the body without Content-Encoding",
        ));
    }
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "a request may have {} MiB, with images {} MiB",
                BODY_MAX >> 20,
                BODY_WITH_IMAGES_MAX >> 20
            ),
        )
    };
    let told = head.fields.content_length;
    if told.is_some_and(|n| n > BODY_WITH_IMAGES_MAX as u64) {
        return Err(too_large());
    }
    let mut started = None;
    let mut bytes = Bytes::new();
    // Room is taken for what came, never for what was promised: a caller that sends nothing keeps nobody out.
    let mut memory = bodies.enter(who).map_err(no_room)?;
    loop {
        let next = match body.there() {
            Some(there) => Ok(there),
            None => {
                let started = *started.get_or_insert_with(Instant::now);
                let deadline = started + time_for(bytes.len());
                tokio::time::timeout_at(deadline, body.next()).await
            }
        };
        let data = match next {
            Ok(None) => break,
            Ok(Some(Ok(data))) => data,
            Ok(Some(Err(_))) => return Err(Refusal::bad_request("the request body broke off")),
            Err(_) => {
                return Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request body took too long",
                ));
            }
        };
        if bytes.len() + data.len() > BODY_WITH_IMAGES_MAX {
            return Err(too_large());
        }
        let was_short = bytes.len() <= BODY_MAX;
        bytes = joined(bytes, data);
        // Pictures make a body long, and their key comes before them.
        if was_short && bytes.len() > BODY_MAX && memmem::find(&bytes, b"image").is_none() {
            return Err(too_large());
        }
        memory.grow_to(bytes.len()).map_err(no_room)?;
    }
    let n_bytes = bytes.len();
    let parsed = if n_bytes < BODY_LARGE {
        json::parse_object(&bytes)
    } else {
        let parsing = move || json::parse_object(&bytes);
        let parsed = tokio::task::spawn_blocking(parsing).await;
        parsed.map_err(|_| Refusal::busy("this node is about to end"))?
    };
    let body = parsed.map_err(Refusal::bad_request)?;
    if n_bytes > BODY_MAX && !clean::has_images(&body) {
        return Err(too_large());
    }
    Ok(Asked {
        body,
        n_bytes,
        _memory: memory,
    })
}

/// One piece behind the other. Most bodies are of one piece, which is read where it is.
fn joined(before: Bytes, data: Bytes) -> Bytes {
    if before.is_empty() {
        return data;
    }
    let mut whole = match before.try_into_mut() {
        Ok(whole) => whole,
        Err(before) => BytesMut::from(&*before),
    };
    whole.extend_from_slice(&data);
    whole.freeze()
}

fn no_room(why: NoRoom) -> Refusal {
    Refusal::busy(why.to_string())
}

/// How long a body may take when so much of it came: slow ones are cut soon, long ones have the time that they need.
fn time_for(n_bytes: usize) -> Duration {
    let secs = u64::try_from(n_bytes / BODY_RATE_MIN).unwrap_or(u64::MAX);
    BODY_GRACE.saturating_add(Duration::from_secs(secs))
}

/// The refusal for a name that is nowhere, with what may have been meant.
pub(crate) fn not_found(route: Option<Infer>, model: &str, known: &[&str]) -> Refusal {
    let model: String = model.chars().take(200).collect();
    let mut text = match route {
        Some(Infer::Embed | Infer::Embeddings) => format!("model {model:?} not found"),
        Some(_) | None => format!("model '{model}' not found"),
    };
    if known.is_empty() {
        text.push_str("; nothing is shared with you here (see `meshctl models`)");
    } else {
        text.push_str("; shared with you: ");
        text.push_str(&known.join(", "));
    }
    text.push_str("; hosts hear of what you would like by `meshctl models want`");
    Refusal::new(StatusCode::NOT_FOUND, text)
}

/// Counts connections by peer.
#[derive(Debug, Default)]
struct PerPeer(Mutex<BTreeMap<IpAddr, usize>>);

/// A peer's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct PeerPlace {
    counts: Arc<PerPeer>,
    peer: IpAddr,
}

impl PerPeer {
    fn enter(counts: &Arc<Self>, peer: IpAddr, n_max: usize) -> Option<PeerPlace> {
        let mut by_peer = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = by_peer.entry(peer).or_default();
        if *n >= n_max {
            return None;
        }
        *n += 1;
        Some(PeerPlace {
            counts: Arc::clone(counts),
            peer,
        })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut by_peer = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = by_peer.get_mut(&self.peer) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}
