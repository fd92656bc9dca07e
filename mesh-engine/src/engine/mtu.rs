//! How the engine finds out how long a packet each selected path takes, and tells the packet threads.

use std::sync::atomic::Ordering;

use mesh_proto::id::NodeId;

use super::Engine;
use crate::path::mtu::Fare;

impl Engine {
    /// Probes the MTU of the selected path as far as that is due, and puts to use what is known.
    pub(super) fn look_mtu(&mut self, id: &NodeId) {
        let (Some(control), Some(set)) = (self.peers.get(id), self.sets.get_mut(id)) else {
            return;
        };
        let Some(path) = control.handle.path() else {
            return;
        };
        if path.dst.remote().is_none() {
            return;
        }
        let traffic = control.handle.traffic();
        let fare = Fare {
            now_ms: self.plane.shared.now_ms(),
            rtt_ms: 0,
            heard_ms: path.heard_ms.load(Ordering::Relaxed),
            last_data_tx_ms: traffic.last_data_tx_ms.load(Ordering::Relaxed),
            most: self.overlay_mtu,
        };
        let lengths = set.look_mtu(&path.dst, fare);
        path.set_lossy(set.is_lossy(&path.dst));
        if let Some((mtu, is_settled)) = set.mtu(&path.dst) {
            if path.mtu() != mtu {
                tracing::debug!(peer = %id, path = ?path.dst, mtu, "path MTU");
            }
            path.set_mtu(mtu, is_settled);
        }
        for length in lengths {
            self.send_ping(id, path.dst, Some(length));
        }
    }
}
