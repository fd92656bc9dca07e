//! Numbers and times as people read them. Pure.

use std::time::Duration;

/// Such as `1.2 GiB`.
pub(crate) fn bytes(n_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n_bytes < 1024 {
        return format!("{n_bytes} B");
    }
    let (mut unit, mut divisor) = (UNITS[0], 1024_u64);
    for next in &UNITS[1..] {
        if n_bytes / divisor < 1024 {
            break;
        }
        divisor *= 1024;
        unit = next;
    }
    // Integer tenths: no float, no rounding up to 1024.0.
    let tenths = (n_bytes / (divisor / 1024)) * 10 / 1024;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Such as `3 minutes ago`.
pub(crate) fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (n, unit) = match seconds {
        0..=1 => return "just now".to_owned(),
        2..=119 => (seconds, "second"),
        120..=7_199 => (seconds / 60, "minute"),
        7_200..=172_799 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{} ago", plural(n, unit))
}

/// Such as `1 model`, `2 models`.
pub(crate) fn plural(n: u64, unit: &str) -> String {
    if n == 1 {
        format!("1 {unit}")
    } else {
        format!("{n} {unit}s")
    }
}

/// A round trip, such as `1.2ms`, `0.08ms`, `1530ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.2}ms"),
        ms if ms < 100.0 => format!("{ms:.1}ms"),
        ms => format!("{ms:.0}ms"),
    }
}

/// A relay by its name, or by its id when it has none.
pub(crate) fn relay_words(id: &mesh_proto::id::RelayId, name: &str) -> String {
    if name.is_empty() {
        id.to_string()
    } else {
        clean(name)
    }
}

/// Text of others with its control characters taken out: no peer or model moves our cursor.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_short_and_right() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            (1_321_098_329, "1.2 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ];
        for (n, expected) in cases {
            assert_eq!(bytes(n), expected, "{n}");
        }
    }

    #[test]
    fn ages_are_short() {
        let cases = [
            (0, "just now"),
            (2, "2 seconds ago"),
            (90, "90 seconds ago"),
            (180, "3 minutes ago"),
            (7_200, "2 hours ago"),
            (86_400 * 3, "3 days ago"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(ago(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(plural(1, "model"), "1 model");
    }

    #[test]
    fn round_trips_keep_the_digits_that_matter() {
        assert_eq!(milliseconds(0.083), "0.08ms");
        assert_eq!(milliseconds(1.24), "1.2ms");
        assert_eq!(milliseconds(1530.4), "1530ms");
    }

    proptest! {
        #[test]
        fn cleaned_text_moves_no_cursor(text in "\\PC*|.{0,40}|(\\x1b\\[[0-9]{1,3}m)*") {
            prop_assert!(clean(&text).chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()));
        }

        #[test]
        fn any_size_prints(n in any::<u64>()) {
            prop_assert!(bytes(n).len() <= 12);
        }
    }
}
