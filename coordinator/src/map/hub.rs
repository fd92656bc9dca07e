//! Who listens: at most one map stream a node, woken when the mesh changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mesh_proto::id::NodeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The streams of all nodes.
#[derive(Debug)]
pub(crate) struct Hub {
    version: watch::Sender<u64>,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    of: BTreeMap<NodeId, (u64, CancellationToken)>,
}

/// The place of one stream in the hub.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) number: u64,
    /// The version of the mesh, as it rises.
    pub(crate) version: watch::Receiver<u64>,
    /// Ends the stream: another one replaced it, or its node may not listen any more.
    pub(crate) ended: CancellationToken,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            version: watch::Sender::new(0),
            streams: Mutex::default(),
        }
    }

    /// Wakes all streams when the version rose.
    pub(crate) fn publish(&self, version: u64) {
        self.version.send_if_modified(|known| {
            let is_newer = version > *known;
            *known = version.max(*known);
            is_newer
        });
    }

    /// The version of the mesh, as it rises.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes the place of a node's stream and ends the one that had it.
    pub(crate) fn enter(&self, id: NodeId) -> Place {
        let ended = CancellationToken::new();
        let mut streams = self.lock();
        streams.next += 1;
        let number = streams.next;
        if let Some((_, old)) = streams.of.insert(id, (number, ended.clone())) {
            old.cancel();
        }
        Place {
            number,
            version: self.version.subscribe(),
            ended,
        }
    }

    /// Gives the place back; false when another stream has it by then.
    pub(crate) fn leave(&self, id: &NodeId, number: u64) -> bool {
        let mut streams = self.lock();
        let is_own = streams
            .of
            .get(id)
            .is_some_and(|(holder, _)| *holder == number);
        if is_own {
            streams.of.remove(id);
        }
        is_own
    }

    /// Ends a node's stream.
    pub(crate) fn end(&self, id: &NodeId) {
        if let Some((_, ended)) = self.lock().of.get(id) {
            ended.cancel();
        }
    }

    /// Ends every stream.
    pub(crate) fn end_all(&self) {
        for (_, ended) in self.lock().of.values() {
            ended.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_stream_replaces_the_first() {
        let hub = Hub::new();
        let id = NodeId::from_bytes([1; 10]);
        let first = hub.enter(id);
        let second = hub.enter(id);
        assert!(first.ended.is_cancelled() && !second.ended.is_cancelled());
        assert!(!hub.leave(&id, first.number));
        assert!(hub.leave(&id, second.number));
    }

    #[test]
    fn versions_only_rise() {
        let hub = Hub::new();
        let place = hub.enter(NodeId::from_bytes([1; 10]));
        hub.publish(5);
        hub.publish(4);
        assert_eq!(*place.version.borrow(), 5);
    }
}
