//! The change log: which node changed at which version, as far back as a reconnecting node may ask. Bounded.

use std::collections::{BTreeSet, VecDeque};

use mesh_proto::id::NodeId;
use mesh_proto::netmap::Revision;

/// Changes that are kept. A node that was away for longer gets a full map.
const N_CHANGES_MAX: usize = 16_384;

/// Changes, oldest first; the last one is at the current version.
#[derive(Debug)]
pub(crate) struct ChangeLog {
    epoch: u64,
    version: u64,
    /// `None` for what concerns the mesh as a whole.
    changes: VecDeque<Option<NodeId>>,
}

impl ChangeLog {
    pub(crate) const fn new(epoch: u64) -> Self {
        Self {
            epoch,
            version: 1,
            changes: VecDeque::new(),
        }
    }

    pub(crate) const fn revision(&self) -> Revision {
        Revision {
            epoch: self.epoch,
            version: self.version,
        }
    }

    pub(crate) fn push(&mut self, id: NodeId) {
        self.keep(Some(id));
    }

    /// Something changed that is no node's.
    pub(crate) fn push_other(&mut self) {
        self.keep(None);
    }

    fn keep(&mut self, change: Option<NodeId>) {
        if self.changes.len() == N_CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.version += 1;
    }

    /// What changed after a version; `None` when that is not known any more, or was never a version of this run.
    pub(crate) fn since(&self, since: Revision) -> Option<BTreeSet<NodeId>> {
        if since.epoch != self.epoch {
            return None;
        }
        let n_missed = usize::try_from(self.version.checked_sub(since.version)?).ok()?;
        let first = self.changes.len().checked_sub(n_missed)?;
        Some(self.changes.iter().skip(first).copied().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> NodeId {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn tells_what_changed_after_a_version() {
        let mut log = ChangeLog::new(3);
        let start = log.revision();
        assert_eq!(log.since(start), Some(BTreeSet::new()));
        log.push(id(1));
        log.push(id(2));
        let middle = log.revision();
        log.push(id(2));
        assert_eq!(log.since(start), Some([id(1), id(2)].into()));
        assert_eq!(log.since(middle), Some([id(2)].into()));
    }

    #[test]
    fn does_not_answer_for_another_epoch_the_future_or_what_it_forgot() {
        let mut log = ChangeLog::new(3);
        let start = log.revision();
        assert_eq!(log.since(Revision { epoch: 2, ..start }), None);
        assert_eq!(
            log.since(Revision {
                epoch: 3,
                version: 2
            }),
            None
        );
        assert_eq!(
            log.since(Revision {
                epoch: 3,
                version: 0
            }),
            None
        );
        for n in 0..=N_CHANGES_MAX as u64 {
            log.push(id(n));
        }
        assert_eq!(log.since(start), None);
        let known = Revision {
            epoch: 3,
            version: start.version + 1,
        };
        assert_eq!(
            log.since(known).map(|changed| changed.len()),
            Some(N_CHANGES_MAX)
        );
    }
}
