//! How the coordinator fares: for operators, for probes, for Prometheus.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use mesh_proto::admin::Health;

use super::App;
use super::error::ApiError;

/// How the coordinator fares, with a trial write to its store.
#[utoipa::path(get, path = "/api/v1/health", tag = "operator", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<App>) -> Json<Health> {
    let probe = app.store().probe().await;
    app.note(&probe);
    let (n_nodes, n_online) = app.read(|state| (state.n_nodes(), state.n_online()));
    Json(Health {
        status: match &probe {
            Ok(()) => "ok".to_owned(),
            Err(err) => err.to_string(),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        is_store_writable: probe.is_ok(),
        n_nodes: u64::try_from(n_nodes).unwrap_or(u64::MAX),
        n_online: u64::try_from(n_online).unwrap_or(u64::MAX),
        uptime_seconds: app.uptime().as_secs(),
    })
}

/// Whether the coordinator can let nodes in; for load balancers and probes.
#[utoipa::path(get, path = "/healthz", tag = "public", responses((status = 200, body = String), (status = 503)))]
pub(crate) async fn alive(State(app): State<App>) -> Response {
    if app.is_store_well() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        ApiError::unavailable("the store cannot be written").into_response()
    }
}

/// All metrics.
pub(crate) async fn metrics() -> Response {
    (
        [("content-type", "text/plain; version=0.0.4")],
        crate::metrics::render(),
    )
        .into_response()
}
