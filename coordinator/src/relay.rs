//! Relays of the mesh: the coordinator's own, those that stand alone, and those that nodes offer.
//!
//! What a relay does is in `mesh-relay`; here is what stands around it. `feed` and `follow` are the two ends of how a
//! relay learns its members, `alone` is `coordinator relay`, `offered` looks whether a node's relay is reached.

pub(crate) mod alone;
pub(crate) mod feed;
mod follow;
pub(crate) mod offered;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use mesh_proto::relay::{self, Denial};
use mesh_relay::{Meter, Relay};

use crate::metrics;

/// Counts in this program's metrics.
#[derive(Debug)]
pub(crate) struct Counted;

impl Meter for Counted {
    fn entered(&self) {
        metrics::relay_client_entered();
    }

    fn left(&self) {
        metrics::relay_client_left();
    }

    fn refused(&self, reason: Denial) {
        metrics::relay_refused(reason);
    }

    fn queued(&self, n_bytes: usize) {
        metrics::relay_queued(n_bytes);
    }

    fn forwarded(&self, n_datagrams: usize, n_bytes: usize) {
        metrics::relay_forwarded(n_datagrams, n_bytes);
    }

    fn forwarded_by_udp(&self, n_datagrams: usize) {
        metrics::relay_forwarded_by_udp(n_datagrams);
    }

    fn dropped(&self, reason: &'static str, n_datagrams: usize) {
        metrics::relay_dropped(reason, n_datagrams);
    }

    fn stun_answered(&self) {
        metrics::stun_answer();
    }
}

/// The relay's route.
pub(crate) fn router(relay: Arc<Relay>) -> Router {
    Router::new()
        .route(relay::PATH, get(upgrade))
        .with_state(relay)
}

async fn upgrade(State(relay): State<Arc<Relay>>, mut request: Request) -> Response {
    relay.upgrade(&mut request).map(Body::from)
}
