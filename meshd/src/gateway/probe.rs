//! Whether a host's door answers: asked while requests wait for it, while its name is in use, and until it is back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_proto::id::NodeId;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::stream::Outward;
use super::{Core, DOOR_HEADER, LOAD_HEADER};
use crate::choice::Load;

/// How long a host may take: a first packet may be lost, and be sent again after a second.
const PATIENCE: Duration = Duration::from_millis(1_800);
/// Probes at once.
const N_AT_ONCE_MAX: usize = 64;

/// Probes hosts whenever one is due; never returns.
pub(crate) async fn keep(core: &Core) {
    let mut probes = JoinSet::new();
    loop {
        tokio::select! {
            () = core.hosts.until_due(), if probes.len() < N_AT_ONCE_MAX => {}
            Some(probed) = probes.join_next() => {
                if let Ok((node, pong)) = probed {
                    settle(core, node, pong);
                }
                continue;
            }
        }
        let Some(view) = core.view() else {
            // Nobody is there to be probed; the next map brings them back.
            core.hosts.due(Instant::now());
            continue;
        };
        for node in core.hosts.due(Instant::now()) {
            let peer = view.netmap.peers.get(&node).filter(|peer| peer.is_online);
            let Some(peer) = peer else {
                core.hosts.forget(&node);
                continue;
            };
            let addr = SocketAddr::new(IpAddr::V4(peer.ipv4), core.peer_port);
            let outward = core.outward.clone();
            probes.spawn(async move {
                let pong = tokio::time::timeout(PATIENCE, probe(addr, outward)).await;
                (node, pong.map_err(io::Error::from).flatten())
            });
        }
    }
}

fn settle(core: &Core, node: NodeId, pong: io::Result<(Duration, Option<Load>)>) {
    let now = Instant::now();
    match pong {
        Ok((rtt, load)) => core.hosts.on_pong(&node, rtt, load, now),
        Err(err) => {
            tracing::debug!(host = %node, %err, "a host does not answer");
            core.hosts.on_missed(node, now);
        }
    }
}

/// Asks the door what it says to everybody. That its machine takes connections proves nothing: it does so for a daemon that is
/// frozen, too.
async fn probe(addr: SocketAddr, outward: Outward) -> io::Result<(Duration, Option<Load>)> {
    let stream = outward.connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong here is told by the reply as well.
        let _ = connection.await;
    }));
    let mut request = Request::new(Empty::<Bytes>::new());
    if let Ok(host) = HeaderValue::from_str(&addr.to_string()) {
        request.headers_mut().insert(HOST, host);
    }
    let sent = Instant::now();
    let reply = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    if !reply.headers().contains_key(DOOR_HEADER) {
        return Err(io::Error::other("what answers is no door"));
    }
    Ok((sent.elapsed(), load_of(reply.headers())))
}

/// What a door says of its queue.
pub(crate) fn load_of(headers: &HeaderMap) -> Option<Load> {
    headers.get(LOAD_HEADER)?.to_str().ok()?.parse().ok()
}
