//! Keeps the map stream open: reads and verifies its lines, resumes where it stood, and dials again with jitter.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use mesh_proto::control::{HEARTBEAT_MS, PATH_MAP};
use mesh_proto::netmap::MapFrame;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, random};
use super::{ControlError, ControlEvent, Credentials, EventSender, Link, RevisionReceiver};

/// Two missed heartbeats and some slack: then the stream is dead.
const SILENCE_MAX: Duration = Duration::from_millis(2 * HEARTBEAT_MS + 3_000);
/// No full map of a mesh is longer.
const LINE_LEN_MAX: usize = 64 << 20;

/// Runs until cancelled, or until the coordinator says that this node needs a person.
///
/// A change of `redial` (the network moved) drops the stream and dials at once.
pub async fn run(
    credentials: Credentials,
    mut link: Link,
    revision: RevisionReceiver,
    mut redial: watch::Receiver<u64>,
    events: EventSender,
    cancel: CancellationToken,
) {
    let mut backoff = Backoff::default();
    loop {
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            _ = redial.changed() => {
                backoff.reset();
                link.disconnect();
                continue;
            }
            error = stream(&credentials, &mut link, &revision, &events, &mut backoff) => error,
        };
        link.disconnect();
        let is_over = outcome.needs_person();
        tracing::info!(err = %outcome, "map stream ended");
        if events
            .send(ControlEvent::Disconnected { error: outcome })
            .await
            .is_err()
            || is_over
        {
            return;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = redial.changed() => backoff.reset(),
            () = tokio::time::sleep(backoff.next(random())) => {}
        }
    }
}

/// One stream, from its request to its end; always ends with the reason.
async fn stream(
    credentials: &Credentials,
    link: &mut Link,
    revision: &RevisionReceiver,
    events: &EventSender,
    backoff: &mut Backoff,
) -> ControlError {
    match read_stream(credentials, link, revision, events, backoff).await {
        Ok(()) => ControlError::Unreachable {
            url: link.url().to_owned(),
            reason: "the stream was closed".to_owned(),
        },
        Err(error) => error,
    }
}

async fn read_stream(
    credentials: &Credentials,
    link: &mut Link,
    revision: &RevisionReceiver,
    events: &EventSender,
    backoff: &mut Backoff,
) -> Result<(), ControlError> {
    let known = *revision.borrow();
    let path = match known {
        Some(known) => format!("{PATH_MAP}?epoch={}&version={}", known.epoch, known.version),
        None => PATH_MAP.to_owned(),
    };
    let response = link.open(&path).await?;
    let url = link.url().to_owned();
    if events
        .send(ControlEvent::Connected { url: url.clone() })
        .await
        .is_err()
    {
        return Ok(());
    }
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    loop {
        let unreachable = |reason: String| ControlError::Unreachable {
            url: url.clone(),
            reason,
        };
        let frame = timeout(SILENCE_MAX, body.frame())
            .await
            .map_err(|_| unreachable("no word for too long".to_owned()))?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|err| unreachable(err.to_string()))?;
        if let Ok(data) = frame.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let bad = |reason: String| ControlError::BadReply {
                url: url.clone(),
                reason,
            };
            let line = std::str::from_utf8(&buffer[..=end])
                .map_err(|err| bad(err.to_string()))?
                .to_owned();
            buffer.advance(end + 1);
            let frame =
                MapFrame::from_line(&line, &credentials.coordinator_key, &credentials.node_id)
                    .map_err(|err| ControlError::Impostor {
                        url: url.clone(),
                        reason: err.to_string(),
                    })?;
            backoff.reset();
            if events
                .send(ControlEvent::Frame {
                    frame: Box::new(frame),
                    line,
                })
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        if buffer.len() > LINE_LEN_MAX {
            return Err(ControlError::BadReply {
                url,
                reason: "a line without an end".to_owned(),
            });
        }
    }
}
