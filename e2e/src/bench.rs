//! Measurements against others, for `make bench`: each in turn within one run, because only ratios of one run hold.

pub mod bar;
pub mod catalogue;
pub mod chart;
pub mod crowd;
pub mod dns;
pub mod faults;
pub mod gateway;
pub mod idle;
pub mod loss;
pub mod nats;
pub mod relay;
pub mod start;
pub mod strangers;
pub mod streams;
pub mod tunnels;
pub mod userspace;
pub mod weather;

use std::time::Duration;

pub use bar::Bar;

/// What a part measured.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Its tables, as they stand in the guide.
    pub text: String,
    /// What was asked of it.
    pub bars: Vec<Bar>,
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        let bars = Vec::new();
        Self { text, bars }
    }
}

/// A time as bars have it, in milliseconds.
#[must_use]
pub fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// The median of some values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(low), at(high))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, expected) in [
            (&[3.0, 1.0, 2.0][..], 2.0),
            (&[3.0, 1.0], 2.0),
            (&[4.0, 1.0, 3.0, 2.0], 2.5),
        ] {
            assert!((median(values) - expected).abs() < f64::EPSILON);
        }
        assert!(median(&[]).is_nan());
    }
}
