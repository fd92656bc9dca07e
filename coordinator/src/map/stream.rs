//! One map stream: a full map or what changed since, then deltas and heartbeats, each frame signed for its node.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::control::HEARTBEAT_MS;
use mesh_proto::filter::Filter;
use mesh_proto::id::NodeId;
use mesh_proto::netmap::{MapBody, MapFrame, NetmapDelta, Revision, SelfNode};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::build;
use super::hub::Place;
use crate::clock::unix_ms;
use crate::coordinator::Coordinator;
use crate::metrics;

/// Changes within this time go into one delta. In a crowd that joins at once it grows up to the second, for each change goes
/// to each node: what is told seldom is told with less work.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// So many deltas one upon the other are a crowd, and as many more add another rest.
const N_CROWD: u32 = 8;
/// A node that takes nothing for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// Frames that wait for a slow node; what happens meanwhile becomes one larger delta.
pub(crate) const N_FRAMES_QUEUED: usize = 2;

/// What a stream gives to the connection: a line, or the error that breaks it off.
pub(crate) type Line = Result<Bytes, StreamEnded>;

/// The coordinator ended the stream.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the coordinator ended this map stream")]
pub(crate) struct StreamEnded;

struct Stream {
    coordinator: Arc<Coordinator>,
    to: NodeId,
    lines: mpsc::Sender<Line>,
    /// What the node has.
    has: Option<Revision>,
    /// Up to where changes were looked at; those after `has` up to here did not concern the node.
    looked_at: Revision,
    /// What it was told of itself on this stream.
    own: Option<(SelfNode, Filter)>,
}

/// Why a stream stopped.
enum Stop {
    /// The node hung up, or takes nothing.
    Gone,
    /// The node may not listen any more.
    NotAllowed,
}

/// Tells one node its map until it hangs up or may not listen any more.
pub(crate) async fn run(
    coordinator: Arc<Coordinator>,
    to: NodeId,
    resume: Option<Revision>,
    place: Place,
    lines: mpsc::Sender<Line>,
) {
    let ended = place.ended.clone();
    let number = place.number;
    let mut stream = Stream {
        looked_at: resume.unwrap_or_default(),
        has: resume,
        own: None,
        coordinator: Arc::clone(&coordinator),
        to,
        lines: lines.clone(),
    };
    coordinator.on_stream_opened(&to);
    tokio::select! {
        biased;
        () = ended.cancelled() => drop(lines.try_send(Err(StreamEnded))),
        () = lines.closed() => {}
        stop = stream.tell(place) => match stop {
            Err(Stop::NotAllowed) => drop(lines.try_send(Err(StreamEnded))),
            Err(Stop::Gone) => {}
            Ok(never) => match never {},
        },
    }
    coordinator.on_stream_closed(&to, number);
}

impl Stream {
    async fn tell(&mut self, mut place: Place) -> Result<Infallible, Stop> {
        let mut n_in_row = 0;
        loop {
            place.version.borrow_and_update();
            self.tell_changes().await?;
            let told = Instant::now();
            let silent_until = told + Duration::from_millis(HEARTBEAT_MS);
            match timeout_at(silent_until, place.version.changed()).await {
                Ok(Ok(())) => {
                    n_in_row = if told.elapsed() < REST.0 {
                        u32::saturating_add(n_in_row, 1)
                    } else {
                        0
                    };
                    sleep(rest(n_in_row)).await;
                }
                Ok(Err(_)) => return Err(Stop::NotAllowed),
                Err(_) => self.beat().await?,
            }
        }
    }

    async fn tell_changes(&mut self) -> Result<(), Stop> {
        let (revision, body) = self.build().ok_or(Stop::NotAllowed)?;
        self.looked_at = revision;
        let Some(body) = body else { return Ok(()) };
        match &body {
            MapBody::Full(netmap) => {
                metrics::map_frame("full");
                self.own = Some((netmap.node.clone(), netmap.filter.clone()));
            }
            MapBody::Delta { delta, .. } => {
                metrics::map_frame("delta");
                if let (Some(node), Some(filter)) = (&delta.node, &delta.filter) {
                    self.own = Some((node.clone(), filter.clone()));
                }
            }
            MapBody::Heartbeat {} => {}
        }
        self.has = Some(revision);
        self.send(revision, body).await
    }

    /// The newest revision and the frame that brings the node there; no frame when nothing concerns it.
    fn build(&self) -> Option<(Revision, Option<MapBody>)> {
        self.coordinator.read(|state| {
            let revision = state.revision();
            if let Some(has) = self.has
                && let Some(delta) = build::delta(state, &self.to, self.looked_at)
            {
                let delta = self.without_known(delta);
                let body = (!delta.is_empty()).then(|| delta_body(has, delta));
                return Some((revision, body));
            }
            let netmap = build::full(state, &self.to)?;
            Some((revision, Some(MapBody::Full(Box::new(netmap)))))
        })
    }

    /// Leaves out what the node was told of itself already: its own reports change its record, not its map.
    fn without_known(&self, mut delta: NetmapDelta) -> NetmapDelta {
        if let Some((node, filter)) = &self.own
            && delta.node.as_ref() == Some(node)
            && delta.filter.as_ref() == Some(filter)
        {
            delta.node = None;
            delta.filter = None;
        }
        delta
    }

    async fn beat(&self) -> Result<(), Stop> {
        metrics::map_frame("heartbeat");
        let revision = self.has.unwrap_or(self.looked_at);
        self.send(revision, MapBody::Heartbeat {}).await
    }

    async fn send(&self, revision: Revision, body: MapBody) -> Result<(), Stop> {
        let frame = MapFrame {
            to: self.to,
            revision,
            sent_at_ms: unix_ms(),
            body,
        };
        let line = Bytes::from(frame.to_line(self.coordinator.key()));
        let deadline = Instant::now() + SEND_DEADLINE;
        match timeout_at(deadline, self.lines.send(Ok(line))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stop::Gone),
        }
    }
}

/// How long to collect changes, after so many deltas that followed at once upon the one before.
fn rest(n_in_row: u32) -> Duration {
    REST.0.saturating_mul(n_in_row / N_CROWD + 1).min(REST.1)
}

fn delta_body(has: Revision, delta: NetmapDelta) -> MapBody {
    MapBody::Delta {
        since: has.version,
        delta: Box::new(delta),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_waits_longer_and_never_long() {
        assert_eq!([0, 1, 7].map(rest), [REST.0; 3]);
        assert_eq!(rest(8), REST.0 * 2);
        assert_eq!([100, u32::MAX].map(rest), [REST.1; 2]);
    }
}
