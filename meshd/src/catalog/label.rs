//! The labels that a model's name claims, and how strongly.

use mesh_proto::name::{ModelParts, fold, slug};

/// How strong a claim of a name to a label is; a weaker one counts only where no stronger one exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The normalised name itself, as requests have it; no label.
    Name,
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

/// The levels at which a label is looked up, strongest first.
pub(super) const LEVELS: [Level; 5] = [
    Level::Slug,
    Level::Latest,
    Level::Base,
    Level::Short,
    Level::TagFirst,
];

/// Whether a name claims a label at a level.
pub(super) fn claims(model: &str, level: Level, label: &str) -> bool {
    if level == Level::Name {
        return model == label;
    }
    labels(model).any(|(at, claimed)| at == level && claimed == label)
}

/// The labels that a name claims, strongest first.
pub(super) fn labels(model: &str) -> impl Iterator<Item = (Level, String)> {
    let parts = ModelParts::of(model);
    let tagged = |base: &str| fold(&format!("{base}:{}", parts.tag));
    let is_latest = parts.tag == "latest";
    [
        Some((Level::Name, model.to_owned())),
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
