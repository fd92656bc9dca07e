//! Names near a mistyped one, for the answer that says that it is unknown.

/// More names than this are not looked at: the answer is a courtesy.
const N_NAMES_MAX: usize = 4096;
const N_NEAR_MAX: usize = 5;
const LEN_MAX: usize = 128;

/// Up to five of `names`, nearest first: those that begin with the text or hold it, and those a few letters away.
pub(super) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let text: String = text.chars().take(LEN_MAX).collect();
    let mut found: Vec<(usize, &str)> = names
        .take(N_NAMES_MAX)
        .filter_map(|name| Some((distance(&text, name)?, name)))
        .collect();
    found.sort_unstable();
    found
        .into_iter()
        .take(N_NEAR_MAX)
        .map(|(_, name)| name)
        .collect()
}

/// How far apart; `None` when too far to have been meant.
fn distance(text: &str, name: &str) -> Option<usize> {
    let base = name.split(':').next().unwrap_or(name);
    if text.is_empty() || name.len() > LEN_MAX {
        return None;
    }
    if name.starts_with(text) {
        return Some(0);
    }
    if text.starts_with(base) {
        return Some(1);
    }
    let edits = edits(text, name).min(edits(text, base));
    if edits <= 1 + text.len() / 6 {
        return Some(1 + edits);
    }
    (text.len() >= 3 && name.contains(text)).then_some(8)
}

/// Levenshtein's distance over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let value = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = value;
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_count_letters() {
        for (a, b, n) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("llama3", "lama3", 1),
        ] {
            assert_eq!(edits(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_comes_first_and_strangers_do_not_come() {
        let names = ["llama3.2:1b", "lama3", "qwen2.5-coder:7b", "smollm2"];
        assert_eq!(nearest("llama3.2", names.into_iter()), ["llama3.2:1b"]);
        assert_eq!(nearest("smolm2", names.into_iter()), ["smollm2"]);
        assert_eq!(nearest("coder", names.into_iter()), ["qwen2.5-coder:7b"]);
        assert!(nearest("mistral", names.into_iter()).is_empty());
        assert!(nearest("", names.into_iter()).is_empty());
    }
}
