//! Users, for operators.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mesh_proto::admin::{UserInfo, UserSpec};
use mesh_proto::control::ErrorBody;
use mesh_proto::id::UserName;

use super::App;
use super::error::{ApiError, parse_json};
use crate::state;
use crate::store::UserRecord;

/// Makes a user.
#[utoipa::path(post, path = "/api/v1/users", tag = "operator", request_body = UserSpec, responses(
    (status = 201, body = UserInfo),
    (status = 409, body = ErrorBody, description = "conflict"),
))]
pub(crate) async fn create(
    State(app): State<App>,
    body: Bytes,
) -> Result<(StatusCode, Json<UserInfo>), ApiError> {
    let spec: UserSpec = parse_json(&body)?;
    let user = app.insert_user(spec.name).await?;
    Ok((
        StatusCode::CREATED,
        Json(app.read(|state| info(state, &user))),
    ))
}

/// All users, oldest first.
#[utoipa::path(get, path = "/api/v1/users", tag = "operator", responses((status = 200, body = Vec<UserInfo>)))]
pub(crate) async fn list(State(app): State<App>) -> Json<Vec<UserInfo>> {
    Json(app.read(|state| state.users().map(|user| info(state, user)).collect()))
}

/// Renames a user.
#[utoipa::path(patch, path = "/api/v1/users/{name}", tag = "operator", params(("name" = String, Path)),
    request_body = UserSpec, responses(
    (status = 200, body = UserInfo),
    (status = 404, body = ErrorBody, description = "not_found"),
    (status = 409, body = ErrorBody, description = "conflict"),
))]
pub(crate) async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<UserInfo>, ApiError> {
    let spec: UserSpec = parse_json(&body)?;
    let user = app.rename_user(parse_name(&name)?, spec.name).await?;
    Ok(Json(app.read(|state| info(state, &user))))
}

/// Deletes a user that owns no nodes, with its auth keys.
#[utoipa::path(delete, path = "/api/v1/users/{name}", tag = "operator", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody, description = "not_found"),
    (status = 409, body = ErrorBody, description = "conflict: it owns nodes"),
))]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.delete_user(parse_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parse_name(name: &str) -> Result<UserName, ApiError> {
    name.parse().map_err(|_| ApiError::not_found("user"))
}

fn info(state: &state::State, user: &UserRecord) -> UserInfo {
    UserInfo {
        id: user.id,
        name: user.name.clone(),
        created_at_ms: user.created_at_ms,
        n_nodes: u64::try_from(state.n_nodes_of(user.id)).unwrap_or(u64::MAX),
    }
}
