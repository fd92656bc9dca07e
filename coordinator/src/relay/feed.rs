//! Tells a relay that stands alone whom it serves: all members, then what changes, each frame signed for that relay.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::control::HEARTBEAT_MS;
use mesh_proto::id::NodeId;
use mesh_proto::key::MachineKey;
use mesh_proto::relay::{MembersBody, MembersFrame};
use mesh_relay::Members;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock::unix_ms;
use crate::coordinator::Coordinator;
use crate::map::stream::{Line, StreamEnded};

/// A relay that takes nothing for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// Tells one relay until it hangs up or is removed.
pub(crate) async fn run(
    coordinator: Arc<Coordinator>,
    relay: MachineKey,
    mut version: watch::Receiver<u64>,
    mut members: watch::Receiver<Arc<Members>>,
    lines: mpsc::Sender<Line>,
) {
    let mut told: Option<Arc<Members>> = None;
    let mut silent_since = Instant::now();
    loop {
        version.borrow_and_update();
        let newest = Arc::clone(&members.borrow_and_update());
        let (is_relay, revision) = coordinator.read(|state| {
            let is_offering = state.is_offering(&NodeId::of(&relay), unix_ms());
            (state.is_relay(&relay) || is_offering, state.revision())
        });
        if !is_relay {
            return drop(lines.try_send(Err(StreamEnded)));
        }
        let heartbeat_at = silent_since + Duration::from_millis(HEARTBEAT_MS);
        let body = match &told {
            None => Some(MembersBody::Full(newest.list())),
            Some(told) => match told.diff(&newest) {
                (added, removed) if added.is_empty() && removed.is_empty() => {
                    (Instant::now() >= heartbeat_at).then_some(MembersBody::Heartbeat {})
                }
                (added, removed) => Some(MembersBody::Delta { added, removed }),
            },
        };
        if let Some(body) = body {
            let frame = MembersFrame {
                to: relay,
                revision,
                body,
            };
            let line = Bytes::from(frame.to_line(coordinator.key()));
            match timeout(SEND_DEADLINE, lines.send(Ok(line))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
            told = Some(newest);
            silent_since = Instant::now();
        }
        let heartbeat_at = silent_since + Duration::from_millis(HEARTBEAT_MS);
        tokio::select! {
            () = coordinator.stopping() => return drop(lines.try_send(Err(StreamEnded))),
            () = lines.closed() => return,
            changed = version.changed() => if changed.is_err() { return },
            changed = members.changed() => if changed.is_err() { return },
            _ = timeout_at(heartbeat_at, std::future::pending::<()>()) => {}
        }
    }
}
