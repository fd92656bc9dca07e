//! The catalogue: every model that this node may use, by name, by digest and by host, with its hosts best first.
//!
//! Pure: made from a [`View`] and a judgement on hosts, and brought up to the next view by what changed between the two; no I/O
//! and no clock.

mod claims;
mod index;
mod label;
mod near;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::Arc;

use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::local::{ModelHost, ModelStatus, Models};
use mesh_proto::name::{RESERVED_LABELS, fold, normalise, slug};
use mesh_proto::share::{Digest, Offer};

use self::claims::Claims;
pub use self::index::Keeper;
use self::index::{Listed, Slot};
use self::label::{LEVELS, Level};
use crate::view::View;

/// All models that this node may use. A copy shares what does not change.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    suffix: String,
    own: Option<NodeId>,
    /// What each host was last seen to offer; what the next view is compared with.
    hosts: BTreeMap<NodeId, Arc<Listed>>,
    by_name: BTreeMap<NodeName, NodeId>,
    /// One a (name, digest), at a place that it keeps.
    slots: Vec<Option<Arc<Entry>>>,
    free: Vec<Slot>,
    /// The places in use, sorted by name, then digest.
    order: Vec<Slot>,
    digests: BTreeMap<Digest, Files>,
    claims: Claims,
}

/// The entries with one digest.
#[derive(Debug, Clone)]
struct Files {
    slots: Vec<Slot>,
    /// All their hosts together, under the first of the names.
    merged: Arc<Entry>,
}

/// A model: one name, one set of files.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The normalised name.
    pub model: String,
    /// The files; `None` where the backend knows none.
    pub digest: Option<Digest>,
    /// Who serves it, best first.
    pub offers: Vec<HostOffer>,
}

/// A host, as all its offers know it.
#[derive(Debug, Clone, PartialEq)]
pub struct HostInfo {
    /// The host.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether requests may be sent to it.
    pub is_online: bool,
    /// How many requests it works on at once, as it says; 0 when it does not.
    pub n_slots: u32,
}

/// A model on one host.
#[derive(Debug, Clone)]
pub struct HostOffer {
    host: Arc<HostInfo>,
    /// What it offers, under the exact name that it has there.
    pub offer: Arc<Offer>,
}

impl HostOffer {
    /// An offer of a host.
    #[must_use]
    pub fn new(host: Arc<HostInfo>, offer: Arc<Offer>) -> Self {
        Self { host, offer }
    }
}

impl Deref for HostOffer {
    type Target = HostInfo;

    fn deref(&self) -> &HostInfo {
        &self.host
    }
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Lookup<'a> {
    /// One model.
    Found(&'a Entry),
    /// Several models with the same claim to the name; none of them is it.
    Ambiguous(Vec<&'a Entry>),
    /// No model.
    Unknown,
}

impl<'a> Lookup<'a> {
    /// The model, when there is exactly one.
    #[must_use]
    pub fn found(self) -> Option<&'a Entry> {
        match self {
            Self::Found(entry) => Some(entry),
            Self::Ambiguous(_) | Self::Unknown => None,
        }
    }
}

impl Entry {
    /// The hosts that requests may be sent to, best first.
    pub fn online(&self) -> impl Iterator<Item = &HostOffer> {
        self.offers.iter().filter(|offer| offer.is_online)
    }

    /// The offer of one host.
    #[must_use]
    pub fn on(&self, name: &NodeName) -> Option<&HostOffer> {
        self.offers.iter().find(|offer| offer.name == *name)
    }

    fn same_files(&self, other: &Self) -> bool {
        self.digest.is_some() && self.digest == other.digest
    }
}

impl Catalog {
    /// Makes the catalogue of one view. Hosts that the coordinator lost are not in it; those of `is_down` are, as not online.
    #[must_use]
    pub fn build(view: &View, is_down: impl Fn(&NodeId) -> bool) -> Self {
        let mut catalog = Self::default();
        let change = catalog.compare(view, is_down);
        catalog.apply(change);
        catalog
    }

    /// Every model, sorted by name.
    #[must_use]
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> + Clone {
        self.order.iter().map(|slot| self.entry(*slot))
    }

    /// What a folded label stands for: exact slug, `latest`, sole tag, unique short name, tag first.
    #[must_use]
    pub fn lookup(&self, folded_label: &str) -> Lookup<'_> {
        self.lookup_where(folded_label, |_| true)
    }

    /// What a model's name in a request stands for: the exact name, else as a label.
    #[must_use]
    pub fn lookup_model(&self, model: &str) -> Lookup<'_> {
        let normal = normalise(model);
        match self.settle(self.claimants(Level::Name, &normal)) {
            Lookup::Unknown => self.lookup(&fold(&normal)),
            found @ (Lookup::Found(_) | Lookup::Ambiguous(_)) => found,
        }
    }

    /// The files whose digest begins with these 12 digits, whatever the hosts call them.
    #[must_use]
    pub fn by_digest(&self, id12: &str) -> Lookup<'_> {
        let mut found = self.with_prefix(id12);
        match (found.next(), found.next()) {
            (None, _) => Lookup::Unknown,
            (Some(one), None) => Lookup::Found(one),
            (Some(one), Some(two)) => {
                Lookup::Ambiguous([one, two].into_iter().chain(found).collect())
            }
        }
    }

    /// What a folded label stands for on one host; its offer is [`Entry::on`] of what is found.
    #[must_use]
    pub fn on_node(&self, name: &NodeName, folded_label: &str) -> Lookup<'_> {
        match self.by_name.get(name) {
            Some(node) => self.lookup_where(folded_label, |entry| {
                entry.offers.iter().any(|offer| offer.node == *node)
            }),
            None => Lookup::Unknown,
        }
    }

    /// The models that one host serves.
    pub fn of_node(&self, name: &NodeName) -> impl Iterator<Item = &Entry> {
        let listed = self.by_name.get(name).and_then(|node| self.hosts.get(node));
        listed
            .into_iter()
            .flat_map(|listed| listed.keys())
            .filter_map(|(model, digest)| Some(self.entry(self.find(&model, &digest).ok()?)))
    }

    /// Up to five names that someone may have meant, nearest first.
    #[must_use]
    pub fn near(&self, model: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries().map(|entry| entry.model.as_str()).collect();
        names.dedup();
        near::nearest(&normalise(model), names.into_iter())
    }

    /// The label under the suffix that stands for this very model, if its canonical one does.
    #[must_use]
    pub fn label_of(&self, entry: &Entry) -> Option<String> {
        let label = slug(&entry.model)?;
        let found = self.lookup(&label).found()?;
        (found.same_files(entry) || (found.model == entry.model && found.digest == entry.digest))
            .then_some(label)
    }

    /// The catalogue as `meshctl models` shows it.
    #[must_use]
    pub fn models(&self) -> Models {
        Models {
            models: self.entries().map(|entry| self.status_of(entry)).collect(),
        }
    }

    fn status_of(&self, entry: &Entry) -> ModelStatus {
        let best = entry.offers.first().map(|offer| &*offer.offer);
        let text = |field: fn(&Offer) -> &String| best.map(field).cloned().unwrap_or_default();
        ModelStatus {
            model: entry.model.clone(),
            dns_name: self
                .label_of(entry)
                .map(|label| format!("{label}.{}", self.suffix)),
            digest: entry.digest,
            size_bytes: best.map_or(0, |offer| offer.size_bytes),
            parameter_size: text(|offer| &offer.parameter_size),
            quantization: text(|offer| &offer.quantization),
            context_length: best.map_or(0, |offer| offer.context_length),
            capabilities: best
                .map(|offer| offer.capabilities.clone())
                .unwrap_or_default(),
            price_class_milli: best.and_then(Offer::price_class_milli),
            hosts: entry.offers.iter().map(host_status).collect(),
        }
    }

    fn lookup_where(&self, label: &str, holds: impl Fn(&Entry) -> bool) -> Lookup<'_> {
        if RESERVED_LABELS.contains(&label) {
            return Lookup::Unknown;
        }
        for level in LEVELS {
            let mut claimants = self.claimants(level, label);
            claimants.retain(|entry| holds(entry));
            let answer = self.settle(claimants);
            if !matches!(answer, Lookup::Unknown) {
                return answer;
            }
        }
        Lookup::Unknown
    }

    /// The entries that claim a label, or a name, at one level; sorted by name, then digest.
    fn claimants(&self, level: Level, label: &str) -> Vec<&Entry> {
        let slots = self.claims.of(level, label);
        let entries = slots.map(|slot| self.entry(slot));
        // Claims are kept as hashes: two labels may share one.
        let mut entries: Vec<&Entry> = entries
            .filter(|entry| label::claims(&entry.model, level, label))
            .collect();
        entries.sort_unstable_by_key(|entry| (&entry.model, entry.digest));
        entries
    }

    /// One claim wins, and so do several to the same files. Two digests never stand under one name.
    fn settle<'a>(&'a self, claimants: Vec<&'a Entry>) -> Lookup<'a> {
        let Some((first, others)) = claimants.split_first() else {
            return Lookup::Unknown;
        };
        if others.is_empty() {
            return Lookup::Found(first);
        }
        let files = first.digest.and_then(|digest| self.digests.get(&digest));
        match files {
            Some(files) if others.iter().all(|other| other.same_files(first)) => {
                Lookup::Found(&files.merged)
            }
            Some(_) | None => Lookup::Ambiguous(claimants),
        }
    }
}

/// Where an offer stands among those of one model: online before not, in memory before not, this node before others; then each
/// node has an order of its own, so that not every guest asks the same host first.
fn place(own: &NodeId, offer: &HostOffer) -> (Reverse<(bool, bool, bool)>, u64, NodeId) {
    let rank = Reverse((offer.is_online, offer.offer.is_loaded, offer.is_self));
    (rank, spread(own, &offer.node), offer.node)
}

/// FNV-1a over both ids: no defence, just an even order that each guest has for itself.
fn spread(own: &NodeId, host: &NodeId) -> u64 {
    let bytes = own.as_bytes().iter().chain(host.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn host_status(offer: &HostOffer) -> ModelHost {
    ModelHost {
        id: offer.node,
        name: offer.name.clone(),
        is_self: offer.is_self,
        is_healthy: offer.is_online,
        is_loaded: offer.offer.is_loaded,
        api: offer.offer.api,
        speaks: offer.offer.speaks.clone(),
        n_slots: 0,
        speed: offer.offer.speed,
        gpus: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
