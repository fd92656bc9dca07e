//! Patterns of model names, as `meshctl share models 'llama3*'` takes them. Pure.

use mesh_proto::name::normalise;

/// Whether a model is meant by a list of patterns; an empty list means all.
pub(crate) fn matches_any(patterns: &[String], model: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, model))
}

/// Case does not matter, `*` stands for any text and `?` for one character. A pattern without a tag and without `*` means
/// the model with every tag.
pub(crate) fn matches(pattern: &str, model: &str) -> bool {
    let pattern = normalise(pattern);
    let model = normalise(model);
    if glob(pattern.as_bytes(), model.as_bytes()) {
        return true;
    }
    let after_path = pattern.rfind('/').map_or(0, |at| at + 1);
    !pattern[after_path..].contains(':')
        && glob(format!("{pattern}:*").as_bytes(), model.as_bytes())
}

/// Linear in the product of the lengths, without recursion.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(c) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((star_p, star_t)) = star else {
                    return false;
                };
                star = Some((star_p, star_t + 1));
                p = star_p + 1;
                t = star_t + 1;
            }
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_models() {
        for (pattern, model, want) in [
            ("llama3*", "llama3.2:1b", true),
            ("llama3*", "llama2", false),
            ("tiny", "tiny:latest", true),
            ("tiny", "tiny:1b", true),
            ("tiny:1b", "tiny:2b", false),
            ("TINY", "tiny", true),
            ("*", "anything/at:all", true),
            ("*:1b", "llama3.2:1b", true),
            ("tiny", "tinyllama", false),
            ("library/tiny", "tiny:latest", true),
            ("t?ny", "tiny", true),
            ("*a*b*c", "xaxbxc", true),
            ("*a*b*c", "xaxbx", false),
            ("", "tiny", false),
        ] {
            assert_eq!(matches(pattern, model), want, "{pattern} {model}");
        }
        assert!(matches_any(&[], "tiny"));
    }
}
