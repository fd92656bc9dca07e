//! The packet filter as a coordinator sends it: which peers may open flows to this node.
//!
//! Rules name peers by what they are (user, tag, id) and not by address, so that a join or leave elsewhere changes no
//! rule. The receiver compiles them against its peers.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, Tag, UserId};

/// All rules of a node. A new inbound flow passes when any rule allows it; replies to flows of the node's own pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Filter {
    /// In no order: a rule can only allow.
    pub rules: Vec<FilterRule>,
}

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilterRule {
    /// Who may.
    pub src: Source,
    /// What they may open.
    pub allow: Vec<Allow>,
}

/// Which peers a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Every peer in the netmap.
    Any,
    /// Untagged nodes of this user.
    User(UserId),
    /// Nodes with this tag.
    Tag(Tag),
    /// These nodes.
    Nodes(Vec<NodeId>),
}

/// Something that a rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Allow {
    /// Every protocol and port.
    All,
    /// ICMP and ICMPv6 echo.
    Ping,
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// One port alone.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether the port is within.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl Filter {
    /// What a peer may open.
    #[must_use]
    pub fn allowed_to(&self, node: &NodeId, user: UserId, tags: &[Tag]) -> Vec<Allow> {
        let rules = self.rules.iter();
        let matching = rules.filter(|rule| rule.src.matches(node, user, tags));
        matching.flat_map(|rule| rule.allow.clone()).collect()
    }
}

impl Allow {
    /// Whether TCP to a port is among it.
    #[must_use]
    pub const fn has_tcp(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Tcp(ports) => ports.contains(port),
            Self::Ping | Self::Udp(_) => false,
        }
    }
}

impl Source {
    /// Whether a peer with this id, owner and tags is meant.
    ///
    /// A tagged node acts as its tags and no longer as its user.
    #[must_use]
    pub fn matches(&self, node: &NodeId, user: UserId, tags: &[Tag]) -> bool {
        match self {
            Self::Any => true,
            Self::User(owner) => tags.is_empty() && *owner == user,
            Self::Tag(tag) => tags.contains(tag),
            Self::Nodes(nodes) => nodes.contains(node),
        }
    }
}
