//! Who may see and reach whom. Pure: it never asks the store or the clock.
//!
//! This is the policy of a mesh whose operator wrote none: everybody sees everybody, a user's own nodes reach each
//! other fully, other users' nodes may ping and use shared models, nothing else.

use mesh_proto::control::AllowedReply;
use mesh_proto::filter::{Allow, Filter, FilterRule, PortRange, Source};
use mesh_proto::id::UserName;
use mesh_proto::share::{Audience, HostOffers};
use mesh_proto::{MODEL_PORT, WEB_PORT};

use crate::store::NodeRecord;

/// Whether a node may know of a peer.
pub(crate) fn sees(viewer: &NodeRecord, peer: &NodeRecord) -> bool {
    viewer.id != peer.id
}

/// Who may open flows to a node.
pub(crate) fn filter_for(node: &NodeRecord) -> Filter {
    let own = if node.tags.is_empty() {
        vec![Source::User(node.user)]
    } else {
        node.tags.iter().cloned().map(Source::Tag).collect()
    };
    let mut rules: Vec<_> = own
        .into_iter()
        .map(|src| FilterRule {
            src,
            allow: vec![Allow::All],
        })
        .collect();
    rules.push(FilterRule {
        src: Source::Any,
        allow: vec![Allow::Ping],
    });
    rules.push(FilterRule {
        src: Source::Any,
        allow: vec![
            Allow::Tcp(PortRange::one(MODEL_PORT)),
            Allow::Tcp(PortRange::one(WEB_PORT)),
        ],
    });
    Filter { rules }
}

/// What one node may open on another.
pub(crate) fn allowed(from: &NodeRecord, to: &NodeRecord) -> AllowedReply {
    let allow = if sees(from, to) {
        filter_for(to).allowed_to(&from.id, from.user, &from.tags)
    } else {
        Vec::new()
    };
    AllowedReply { allow }
}

/// Whether a node may ask what another is allowed: itself, or one of the same user.
pub(crate) fn may_ask_for(asker: &NodeRecord, from: &NodeRecord) -> bool {
    let acts_as_user = |node: &NodeRecord| node.tags.is_empty();
    asker.id == from.id || (acts_as_user(asker) && acts_as_user(from) && asker.user == from.user)
}

/// What of a host's offers a viewer is told of.
///
/// A tagged viewer acts as no user, so only what is for everyone is for it.
pub(crate) fn offers_for(
    viewer: &NodeRecord,
    viewer_user: &UserName,
    host: &NodeRecord,
) -> HostOffers {
    let is_admitted = if viewer.tags.is_empty() {
        host.offers
            .audience
            .admits(host.user, viewer.user, viewer_user)
    } else {
        host.offers.audience == Audience::Everyone
    };
    if is_admitted {
        HostOffers::clone(&host.offers)
    } else {
        HostOffers::default()
    }
}

#[cfg(test)]
mod tests;
