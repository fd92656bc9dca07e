//! A map that many threads read without locks while one writes: sorted slices behind atomic pointers.

use std::net::{Ipv4Addr, Ipv6Addr};

use arc_swap::ArcSwap;

/// A key that spreads over the shards by itself.
pub(crate) trait ShardKey: Ord + Copy {
    fn shard(&self) -> u8;
}

impl ShardKey for u32 {
    fn shard(&self) -> u8 {
        self.to_le_bytes()[0]
    }
}

impl ShardKey for Ipv4Addr {
    fn shard(&self) -> u8 {
        self.octets()[3]
    }
}

impl ShardKey for Ipv6Addr {
    fn shard(&self) -> u8 {
        self.octets()[15]
    }
}

const N_SHARDS: usize = 256;

/// Sorted by key.
type Shard<K, V> = ArcSwap<Vec<(K, V)>>;

/// A write copies one shard, a 256th of the map; a read is one pointer and a binary search.
#[derive(Debug)]
pub(crate) struct ShardMap<K, V> {
    shards: Box<[Shard<K, V>]>,
}

impl<K: ShardKey, V: Clone> ShardMap<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..N_SHARDS).map(|_| ArcSwap::default()).collect(),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let shard = self.shards[usize::from(key.shard())].load();
        let at = shard.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        shard.get(at).map(|(_, value)| value.clone())
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        let shard = self.shards[usize::from(key.shard())].load();
        shard.binary_search_by(|(k, _)| k.cmp(key)).is_ok()
    }

    /// Puts a value in or replaces it. There must be only one writer.
    pub(crate) fn insert(&self, key: K, value: V) {
        let shard = &self.shards[usize::from(key.shard())];
        let mut entries = Vec::clone(&shard.load());
        match entries.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => entries[at].1 = value,
            Err(at) => entries.insert(at, (key, value)),
        }
        shard.store(entries.into());
    }

    /// Takes a value out. There must be only one writer.
    pub(crate) fn remove(&self, key: &K) {
        let shard = &self.shards[usize::from(key.shard())];
        let mut entries = Vec::clone(&shard.load());
        if let Ok(at) = entries.binary_search_by(|(k, _)| k.cmp(key)) {
            entries.remove(at);
            shard.store(entries.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((0..600u32, any::<Option<u8>>()), 0..300)) {
            let (map, mut model) = (ShardMap::new(), BTreeMap::new());
            for (key, value) in ops {
                match value {
                    Some(value) => { map.insert(key, value); model.insert(key, value); }
                    None => { map.remove(&key); model.remove(&key); }
                }
            }
            for key in 0..600 {
                prop_assert_eq!(map.get(&key), model.get(&key).copied());
                prop_assert_eq!(map.contains(&key), model.contains_key(&key));
            }
        }
    }
}
