//! Tells the coordinator what changes at this node, and that a sharing host lives.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::control::{BEAT_MS, Beat, Candidate, NodeUpdate, PATH_BEAT, PATH_UPDATE};
use mesh_proto::id::RelayId;
use mesh_proto::key::DiscoKey;
use mesh_proto::share::HostOffers;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, random};
use super::{ControlError, Link, RevisionReceiver};

/// A beat that takes longer comes too late: the coordinator gives a silent host three seconds.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the coordinator should know of this node. A new value replaces the one before it, so nothing queues up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Rises with each new stream: a coordinator that has just started must be told everything.
    pub n_streams: u64,
    /// Whether the stream is up; nothing is sent otherwise.
    pub is_connected: bool,
    /// Where the node may be reached, best first.
    pub candidates: Vec<Candidate>,
    /// What peers seal path discovery to.
    pub disco_key: Option<DiscoKey>,
    /// The relay that it listens on.
    pub home_relay: Option<RelayId>,
    /// What it shares.
    pub offers: Arc<HostOffers>,
}

/// Runs until cancelled.
pub async fn run(
    mut link: Link,
    mut report: watch::Receiver<Report>,
    revision: RevisionReceiver,
    cancel: CancellationToken,
) {
    let mut told: Option<Report> = None;
    let mut n_streams = 0;
    let mut backoff = Backoff::default();
    let mut beat = tokio::time::interval(Duration::from_millis(BEAT_MS));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let current = report.borrow_and_update().clone();
        if current.n_streams != n_streams {
            // The stream was dialled anew: this connection may lead by a network that is gone.
            link.disconnect();
            n_streams = current.n_streams;
        }
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            () = newer_stream(&report, n_streams) => continue,
            outcome = tell(&mut link, told.as_ref(), &current) => outcome,
        };
        match outcome {
            Ok(()) => {
                backoff.reset();
                told = current.is_connected.then(|| current.clone());
            }
            Err(err) => {
                tracing::debug!(%err, "cannot tell the coordinator");
                link.disconnect();
                told = None;
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(backoff.next(random())) => continue,
                }
            }
        }
        let beats = current.is_connected && !current.offers.models.is_empty();
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = report.changed() => if changed.is_err() { return },
            _ = beat.tick(), if beats => {
                let beat = Beat { revision: revision.borrow().unwrap_or_default() };
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = newer_stream(&report, n_streams) => {}
                    outcome = timeout(BEAT_TIMEOUT, link.post(PATH_BEAT, &beat)) => match outcome {
                        Ok(Ok(())) => {}
                        Ok(Err(err)) => {
                            tracing::debug!(%err, "beat failed");
                            told = None;
                        }
                        Err(_) => {
                            tracing::debug!("a beat was not answered in time");
                            link.disconnect();
                        }
                    },
                }
            }
        }
    }
}

/// Ends when the map stream was dialled again.
async fn newer_stream(report: &watch::Receiver<Report>, n_streams: u64) {
    let mut report = report.clone();
    let newer = report.wait_for(|report| report.n_streams != n_streams);
    if newer.await.is_err() {
        // The session ends; its cancellation comes by another way.
        std::future::pending::<()>().await;
    }
}

/// Sends what differs from what was told.
async fn tell(
    link: &mut Link,
    told: Option<&Report>,
    current: &Report,
) -> Result<(), ControlError> {
    if !current.is_connected {
        return Ok(());
    }
    let told = told.filter(|told| told.n_streams == current.n_streams);
    let update = NodeUpdate {
        candidates: (told.map(|told| &told.candidates) != Some(&current.candidates))
            .then(|| current.candidates.clone()),
        disco_key: current
            .disco_key
            .filter(|key| told.and_then(|told| told.disco_key) != Some(*key)),
        home_relay: current
            .home_relay
            .filter(|relay| told.and_then(|told| told.home_relay) != Some(*relay)),
        offers: (told.map(|told| &told.offers) != Some(&current.offers))
            .then(|| (*current.offers).clone()),
        ..NodeUpdate::default()
    };
    if update == NodeUpdate::default() {
        return Ok(());
    }
    link.post(PATH_UPDATE, &update).await
}
