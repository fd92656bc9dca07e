//! The labels that a model's name claims, and how strongly.

use mesh_proto::name::{ModelParts, fold, slug};

/// How strong a claim of a name to a label is; a weaker one counts only where no stronger one exists.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
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

pub(super) const N_LEVELS: usize = 5;

/// The labels that a name claims, strongest first.
pub(super) fn labels(model: &str) -> impl Iterator<Item = (Level, String)> {
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
