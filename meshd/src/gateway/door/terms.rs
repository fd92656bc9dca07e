//! The owner's terms put to one request: whether the host is open, and what the guest has left.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use mesh_proto::door::Closed;

use super::account::Account;
use super::spending::Over;
use crate::gateway::dialect::Refusal;
use crate::gateway::queue::QueueError;
use crate::metrics::DOOR_LIMITED;

/// How long guests are told to stay away while the owner uses the GPU: nobody knows when that ends.
const GPU_RETRY_SECS: u32 = 60;

/// Lets the owner in always, guests while the host is open.
///
/// # Errors
/// A refusal that says until when.
pub(crate) fn check_open(
    closed: Option<&Closed>,
    account: Account,
    now: impl FnOnce() -> SystemTime,
) -> Result<(), Refusal> {
    let Some(closed) = closed.filter(|_| account != Account::Owner) else {
        return Ok(());
    };
    Err(match closed {
        Closed::Quiet { until_ms } => {
            let now = now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            let left = Duration::from_millis(*until_ms).saturating_sub(now);
            let secs = u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX);
            limited("quiet");
            let message = format!(
                "this host has quiet hours, in which it serves its owner alone; they end in {}",
                minutes(secs)
            );
            Refusal::busy(message).retry_in(secs)
        }
        Closed::GpuInUse => {
            limited("gpu");
            Refusal::busy("the owner of this host uses its GPU at the moment; try again later")
                .retry_in(GPU_RETRY_SECS)
        }
    })
}

fn minutes(secs: u32) -> String {
    let minutes = secs.div_ceil(60);
    if minutes < 120 {
        format!("{minutes} min")
    } else {
        format!("{} h", minutes.div_ceil(60))
    }
}

/// The refusal of one who is over a limit.
pub(crate) fn over(over: &Over) -> Refusal {
    limited(over.reason());
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, over.to_string()).retry_in(over.retry_secs())
}

/// The refusal of one who gets no slot.
pub(crate) fn no_slot(err: &QueueError) -> Refusal {
    let (status, reason, secs) = match err {
        QueueError::Full { retry_secs, .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "full", *retry_secs)
        }
        QueueError::GuestFull { retry_secs } => {
            (StatusCode::TOO_MANY_REQUESTS, "guest_full", *retry_secs)
        }
        QueueError::Deadline { retry_secs, .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "deadline", *retry_secs)
        }
    };
    limited(reason);
    Refusal::new(status, err.to_string()).retry_in(secs)
}

fn limited(reason: &'static str) {
    metrics::counter!(DOOR_LIMITED, "reason" => reason).increment(1);
}
