//! Which entries claim a label, as hashes: a mesh has far more labels than anybody ever asks for.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::index::Slot;
use super::label::{self, Level};

/// The claims of all entries.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(BTreeSet<(u32, Slot)>);

impl Claims {
    pub(super) fn insert(&mut self, model: &str, slot: Slot) {
        self.0
            .extend(label::labels(model).map(|(level, label)| (key(level, &label), slot)));
    }

    pub(super) fn remove(&mut self, model: &str, slot: Slot) {
        for (level, label) in label::labels(model) {
            self.0.remove(&(key(level, &label), slot));
        }
    }

    /// Who claims a label at one level, and now and then somebody who does not.
    pub(super) fn of(&self, level: Level, label: &str) -> impl Iterator<Item = Slot> {
        let key = key(level, label);
        self.0
            .range((key, Slot::MIN)..=(key, Slot::MAX))
            .map(|(_, slot)| *slot)
    }
}

/// Half a hash does: whoever asks looks at the few that share one.
fn key(level: Level, label: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    (level as u8, label).hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}
