//! Auth keys, for operators.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mesh_proto::admin::{AuthKeyInfo, CreatedAuthKey, NewAuthKey};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::ErrorBody;

use super::App;
use super::error::{ApiError, parse_json};
use crate::auth::secret::random;
use crate::clock::unix_ms;
use crate::store::NewAuthKeyRecord;

const TTL_SECONDS: u64 = 3600;
const TTL_SECONDS_MAX: u64 = 10 * 365 * 24 * 3600;
const N_TAGS_MAX: usize = 32;

/// Makes an auth key. It is told this once.
#[utoipa::path(post, path = "/api/v1/auth-keys", tag = "operator", request_body = NewAuthKey, responses(
    (status = 201, body = CreatedAuthKey),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 404, body = ErrorBody, description = "not_found: the user"),
))]
pub(crate) async fn create(
    State(app): State<App>,
    body: Bytes,
) -> Result<(StatusCode, Json<CreatedAuthKey>), ApiError> {
    let asked: NewAuthKey = parse_json(&body)?;
    Ok((StatusCode::CREATED, Json(make(&app, asked).await?)))
}

/// Makes an auth key.
pub(crate) async fn make(app: &App, asked: NewAuthKey) -> Result<CreatedAuthKey, ApiError> {
    let ttl_seconds = asked.ttl_seconds.unwrap_or(TTL_SECONDS);
    if !(1..=TTL_SECONDS_MAX).contains(&ttl_seconds) {
        return Err(ApiError::bad_request(
            "`ttl_seconds` must be between 1 second and 10 years",
        ));
    }
    if asked.tags.len() > N_TAGS_MAX {
        return Err(ApiError::bad_request(format!("at most {N_TAGS_MAX} tags")));
    }
    let key = AuthKey::new(
        &app.key().public(),
        random()?,
        random()?,
        app.rules().urls.clone(),
    );
    let created_at_ms = unix_ms();
    let record = NewAuthKeyRecord {
        prefix: key.prefix().to_owned(),
        hash: key.secret_hash(),
        user: asked.user,
        is_reusable: asked.is_reusable,
        is_ephemeral: asked.is_ephemeral,
        tags: asked.tags,
        created_at_ms,
        expires_at_ms: created_at_ms.saturating_add(ttl_seconds.saturating_mul(1000)),
    };
    let info = app.store().insert_auth_key(&record).await;
    app.note(&info);
    Ok(CreatedAuthKey {
        key: key.reveal(),
        info: info?,
    })
}

/// All auth keys, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/auth-keys", tag = "operator", responses((status = 200, body = Vec<AuthKeyInfo>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<AuthKeyInfo>>, ApiError> {
    Ok(Json(app.store().list_auth_keys().await?))
}

/// Revokes an auth key by its prefix. Nodes that joined by it stay.
#[utoipa::path(delete, path = "/api/v1/auth-keys/{prefix}", tag = "operator", params(("prefix" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn revoke(
    State(app): State<App>,
    Path(prefix): Path<String>,
) -> Result<StatusCode, ApiError> {
    let done = app.store().revoke_auth_key(&prefix).await;
    app.note(&done);
    done?;
    Ok(StatusCode::NO_CONTENT)
}
