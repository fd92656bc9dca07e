//! On whose account a request goes: limits and turns are shared out by it, whichever node it comes from.

use mesh_proto::door::{Caps, DoorPolicy, Guests, Limit};
use mesh_proto::id::{NodeId, UserId, UserName};

use crate::inventory::pattern;
use crate::view::View;

/// Who pays for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// This host's owner, by this machine or another node.
    Owner,
    /// Another user with all its nodes.
    User(UserId),
    /// A tagged node, which acts as no user.
    Tagged(NodeId),
}

/// Who sent a request: the tunnel says the node, the map the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    /// `None` is this machine itself.
    pub(crate) node: Option<NodeId>,
    pub(crate) account: Account,
    /// Absent for a tagged node.
    user: Option<UserName>,
}

impl Asker {
    /// Reads a node in the map; `None` when it is not there any more.
    pub(crate) fn of(view: &View, node: Option<NodeId>) -> Option<Self> {
        let own = &view.netmap.node;
        let Some(id) = node else {
            return Some(Self {
                node,
                account: Account::Owner,
                user: Some(own.user_name.clone()),
            });
        };
        let peer = view.netmap.peers.get(&id)?;
        let (account, user) = if !peer.tags.is_empty() {
            (Account::Tagged(id), None)
        } else if peer.user == own.user {
            (Account::Owner, Some(peer.user_name.clone()))
        } else {
            (Account::User(peer.user), Some(peer.user_name.clone()))
        };
        Some(Self {
            node,
            account,
            user,
        })
    }

    /// The bounds of one request of this one. The owner has those alone that are built in.
    pub(crate) fn caps(&self, policy: &DoorPolicy) -> Caps {
        match self.account {
            Account::Owner => Caps::default(),
            Account::User(_) | Account::Tagged(_) => policy.caps,
        }
    }

    /// The limits that bind this one's requests for a model. None binds the owner.
    pub(crate) fn limits<'a>(&self, policy: &'a DoorPolicy, model: &str) -> Vec<Bound<'a>> {
        if self.account == Account::Owner {
            return Vec::new();
        }
        let is_named = |limit: &Limit| match &limit.who {
            Guests::User(name) => self.user.as_ref() == Some(name),
            Guests::All | Guests::Each => false,
        };
        let fits = policy
            .limits
            .iter()
            .filter(|limit| pattern::matches(&limit.models, model));
        let bounds = fits.filter_map(|limit| {
            let account = match &limit.who {
                Guests::All => None,
                Guests::Each => {
                    let own = policy
                        .limits
                        .iter()
                        .any(|other| other.models == limit.models && is_named(other));
                    if own {
                        return None;
                    }
                    Some(self.account)
                }
                Guests::User(_) if is_named(limit) => Some(self.account),
                Guests::User(_) => return None,
            };
            Some(Bound { limit, account })
        });
        bounds.collect()
    }
}

/// What people call an account.
pub(crate) fn name_of(view: Option<&View>, account: Account) -> String {
    let peers = view.map(|view| &view.netmap.peers);
    match account {
        Account::Owner => "owner".to_owned(),
        Account::User(user) => {
            let peer = peers.and_then(|peers| peers.values().find(|peer| peer.user == user));
            peer.map_or_else(|| format!("user {user}"), |peer| peer.user_name.to_string())
        }
        Account::Tagged(node) => {
            let peer = peers.and_then(|peers| peers.get(&node));
            peer.map_or_else(|| node.to_string(), |peer| peer.name.to_string())
        }
    }
}

/// A limit, and on whose use it bears.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) limit: &'a Limit,
    /// `None` is all guests together.
    pub(crate) account: Option<Account>,
}

impl Bound<'_> {
    /// Under what its use is counted.
    pub(crate) fn key(&self) -> GateKey {
        GateKey {
            who: self.limit.who.clone(),
            models: self.limit.models.clone(),
            account: self.account,
        }
    }

    /// How many at once, if that is bounded.
    pub(crate) fn gate(&self) -> Option<Gate> {
        let n_max = self.limit.concurrent?;
        let key = self.key();
        Some(Gate { key, n_max })
    }
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GateKey {
    who: Guests,
    models: String,
    account: Option<Account>,
}

/// So many requests of a kind may be in work at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) key: GateKey,
    pub(crate) n_max: u32,
}

#[cfg(test)]
mod tests;
