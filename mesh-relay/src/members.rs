//! The node keys that may use a relay. Pure but for the hand-over of a new set.

use std::collections::HashMap;
use std::time::Duration;

use mesh_proto::key::NodeKey;
use mesh_proto::relay::Member;
use tokio::sync::watch;

use crate::unix_ms;

/// How long a node that is not known yet is waited for: it may have joined a moment ago.
const GRACE: Duration = Duration::from_secs(1);

/// Who is in the mesh, as far as relays must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(HashMap<NodeKey, Option<u64>>);

impl Members {
    /// Node keys, each with the time at which it expires (Unix milliseconds), if it does.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (NodeKey, Option<u64>)>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// All of them, in order.
    #[must_use]
    pub fn list(&self) -> Vec<Member> {
        self.sorted(|_, _| true)
    }

    /// Who is new or expires at another time in `newer`, and who is gone.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> (Vec<Member>, Vec<NodeKey>) {
        let added = newer.sorted(|key, expiry| self.0.get(key) != Some(expiry));
        let removed = self.sorted(|key, _| !newer.0.contains_key(key));
        (
            added,
            removed.iter().map(|member| member.node_key).collect(),
        )
    }

    fn sorted(&self, keep: impl Fn(&NodeKey, &Option<u64>) -> bool) -> Vec<Member> {
        let kept = self.0.iter().filter(|(key, expiry)| keep(key, expiry));
        let mut members: Vec<Member> = kept
            .map(|(node_key, expires_at_ms)| Member {
                node_key: *node_key,
                expires_at_ms: *expires_at_ms,
            })
            .collect();
        members.sort_unstable_by_key(|member| member.node_key);
        members
    }

    /// Carries a change out.
    pub fn apply(&mut self, added: &[Member], removed: &[NodeKey]) {
        for key in removed {
            self.0.remove(key);
        }
        self.0.extend(
            added
                .iter()
                .map(|member| (member.node_key, member.expires_at_ms)),
        );
    }

    /// Whether a key is a member's at this time, Unix milliseconds.
    #[must_use]
    pub fn has(&self, key: &NodeKey, now_ms: u64) -> bool {
        self.0
            .get(key)
            .is_some_and(|expires_at_ms| expires_at_ms.is_none_or(|at| at > now_ms))
    }
}

/// Whether a key is a member's, now or within a moment.
pub(crate) async fn admits(
    members: &watch::Receiver<std::sync::Arc<Members>>,
    key: &NodeKey,
) -> bool {
    let mut members = members.clone();
    let known = members.wait_for(|members| members.has(key, unix_ms()));
    matches!(tokio::time::timeout(GRACE, known).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_makes_one_set_of_the_other() {
        let key = |n| NodeKey::from_bytes([n; 32]);
        let old = Members::new([(key(1), None), (key(2), Some(5)), (key(3), None)]);
        let new = Members::new([(key(2), Some(6)), (key(3), None), (key(4), None)]);
        let (added, removed) = old.diff(&new);
        assert_eq!((added.len(), &removed[..]), (2, &[key(1)][..]));
        let mut changed = old;
        changed.apply(&added, &removed);
        assert_eq!(changed, new);
        assert_eq!(new.list().len(), 3);
        assert_eq!(new.diff(&new), (vec![], vec![]));
    }

    #[test]
    fn a_key_is_a_members_until_it_expires() {
        let (a, b) = (NodeKey::from_bytes([1; 32]), NodeKey::from_bytes([2; 32]));
        let members = Members::new([(a, None), (b, Some(100))]);
        assert!(members.has(&a, u64::MAX) && members.has(&b, 99));
        assert!(!members.has(&b, 100));
        assert!(!members.has(&NodeKey::from_bytes([3; 32]), 0));
    }
}
