//! From model names to DNS names: normalise, fold, and the rules that keep names unambiguous.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

/// First labels under the suffix that are never a model.
pub const RESERVED_LABELS: [&str; 7] = ["node", "id", "gw", "api", "ns", "www", "ollama"];

const LABEL_LEN_MAX: usize = 63;
const SLUG_HEAD_LEN: usize = 52;

/// Folds any text to the alphabet of DNS labels: lower case, each run outside `[a-z0-9]` one `-`, none at the ends.
///
/// The result never holds `--`, so never a reserved label (RFC 5891), and may be empty.
#[must_use]
pub fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            folded.push(c.to_ascii_lowercase());
        } else if !folded.is_empty() && !folded.ends_with('-') {
            folded.push('-');
        }
    }
    if folded.ends_with('-') {
        folded.pop();
    }
    folded
}

/// A model's name in one spelling: without the default registry, `library/` and `:latest`, in lower case.
#[must_use]
pub fn normalise(model: &str) -> String {
    let lower = model.trim().to_ascii_lowercase();
    let mut name = lower.as_str();
    for scheme in ["https://", "http://"] {
        name = name.strip_prefix(scheme).unwrap_or(name);
    }
    for prefix in ["registry.ollama.ai/", "library/"] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    name.strip_suffix(":latest").unwrap_or(name).to_owned()
}

/// The canonical DNS label of a model; `None` when nothing is left or the label is reserved.
#[must_use]
pub fn slug(model: &str) -> Option<String> {
    let normal = normalise(model);
    let label = shorten(fold(&normal), &normal);
    (!label.is_empty() && !RESERVED_LABELS.contains(&label.as_str())).then_some(label)
}

/// Cuts a folded name to one label: its first 52 characters, `-`, and 10 base32 characters of the name's SHA-256.
fn shorten(folded: String, normal: &str) -> String {
    if folded.len() <= LABEL_LEN_MAX {
        return folded;
    }
    let hash = BASE32_NOPAD
        .encode(&Sha256::digest(normal.as_bytes()))
        .to_ascii_lowercase();
    format!(
        "{}-{}",
        folded[..SLUG_HEAD_LEN].trim_end_matches('-'),
        &hash[..10]
    )
}

/// The parts of a normalised model name that may stand for it: without its tag, its last path part, its tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelParts<'a> {
    /// Everything before the tag.
    pub base: &'a str,
    /// The last path part, without the tag.
    pub short: &'a str,
    /// The tag; `latest` when none is written.
    pub tag: &'a str,
}

impl<'a> ModelParts<'a> {
    /// Takes a normalised name apart.
    #[must_use]
    pub fn of(normal: &'a str) -> Self {
        let after_path = normal.rfind('/').map_or(0, |at| at + 1);
        let (base, tag) = match normal[after_path..].find(':') {
            Some(at) => (&normal[..after_path + at], &normal[after_path + at + 1..]),
            None => (normal, "latest"),
        };
        Self {
            base,
            short: &base[after_path..],
            tag,
        }
    }
}

#[cfg(test)]
mod tests;
