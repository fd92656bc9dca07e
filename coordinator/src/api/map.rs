//! The map stream's route.

use axum::body::Body;
use axum::extract::{FromRequest as _, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use mesh_proto::control::{ErrorBody, MAP_CONTENT_TYPE};
use mesh_proto::netmap::Revision;
use serde::Deserialize;

use super::App;
use super::error::ApiError;
use super::proof::SignedByNode;

/// Where the node's map stands; absent when it has none.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Resume {
    /// The epoch of the map that the node has.
    epoch: Option<u64>,
    /// Its version.
    version: Option<u64>,
}

/// One long answer: a full map, or the changes since a revision, then deltas and heartbeats; one signed frame a line.
#[utoipa::path(get, path = "/api/v1/map", tag = "node", params(Resume), responses(
    (status = 200, content_type = "application/x-proxima-map", body = String),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
))]
pub(crate) async fn stream(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let Query(resume) = Query::<Resume>::try_from_uri(request.uri())
        .map_err(|_| ApiError::bad_request("`epoch` and `version` must be numbers"))?;
    let node = SignedByNode::from_request(request, &app).await?;
    let resume = match resume {
        Resume {
            epoch: Some(epoch),
            version: Some(version),
        } => Some(Revision { epoch, version }),
        _ => None,
    };
    let lines = app.open_stream(node.id, resume);
    let lines = stream::unfold(lines, |mut lines| async move {
        Some((lines.recv().await?, lines))
    });
    let headers = [
        (CONTENT_TYPE, MAP_CONTENT_TYPE),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}
