//! Nodes, for operators. A node is named by its name or its id.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mesh_proto::admin::{NodeInfo, NodePatch};
use mesh_proto::control::ErrorBody;
use mesh_proto::id::NodeId;

use super::App;
use super::error::{ApiError, parse_json};
use crate::clock::unix_ms;
use crate::state::{self, Node};
use crate::store::NodeChange;

/// All nodes, by name.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "operator", responses((status = 200, body = Vec<NodeInfo>)))]
pub(crate) async fn list(State(app): State<App>) -> Json<Vec<NodeInfo>> {
    let mut nodes: Vec<_> =
        app.read(|state| state.nodes().filter_map(|node| info(state, node)).collect());
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Json(nodes)
}

/// One node.
#[utoipa::path(get, path = "/api/v1/nodes/{node}", tag = "operator", params(("node" = String, Path)), responses(
    (status = 200, body = NodeInfo),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn show(
    State(app): State<App>,
    Path(node): Path<String>,
) -> Result<Json<NodeInfo>, ApiError> {
    app.read(|state| info(state, find(state, &node)?))
        .map(Json)
        .ok_or_else(|| ApiError::not_found("node"))
}

/// Renames a node, or expires its key.
#[utoipa::path(patch, path = "/api/v1/nodes/{node}", tag = "operator", params(("node" = String, Path)),
    request_body = NodePatch, responses(
    (status = 200, body = NodeInfo),
    (status = 404, body = ErrorBody, description = "not_found"),
    (status = 409, body = ErrorBody, description = "conflict: the name is taken"),
))]
pub(crate) async fn change(
    State(app): State<App>,
    Path(node): Path<String>,
    body: Bytes,
) -> Result<Json<NodeInfo>, ApiError> {
    let patch: NodePatch = parse_json(&body)?;
    let id = find_id(&app, &node)?;
    if let Some(name) = patch.name {
        app.change_node(id, NodeChange::Name(name)).await?;
    }
    if patch.expire_now {
        app.change_node(id, NodeChange::ExpireAt(unix_ms())).await?;
    }
    show(State(app), Path(id.to_string())).await
}

/// Deletes a node. Its address is never given to another; the machine needs a new auth key to come back.
#[utoipa::path(delete, path = "/api/v1/nodes/{node}", tag = "operator", params(("node" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(node): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = find_id(&app, &node)?;
    app.delete_node(id).await?;
    tracing::info!(node = %id, "an operator deleted a node");
    Ok(StatusCode::NO_CONTENT)
}

fn find_id(app: &App, node: &str) -> Result<NodeId, ApiError> {
    app.read(|state| find(state, node).map(|node| node.record.id))
        .ok_or_else(|| ApiError::not_found("node"))
}

/// A name goes before an id that looks the same.
fn find<'a>(state: &'a state::State, node: &str) -> Option<&'a Node> {
    let by_name = node.parse().ok().and_then(|name| state.node_by_name(&name));
    by_name.or_else(|| state.node(&node.parse().ok()?))
}

fn info(state: &state::State, node: &Node) -> Option<NodeInfo> {
    let record = &node.record;
    let last_seen_ms = if node.presence.is_streaming() {
        Some(unix_ms())
    } else {
        node.presence.last_seen_ms()
    };
    Some(NodeInfo {
        id: record.id,
        name: record.name.clone(),
        user: state.user_name(record.user)?.clone(),
        tags: record.tags.clone(),
        ipv4: record.ipv4,
        ipv6: state.network().id.ipv6_of(&record.id),
        machine_key: record.machine_key,
        node_key: record.node_key,
        os: record.os.clone(),
        version: record.version.clone(),
        is_ephemeral: record.is_ephemeral,
        created_at_ms: record.created_at_ms,
        expires_at_ms: record.expires_at_ms,
        is_online: node.presence.is_online(),
        last_seen_ms,
        endpoints: record.endpoints.clone(),
        offers: mesh_proto::share::HostOffers::clone(&record.offers),
    })
}
