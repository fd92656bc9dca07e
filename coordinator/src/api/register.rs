//! Joining: who this coordinator is, and letting machines in.

use axum::Json;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::StatusCode;
use mesh_proto::PROTOCOL_VERSION;
use mesh_proto::auth_key::parse_secret_text;
use mesh_proto::control::{self, ErrorBody, Identity, RegisterRequest, RegisterResponse, code};

use super::App;
use super::error::ApiError;
use super::proof::{Signed, source_ip};
use crate::clock::unix_ms;
use crate::metrics;
use crate::store::{JoinRefusal, NodeRecord, Registration, StoreError};

const HOSTNAME_LEN_MAX: usize = 255;
const WORD_LEN_MAX: usize = 64;

/// Who this coordinator is; the answer's `proxima-nonce` header is good for a first signed request.
#[utoipa::path(get, path = "/api/v1/identity", tag = "node", responses((status = 200, body = Identity)))]
pub(crate) async fn identity(State(app): State<App>) -> Json<Identity> {
    Json(Identity {
        coordinator_key: app.key().public(),
        network_id: app.read(|state| state.network().id),
        protocol_version: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Lets a machine in, or back in. Signed by its machine key. Asking twice gives the same node.
#[utoipa::path(post, path = "/api/v1/register", tag = "node", request_body = RegisterRequest, responses(
    (status = 200, body = RegisterResponse),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "auth_key_*, not_registered, node_expired"),
    (status = 429, body = ErrorBody, description = "rate_limited"),
    (status = 503, body = ErrorBody, description = "unavailable, pool_exhausted"),
))]
pub(crate) async fn register(
    State(app): State<App>,
    request: Request,
) -> Result<Json<RegisterResponse>, ApiError> {
    let source = source_ip(&request);
    let signed = Signed::from_request(request, &app).await?;
    let asked = parse(&app, &signed)?;
    let result = app.register(asked).await;
    if let Err(StoreError::Refused(
        JoinRefusal::KeyUnknown
        | JoinRefusal::KeySpent
        | JoinRefusal::KeyExpired
        | JoinRefusal::KeyRevoked,
    )) = result
    {
        app.on_failure(source);
    }
    match result {
        Ok(record) => {
            metrics::registration("ok");
            tracing::info!(node = %record.id, name = %record.name, "registered a node");
            answer(&app, record).map(Json)
        }
        Err(err) => {
            let err = ApiError::from(err);
            metrics::registration(err.code());
            tracing::info!(code = err.code(), "refused a registration");
            Err(err)
        }
    }
}

fn parse(app: &App, signed: &Signed) -> Result<Registration, ApiError> {
    let asked: RegisterRequest = signed.json()?;
    if asked.hostname.len() > HOSTNAME_LEN_MAX
        || asked.os.len() > WORD_LEN_MAX
        || asked.version.len() > WORD_LEN_MAX
    {
        return Err(ApiError::bad_request(
            "`hostname`, `os` or `version` is too long",
        ));
    }
    control::verify_node_key(
        &signed.machine_key,
        &asked.node_key,
        &asked.node_key_signature,
    )
    .map_err(|_| ApiError::bad_proof("the machine key did not sign this node key"))?;
    let auth_key = asked
        .auth_secret
        .as_deref()
        .map(parse_secret_text)
        .transpose()
        .map_err(|err| {
            ApiError::new(
                StatusCode::FORBIDDEN,
                code::AUTH_KEY_UNKNOWN,
                err.to_string(),
            )
        })?;
    let now_ms = unix_ms();
    Ok(Registration {
        machine_key: signed.machine_key,
        node_key: asked.node_key,
        node_key_signature: asked.node_key_signature,
        hostname: asked.hostname,
        os: asked.os,
        version: asked.version,
        auth_key,
        now_ms,
        expires_at_ms: app.expiry(now_ms),
    })
}

fn answer(app: &App, record: NodeRecord) -> Result<RegisterResponse, ApiError> {
    let (network_id, user_name) =
        app.read(|state| (state.network().id, state.user_name(record.user).cloned()));
    Ok(RegisterResponse {
        node_id: record.id,
        name: record.name,
        user: record.user,
        user_name: user_name.ok_or_else(ApiError::internal)?,
        tags: record.tags,
        network_id,
        coordinator_key: app.key().public(),
    })
}
