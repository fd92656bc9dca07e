//! API keys, for operators.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mesh_proto::admin::{ApiKeyInfo, CreatedApiKey, NewApiKey};
use mesh_proto::control::ErrorBody;

use super::App;
use super::error::{ApiError, parse_json};
use crate::auth::secret::new_api_key;
use crate::clock::unix_ms;

const TTL_SECONDS: u64 = 90 * 24 * 3600;
const TTL_SECONDS_MAX: u64 = 10 * 365 * 24 * 3600;

/// Makes an API key. It is told this once.
#[utoipa::path(post, path = "/api/v1/api-keys", tag = "operator", request_body = NewApiKey, responses(
    (status = 201, body = CreatedApiKey),
    (status = 400, body = ErrorBody, description = "bad_request"),
))]
pub(crate) async fn create(
    State(app): State<App>,
    body: Bytes,
) -> Result<(StatusCode, Json<CreatedApiKey>), ApiError> {
    let asked: NewApiKey = parse_json(&body)?;
    let ttl_seconds = asked.ttl_seconds.unwrap_or(TTL_SECONDS);
    if !(1..=TTL_SECONDS_MAX).contains(&ttl_seconds) {
        return Err(ApiError::bad_request(
            "`ttl_seconds` must be between 1 second and 10 years",
        ));
    }
    let secret = new_api_key()?;
    let created_at_ms = unix_ms();
    let info = ApiKeyInfo {
        prefix: secret.prefix,
        created_at_ms,
        expires_at_ms: created_at_ms.saturating_add(ttl_seconds.saturating_mul(1000)),
        last_used_ms: None,
    };
    let done = app.store().insert_api_key(&info, &secret.hash).await;
    app.note(&done);
    done?;
    Ok((
        StatusCode::CREATED,
        Json(CreatedApiKey {
            key: secret.text,
            info,
        }),
    ))
}

/// All API keys, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/api-keys", tag = "operator", responses((status = 200, body = Vec<ApiKeyInfo>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<ApiKeyInfo>>, ApiError> {
    Ok(Json(app.store().list_api_keys().await?))
}

/// Deletes an API key by its prefix.
#[utoipa::path(delete, path = "/api/v1/api-keys/{prefix}", tag = "operator", params(("prefix" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(prefix): Path<String>,
) -> Result<StatusCode, ApiError> {
    let done = app.store().delete_api_key(&prefix).await;
    app.note(&done);
    done?;
    Ok(StatusCode::NO_CONTENT)
}
