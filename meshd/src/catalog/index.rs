//! How a catalogue is brought from one view to the next: hosts are compared, and only the entries of those that changed are
//! made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::name::normalise;
use mesh_proto::share::{Digest, HostOffers, Offer};

use super::{Catalog, Entry, Files, HostInfo, HostOffer, place};
use crate::view::View;

/// The place of an entry, for as long as it exists.
pub(super) type Slot = u32;
/// What an entry is known by.
type Key = (String, Option<Digest>);
/// A host's new offer in an entry; none when it has none there any more.
type Edit = (Key, NodeId, Option<HostOffer>);
/// Hosts whose changes are held in memory at once: a first map brings all of them.
const N_AT_ONCE: usize = 64;
/// Above this many changed hosts an entry's hosts are sorted as a whole, not put in one by one.
const N_PUT_MAX: usize = 8;

/// What one host offers, as it told it.
#[derive(Debug)]
pub(super) struct Listed {
    info: Arc<HostInfo>,
    models: Vec<Arc<Offer>>,
}

impl Listed {
    /// One a normalised name, whatever the host lists twice: it stands in an answer once.
    fn offers(&self) -> BTreeMap<Key, &Arc<Offer>> {
        let mut offers = BTreeMap::new();
        let mut names = BTreeSet::new();
        for offer in &self.models {
            let model = normalise(&offer.model);
            if !model.is_empty() && names.insert(model.clone()) {
                offers.insert((model, offer.digest), offer);
            }
        }
        offers
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.offers().into_keys()
    }

    fn is_as(&self, info: &HostInfo, models: &[Arc<Offer>]) -> bool {
        *self.info == *info && self.has_models(models)
    }

    fn has_models(&self, models: &[Arc<Offer>]) -> bool {
        let same = |(a, b): (&Arc<Offer>, &Arc<Offer>)| Arc::ptr_eq(a, b) || a == b;
        self.models.len() == models.len() && self.models.iter().zip(models).all(same)
    }
}

/// What is to be done to a catalogue.
#[derive(Debug, Default)]
pub(super) struct Change {
    suffix: Option<String>,
    own: Option<NodeId>,
    hosts: BTreeMap<NodeId, Option<Listed>>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.suffix.is_none() && self.own.is_none() && self.hosts.is_empty()
    }
}

/// Keeps one catalogue up with the views of a mesh.
#[derive(Debug, Default)]
pub struct Keeper {
    catalog: Arc<Catalog>,
}

impl Keeper {
    /// The catalogue of a view; what did not change since the last one is not made again. Hosts that the coordinator lost are
    /// not in it; those of `is_down` are, as not online.
    pub fn keep(&mut self, view: &View, is_down: impl Fn(&NodeId) -> bool) -> Arc<Catalog> {
        if self
            .catalog
            .own
            .is_some_and(|own| own != view.netmap.node.id)
        {
            // Another mesh, or another self in it: the order of hosts is another one.
            self.catalog = Arc::default();
        }
        let change = self.catalog.compare(view, is_down);
        if !change.is_empty() {
            Arc::make_mut(&mut self.catalog).apply(change);
        }
        Arc::clone(&self.catalog)
    }
}

impl Catalog {
    /// What is other in a view.
    pub(super) fn compare(&self, view: &View, is_down: impl Fn(&NodeId) -> bool) -> Change {
        let netmap = &view.netmap;
        let own = &netmap.node;
        let mut change = Change {
            suffix: (self.suffix != netmap.network.suffix).then(|| netmap.network.suffix.clone()),
            own: (self.own != Some(own.id)).then_some(own.id),
            hosts: BTreeMap::new(),
        };
        let mut n_known = 0;
        let mut look = |info: HostInfo, models: &[Arc<Offer>]| {
            let known = self.hosts.get(&info.node);
            n_known += usize::from(known.is_some());
            if !known.is_some_and(|known| known.is_as(&info, models)) {
                let listed = Listed {
                    info: Arc::new(info),
                    models: models.to_vec(),
                };
                change.hosts.insert(listed.info.node, Some(listed));
            }
        };
        let info = |id: &NodeId, name: &NodeName, offers: &HostOffers| HostInfo {
            node: *id,
            name: name.clone(),
            ipv4: own.ipv4,
            ipv6: own.ipv6,
            is_self: true,
            is_online: true,
            n_slots: offers.n_slots,
        };
        let offers = &view.own_offers;
        if !offers.models.is_empty() {
            look(info(&own.id, &own.name, offers), &offers.models);
        }
        let peers = netmap.peers.iter().filter(|(_, peer)| {
            peer.is_online
                && !peer.offers.models.is_empty()
                && peer
                    .offers
                    .audience
                    .admits(peer.user, own.user, &own.user_name)
        });
        for (id, peer) in peers.clone() {
            let info = HostInfo {
                ipv4: peer.ipv4,
                ipv6: peer.ipv6,
                is_self: false,
                is_online: !is_down(id),
                ..info(id, &peer.name, &peer.offers)
            };
            look(info, &peer.offers.models);
        }
        if n_known < self.hosts.len() {
            let is_gone = |id: &NodeId| {
                if *id == own.id {
                    offers.models.is_empty()
                } else {
                    !netmap.peers.get(id).is_some_and(|peer| {
                        peer.is_online
                            && !peer.offers.models.is_empty()
                            && peer
                                .offers
                                .audience
                                .admits(peer.user, own.user, &own.user_name)
                    })
                }
            };
            let gone = self.hosts.keys().filter(|id| is_gone(id));
            change.hosts.extend(gone.map(|id| (*id, None)));
        }
        change
    }

    /// Carries a change out.
    pub(super) fn apply(&mut self, change: Change) {
        if let Some(suffix) = change.suffix {
            self.suffix = suffix;
        }
        if change.own.is_some() {
            self.own = change.own;
        }
        let mut hosts = change.hosts.into_iter();
        loop {
            let some: Vec<_> = hosts.by_ref().take(N_AT_ONCE).collect();
            if some.is_empty() {
                return;
            }
            self.apply_to(some);
        }
    }

    fn apply_to(&mut self, hosts: Vec<(NodeId, Option<Listed>)>) {
        // Which host has another offer in which entry, or none any more.
        let mut edits: Vec<Edit> = Vec::new();
        for (node, next) in hosts {
            let last = self.hosts.remove(&node);
            let old = last.as_ref().map(|last| last.offers()).unwrap_or_default();
            let new = next.as_ref().map(Listed::offers).unwrap_or_default();
            let is_same_host = match (&last, &next) {
                (Some(last), Some(next)) => *last.info == *next.info,
                (None, _) | (_, None) => false,
            };
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                edits.push((key.clone(), node, None));
            }
            if let Some(last) = &last {
                self.by_name.remove(&last.info.name);
            }
            for (key, offer) in new {
                let is_same = old.get(&key).is_some_and(|before| *before == offer);
                if !(is_same_host && is_same)
                    && let Some(next) = &next
                {
                    let offer = HostOffer::new(Arc::clone(&next.info), Arc::clone(offer));
                    edits.push((key, node, Some(offer)));
                }
            }
            if let Some(next) = next {
                self.by_name.insert(next.info.name.clone(), node);
                self.hosts.insert(node, Arc::new(next));
            }
        }
        edits.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let mut files = BTreeSet::new();
        let mut edits = edits.into_iter().peekable();
        while let Some((key, node, offer)) = edits.next() {
            let mut hosts = vec![(node, offer)];
            while let Some((_, node, offer)) = edits.next_if(|(next, ..)| *next == key) {
                hosts.push((node, offer));
            }
            files.extend(key.1);
            self.edit_entry(key, hosts);
        }
        for digest in files {
            self.merge(&digest);
        }
    }

    pub(super) fn entry(&self, slot: Slot) -> &Entry {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        self.slots
            .get(at)
            .and_then(Option::as_deref)
            .expect("order, claims and digests name places in use alone")
    }

    /// Where an entry is, or where in the order it would stand.
    pub(super) fn find(&self, model: &str, digest: &Option<Digest>) -> Result<Slot, usize> {
        let found = self.order.binary_search_by(|slot| {
            let entry = self.entry(*slot);
            (entry.model.as_str(), &entry.digest).cmp(&(model, digest))
        });
        found.map(|at| self.order[at])
    }

    /// `hosts` are sorted.
    fn edit_entry(&mut self, (model, digest): Key, hosts: Vec<(NodeId, Option<HostOffer>)>) {
        let own = self.own.unwrap_or(NodeId::from_bytes([0; 10]));
        let found = self.find(&model, &digest);
        let mut offers = match found {
            Ok(slot) => {
                let known = self.entry(slot).offers.iter();
                known
                    .filter(|offer| {
                        hosts
                            .binary_search_by_key(&offer.node, |host| host.0)
                            .is_err()
                    })
                    .cloned()
                    .collect()
            }
            Err(_) => Vec::new(),
        };
        let added = hosts.into_iter().filter_map(|(_, offer)| offer);
        put(&own, &mut offers, added.collect());
        match (found, offers.is_empty()) {
            (Ok(slot), false) => {
                self.slots[slot as usize] = Some(Arc::new(Entry {
                    model,
                    digest,
                    offers,
                }));
            }
            (Ok(slot), true) => self.remove_entry(&model, digest, slot),
            (Err(_), true) => {}
            (Err(at), false) => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    Slot::try_from(self.slots.len() - 1).expect("fewer models than fit in memory")
                });
                self.claims.insert(&model, slot);
                let entry = Arc::new(Entry {
                    model,
                    digest,
                    offers,
                });
                if let Some(digest) = digest {
                    let files = self.digests.entry(digest).or_insert_with(|| Files {
                        slots: Vec::new(),
                        merged: Arc::clone(&entry),
                    });
                    files.slots.push(slot);
                }
                self.slots[slot as usize] = Some(entry);
                self.order.insert(at, slot);
            }
        }
    }

    fn remove_entry(&mut self, model: &str, digest: Option<Digest>, slot: Slot) {
        self.order.retain(|other| *other != slot);
        self.claims.remove(model, slot);
        self.slots[slot as usize] = None;
        self.free.push(slot);
        if let Some(files) = digest.and_then(|digest| self.digests.get_mut(&digest)) {
            files.slots.retain(|other| *other != slot);
        }
    }

    /// Puts the hosts of all names of the same files together.
    fn merge(&mut self, digest: &Digest) {
        let own = self.own.unwrap_or(NodeId::from_bytes([0; 10]));
        let Some(files) = self.digests.get(digest) else {
            return;
        };
        let entries = files.slots.iter();
        let mut entries: Vec<Arc<Entry>> = entries
            .filter_map(|slot| self.slots.get(*slot as usize)?.clone())
            .collect();
        entries.sort_unstable_by(|a, b| a.model.cmp(&b.model));
        let merged = match entries.as_slice() {
            [] => None,
            // The usual case: nothing is held twice.
            [one] => Some(Arc::clone(one)),
            [first, ..] => {
                let offers = entries
                    .iter()
                    .flat_map(|entry| entry.offers.iter().cloned());
                let mut merged = Vec::new();
                put(&own, &mut merged, offers.collect());
                let mut seen = BTreeSet::new();
                merged.retain(|offer| seen.insert(offer.node));
                Some(Arc::new(Entry {
                    model: first.model.clone(),
                    digest: Some(*digest),
                    offers: merged,
                }))
            }
        };
        match (merged, self.digests.get_mut(digest)) {
            (Some(merged), Some(files)) => files.merged = merged,
            (None, _) => drop(self.digests.remove(digest)),
            (Some(_), None) => {}
        }
    }

    /// The files whose digest begins with these 12 hexadecimal digits.
    pub(super) fn with_prefix(&self, id12: &str) -> impl Iterator<Item = &Entry> {
        let prefix = data_encoding::HEXLOWER_PERMISSIVE
            .decode(id12.as_bytes())
            .ok()
            .filter(|prefix| prefix.len() == 6);
        let range = prefix.map(|prefix| {
            let (mut first, mut last) = ([0; 32], [0xff; 32]);
            first[..6].copy_from_slice(&prefix);
            last[..6].copy_from_slice(&prefix);
            Digest::from_bytes(first)..=Digest::from_bytes(last)
        });
        let found = range
            .into_iter()
            .flat_map(|range| self.digests.range(range));
        found.map(|(_, files)| &*files.merged)
    }
}

/// Puts offers where they belong among others that are in order.
fn put(own: &NodeId, offers: &mut Vec<HostOffer>, added: Vec<HostOffer>) {
    if added.len() > N_PUT_MAX || offers.is_empty() {
        offers.extend(added);
        offers.sort_by_cached_key(|offer| place(own, offer));
        offers.shrink_to_fit();
        return;
    }
    for offer in added {
        let key = place(own, &offer);
        let at = offers.partition_point(|other| place(own, other) < key);
        offers.insert(at, offer);
    }
}
