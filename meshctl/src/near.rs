//! Finds names that a mistyped one may have meant. Pure.

/// At most three of `known` that are near to `asked`, nearest first.
pub(crate) fn near<'a>(asked: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let asked = asked.to_ascii_lowercase();
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|name| {
            let lower = name.to_ascii_lowercase();
            let distance = distance(&asked, &lower);
            // A cut or an extended name is near however much of it is missing.
            let is_part = asked.len() >= 2 && (lower.contains(&asked) || asked.contains(&lower));
            let limit = (asked.len().max(lower.len()) / 3).max(1);
            (is_part || distance <= limit).then_some((distance, name))
        })
        .collect();
    scored.sort_unstable();
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// `did you mean a, b or c?`, when there is anything to mean.
pub(crate) fn did_you_mean(names: &[&str]) -> Option<String> {
    let (last, others) = names.split_last()?;
    Some(if others.is_empty() {
        format!("did you mean {last}?")
    } else {
        format!("did you mean {} or {last}?", others.join(", "))
    })
}

/// Levenshtein's distance, over characters; long texts count as far from everything.
fn distance(a: &str, b: &str) -> usize {
    const LEN_MAX: usize = 256;
    let b: Vec<char> = b.chars().take(LEN_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(LEN_MAX).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(from != *to))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = cost;
            left = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 5] = [
        "llama3.2",
        "llama3.2:1b",
        "qwen3:8b",
        "smollm2:135m",
        "gpu1",
    ];

    #[test]
    fn mistyped_and_cut_names_find_what_was_meant() {
        let cases: [(&str, &[&str]); 6] = [
            ("lama3.2", &["llama3.2", "llama3.2:1b"]),
            ("smollm2", &["smollm2:135m"]),
            ("QWEN3", &["qwen3:8b"]),
            ("gpu2", &["gpu1"]),
            ("mistral-large", &[]),
            ("", &[]),
        ];
        for (asked, expected) in cases {
            assert_eq!(near(asked, KNOWN), expected, "{asked}");
        }
    }

    #[test]
    fn words_fit_the_number_of_names() {
        assert_eq!(did_you_mean(&[]), None);
        assert_eq!(did_you_mean(&["a"]).as_deref(), Some("did you mean a?"));
        assert_eq!(
            did_you_mean(&["a", "b", "c"]).as_deref(),
            Some("did you mean a, b or c?")
        );
    }

    proptest! {
        #[test]
        fn distance_is_a_distance(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.chars().count().max(b.chars().count()));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
