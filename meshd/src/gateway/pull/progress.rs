//! What Ollama tells while it pulls. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// The most files of one model that are followed; it has a handful.
const N_FILES_MAX: usize = 256;

/// What a line of progress means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Going,
    Done,
    Failed(String),
}

/// How far a pull has come, by its files.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Total and completed bytes, by digest.
    files: BTreeMap<String, (u64, u64)>,
}

impl Progress {
    /// Takes in one line.
    pub(super) fn take(&mut self, line: &[u8]) -> Step {
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return Step::Going;
        };
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        if let Some(error) = text("error") {
            return Step::Failed(error.chars().take(500).collect());
        }
        if text("status") == Some("success") {
            return Step::Done;
        }
        if let Some(digest) = text("digest") {
            let digest: String = digest.chars().take(128).collect();
            let has_room = self.files.len() < N_FILES_MAX;
            if has_room || self.files.contains_key(&digest) {
                let figure = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
                let file = self.files.entry(digest).or_default();
                file.0 = file.0.max(figure("total"));
                file.1 = file.1.max(figure("completed"));
            } else {
                return Step::Failed("the model has too many files".to_owned());
            }
        }
        Step::Going
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.files
            .values()
            .fold(0, |sum, file| sum.saturating_add(file.0))
    }

    pub(super) fn completed_bytes(&self) -> u64 {
        self.files
            .values()
            .fold(0, |sum, file| sum.saturating_add(file.1))
    }
}
