//! The catalogue: every model that this node may use, by name, by digest and by host, with its hosts best first.
//!
//! Pure: made from a [`View`] and a judgement on hosts, never changed afterwards; no I/O and no clock.

mod near;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::local::{ModelHost, ModelStatus, Models};
use mesh_proto::name::{ModelParts, RESERVED_LABELS, fold, normalise, slug};
use mesh_proto::share::{Digest, HostOffers, Offer};

use crate::view::View;

/// All models that this node may use.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    suffix: String,
    /// One a (name, digest), sorted by name, then digest.
    entries: Vec<Entry>,
    /// One a digest, whatever its names; the same order as the keys of `by_digest`.
    digests: Vec<Entry>,
    by_digest: BTreeMap<Digest, usize>,
    by_id: BTreeMap<String, Vec<usize>>,
    by_name: BTreeMap<String, Vec<usize>>,
    by_label: [BTreeMap<String, Vec<usize>>; N_LEVELS],
    by_node: BTreeMap<NodeName, BTreeSet<usize>>,
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

/// A model on one host.
#[derive(Debug, Clone)]
pub struct HostOffer {
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
    /// What it offers, under the exact name that it has there.
    pub offer: Arc<Offer>,
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

/// How strong a claim of a name to a label is; a weaker one counts only where no stronger one exists.
#[derive(Debug, Clone, Copy)]
enum Level {
    /// The canonical slug, or the whole name folded when the slug was cut.
    Slug,
    /// The name with the tag `latest` written out.
    Latest,
    /// The name without its tag.
    Base,
    /// The last part of the path, with or without its tag.
    Short,
    /// The tag before the name.
    TagFirst,
}

const N_LEVELS: usize = 5;

impl Catalog {
    /// Makes the catalogue. Hosts that the coordinator lost are not in it; those of `is_down` are, as not online.
    #[must_use]
    pub fn build(view: &View, is_down: impl Fn(&NodeId) -> bool) -> Self {
        let netmap = &view.netmap;
        let own = &netmap.node;
        let mut models: BTreeMap<(String, Option<Digest>), Vec<HostOffer>> = BTreeMap::new();
        let mut add = |host: &HostOffer, offers: &HostOffers| {
            let mut names = BTreeSet::new();
            for offer in &offers.models {
                let model = normalise(&offer.model);
                // A second offer under one name would put the host twice into an answer.
                if !model.is_empty() && names.insert(model.clone()) {
                    let host = HostOffer {
                        offer: Arc::new(offer.clone()),
                        ..host.clone()
                    };
                    models.entry((model, offer.digest)).or_default().push(host);
                }
            }
        };
        let nothing = Arc::new(no_offer());
        let host = HostOffer {
            node: own.id,
            name: own.name.clone(),
            ipv4: own.ipv4,
            ipv6: own.ipv6,
            is_self: true,
            is_online: true,
            offer: Arc::clone(&nothing),
        };
        add(&host, &view.own_offers);
        for (id, peer) in &netmap.peers {
            if !peer.is_online
                || !peer
                    .offers
                    .audience
                    .admits(peer.user, own.user, &own.user_name)
            {
                continue;
            }
            let host = HostOffer {
                node: *id,
                name: peer.name.clone(),
                ipv4: peer.ipv4,
                ipv6: peer.ipv6,
                is_self: false,
                is_online: !is_down(id),
                offer: Arc::clone(&nothing),
            };
            add(&host, &peer.offers);
        }
        Self::index(&own.id, &netmap.network.suffix, models)
    }

    fn index(
        own: &NodeId,
        suffix: &str,
        models: BTreeMap<(String, Option<Digest>), Vec<HostOffer>>,
    ) -> Self {
        let mut catalog = Self {
            suffix: suffix.to_owned(),
            ..Self::default()
        };
        let mut digests: BTreeMap<Digest, Entry> = BTreeMap::new();
        for ((model, digest), mut offers) in models {
            sort_best_first(own, &mut offers);
            if let Some(digest) = digest {
                let merged = digests.entry(digest).or_insert_with(|| Entry {
                    model: model.clone(),
                    digest: Some(digest),
                    offers: Vec::new(),
                });
                merged.offers.extend(offers.iter().cloned());
            }
            catalog.add_entry(Entry {
                model,
                digest,
                offers,
            });
        }
        for (at, (digest, mut entry)) in digests.into_iter().enumerate() {
            sort_best_first(own, &mut entry.offers);
            let mut seen = BTreeSet::new();
            entry.offers.retain(|offer| seen.insert(offer.node));
            catalog.by_id.entry(digest.short()).or_default().push(at);
            catalog.by_digest.insert(digest, at);
            catalog.digests.push(entry);
        }
        catalog
    }

    fn add_entry(&mut self, entry: Entry) {
        let at = self.entries.len();
        for (level, label) in labels(&entry.model) {
            let claims = self.by_label[level as usize].entry(label).or_default();
            if claims.last() != Some(&at) {
                claims.push(at);
            }
        }
        self.by_name
            .entry(entry.model.clone())
            .or_default()
            .push(at);
        for offer in &entry.offers {
            self.by_node
                .entry(offer.name.clone())
                .or_default()
                .insert(at);
        }
        self.entries.push(entry);
    }

    /// Every model, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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
        match self.by_name.get(&normal) {
            Some(claims) => self.settle(claims.iter().copied()),
            None => self.lookup(&fold(&normal)),
        }
    }

    /// The files whose digest begins with these 12 digits, whatever the hosts call them.
    #[must_use]
    pub fn by_digest(&self, id12: &str) -> Lookup<'_> {
        match self
            .by_id
            .get(&id12.to_ascii_lowercase())
            .map(Vec::as_slice)
        {
            Some([one]) => Lookup::Found(&self.digests[*one]),
            Some(several) => {
                Lookup::Ambiguous(several.iter().map(|at| &self.digests[*at]).collect())
            }
            None => Lookup::Unknown,
        }
    }

    /// What a folded label stands for on one host; its offer is [`Entry::on`] of what is found.
    #[must_use]
    pub fn on_node(&self, name: &NodeName, folded_label: &str) -> Lookup<'_> {
        match self.by_node.get(name) {
            Some(here) => self.lookup_where(folded_label, |at| here.contains(&at)),
            None => Lookup::Unknown,
        }
    }

    /// The models that one host serves.
    pub fn of_node(&self, name: &NodeName) -> impl Iterator<Item = &Entry> {
        self.by_node
            .get(name)
            .into_iter()
            .flatten()
            .map(|at| &self.entries[*at])
    }

    /// Up to five names that someone may have meant, nearest first.
    #[must_use]
    pub fn near(&self, model: &str) -> Vec<&str> {
        near::nearest(&normalise(model), self.by_name.keys().map(String::as_str))
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
            models: self
                .entries
                .iter()
                .map(|entry| self.status_of(entry))
                .collect(),
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
            hosts: entry.offers.iter().map(host_status).collect(),
        }
    }

    fn lookup_where(&self, label: &str, holds: impl Fn(usize) -> bool) -> Lookup<'_> {
        if RESERVED_LABELS.contains(&label) {
            return Lookup::Unknown;
        }
        for level in &self.by_label {
            let claims = level.get(label).into_iter().flatten().copied();
            let answer = self.settle(claims.filter(|at| holds(*at)));
            if !matches!(answer, Lookup::Unknown) {
                return answer;
            }
        }
        Lookup::Unknown
    }

    /// One claim wins, and so do several to the same files. Two digests never stand under one name.
    fn settle(&self, claims: impl Iterator<Item = usize>) -> Lookup<'_> {
        let entries: Vec<&Entry> = claims.map(|at| &self.entries[at]).collect();
        let Some((first, others)) = entries.split_first() else {
            return Lookup::Unknown;
        };
        if others.is_empty() {
            return Lookup::Found(first);
        }
        let files = first.digest.and_then(|digest| self.by_digest.get(&digest));
        match files {
            Some(at) if others.iter().all(|other| other.same_files(first)) => {
                Lookup::Found(&self.digests[*at])
            }
            Some(_) | None => Lookup::Ambiguous(entries),
        }
    }
}

/// The labels that a name claims, strongest first.
fn labels(model: &str) -> impl Iterator<Item = (Level, String)> {
    let parts = ModelParts::of(model);
    let tagged = |base: &str| fold(&format!("{base}:{}", parts.tag));
    let is_latest = parts.tag == "latest";
    [
        slug(model).map(|label| (Level::Slug, label)),
        Some((Level::Slug, fold(model))),
        is_latest.then(|| (Level::Latest, tagged(parts.base))),
        Some((Level::Base, fold(parts.base))),
        Some((Level::Short, tagged(parts.short))),
        Some((Level::Short, fold(parts.short))),
        Some((
            Level::TagFirst,
            fold(&format!("{}-{}", parts.tag, parts.base)),
        )),
        Some((
            Level::TagFirst,
            fold(&format!("{}-{}", parts.tag, parts.short)),
        )),
    ]
    .into_iter()
    .flatten()
    .filter(|(_, label)| !label.is_empty())
}

/// Online before not, in memory before not, this node before others; then each node has an order of its own, so that
/// not every guest asks the same host first.
fn sort_best_first(own: &NodeId, offers: &mut [HostOffer]) {
    offers.sort_by_cached_key(|offer| {
        let rank = Reverse((offer.is_online, offer.offer.is_loaded, offer.is_self));
        (rank, spread(own, &offer.node), offer.node)
    });
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
    }
}

fn no_offer() -> Offer {
    Offer {
        model: String::new(),
        digest: None,
        api: mesh_proto::share::BackendApi::Ollama,
        size_bytes: 0,
        family: String::new(),
        parameter_size: String::new(),
        quantization: String::new(),
        context_length: 0,
        capabilities: Vec::new(),
        is_loaded: false,
        modified_at: String::new(),
    }
}

#[cfg(test)]
mod tests;
