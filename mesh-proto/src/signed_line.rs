//! Lines `signature SP json LF`, in which a coordinator tells things that hold without trust in what carried them.
//!
//! The signature covers the JSON bytes as they are on the line, so nothing has to be written in one canonical form.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::key::{CoordinatorKey, CoordinatorPrivateKey, Purpose, Signature};
use crate::netmap::FrameError;

/// Signs what has string keys and serialises; one line with its line feed.
pub(crate) fn write<T: Serialize>(
    frame: &T,
    purpose: Purpose,
    key: &CoordinatorPrivateKey,
) -> String {
    let json = serde_json::to_string(frame).expect("frames have string keys and serialise");
    let signature = key.sign(purpose, json.as_bytes());
    format!("{signature} {json}\n")
}

/// Verifies and reads one line, with or without its line feed. For whom it is, the caller looks.
///
/// # Errors
/// [`FrameError`] when the line is none, or not of this coordinator and for this purpose.
pub(crate) fn read<T: DeserializeOwned>(
    line: &str,
    purpose: Purpose,
    coordinator: &CoordinatorKey,
) -> Result<T, FrameError> {
    let (signature, json) = line
        .trim_end_matches('\n')
        .split_once(' ')
        .ok_or(FrameError::Malformed)?;
    let signature: Signature = signature.parse().map_err(|_| FrameError::Malformed)?;
    coordinator
        .verify(purpose, json.as_bytes(), &signature)
        .map_err(|_| FrameError::BadSignature)?;
    serde_json::from_str(json).map_err(|_| FrameError::Malformed)
}
