//! The model that a host name stands for: `llama3.2.proxima:11434` in a `Host` header.
//!
//! Pure: text in, label out.

use mesh_proto::id::NodeName;
use mesh_proto::name::{RESERVED_LABELS, fold};

use crate::catalog::{Catalog, Lookup};

/// The second suffix that every mesh answers to.
const ALIAS_SUFFIX: &str = "proxima.internal";

/// What a host name says about the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Alias {
    /// The name of a model, folded to one label.
    Label(String),
    /// The first digits of a digest.
    Id(String),
    /// A model on one node.
    OnNode(NodeName, String),
}

impl Alias {
    /// Reads a `Host` header. `None` when it is an address, the gateway's own name, a node's, or not of this mesh.
    pub(crate) fn parse(host: &str, suffix: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let name = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(name, _port)| name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let stem = [suffix, ALIAS_SUFFIX]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix('.'))?;
        if let Some(below) = stem.strip_suffix(".node") {
            let (model, node) = below.rsplit_once('.')?;
            return Some(Self::OnNode(node.parse().ok()?, non_empty(fold(model))?));
        }
        if let Some(id) = stem.strip_suffix(".id") {
            return Some(Self::Id(id.to_owned()));
        }
        let label = non_empty(fold(stem))?;
        (!RESERVED_LABELS.contains(&label.as_str())).then_some(Self::Label(label))
    }

    /// Looks the model up in the whole catalogue.
    pub(crate) fn lookup<'a>(&self, catalog: &'a Catalog) -> Lookup<'a> {
        match self {
            Self::Label(label) => catalog.lookup(label),
            Self::Id(id12) => catalog.by_digest(id12),
            Self::OnNode(node, label) => catalog.on_node(node, label),
        }
    }

    /// What to call it in an error.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Label(text) | Self::Id(text) | Self::OnNode(_, text) => text,
        }
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_stand_for_models() {
        let label = |text: &str| Some(Alias::Label(text.to_owned()));
        for (host, want) in [
            ("llama3.2.proxima:11434", label("llama3-2")),
            ("LLAMA3-2.Proxima", label("llama3-2")),
            ("llama3.2.proxima.", label("llama3-2")),
            ("llama3.proxima.internal:80", label("llama3")),
            (
                "a80c4f17acd5.id.proxima",
                Some(Alias::Id("a80c4f17acd5".to_owned())),
            ),
            (
                "llama3.2.gpu1.node.proxima",
                Some(Alias::OnNode(
                    "gpu1".parse().unwrap(),
                    "llama3-2".to_owned(),
                )),
            ),
            ("gpu1.node.proxima", None),
            ("ollama.proxima:11434", None),
            ("api.proxima", None),
            ("proxima", None),
            ("10.77.1.2:11434", None),
            ("[fd00::1]:11434", None),
            ("llama3.example.org", None),
            ("notproxima", None),
            ("", None),
        ] {
            assert_eq!(Alias::parse(host, "proxima"), want, "{host}");
        }
    }
}
