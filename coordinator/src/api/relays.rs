//! Relays that stand alone: operators add them, they come by their key and hear whom they serve.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use mesh_proto::admin::{CreatedRelay, NewRelay, RelayInfo};
use mesh_proto::auth_key::{AuthKey, parse_secret_text};
use mesh_proto::control::{ErrorBody, code};
use mesh_proto::id::{NodeName, RelayId};
use mesh_proto::relay::{
    MEMBERS_CONTENT_TYPE, N_RELAY_URLS_MAX, N_RELAYS_MAX, RelayEntry, RelayOffer, RelayRegistered,
    RelayRegistration,
};

use super::App;
use super::error::{ApiError, parse_json};
use super::proof::{Signed, SignedByNode, source_ip};
use crate::auth::secret::random;
use crate::clock::unix_ms;
use crate::config::host_of;
use crate::relay::offered::reach;
use crate::state::relay_entry;
use crate::store::{JoinRefusal, NewRelayRecord, RelayAnswer, RelayRecord, StoreError};

const TTL_SECONDS: u64 = 3600;
const TTL_SECONDS_MAX: u64 = 366 * 24 * 3600;
const N_STUN_MAX: usize = 16;

/// Lets a relay come: makes the key for it, which is told this once.
#[utoipa::path(post, path = "/api/v1/relays", tag = "operator", request_body = NewRelay, responses(
    (status = 201, body = CreatedRelay),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 409, body = ErrorBody, description = "conflict"),
))]
pub(crate) async fn create(
    State(app): State<App>,
    body: Bytes,
) -> Result<(StatusCode, Json<CreatedRelay>), ApiError> {
    let asked: NewRelay = parse_json(&body)?;
    let ttl_seconds = asked.ttl_seconds.unwrap_or(TTL_SECONDS);
    if !(1..=TTL_SECONDS_MAX).contains(&ttl_seconds) {
        return Err(ApiError::bad_request(
            "`ttl_seconds` must be between 1 second and a year",
        ));
    }
    let key = AuthKey::new(
        &app.key().public(),
        random()?,
        random()?,
        app.rules().urls.clone(),
    );
    let created_at_ms = unix_ms();
    let record = NewRelayRecord {
        name: asked.name,
        prefix: key.prefix().to_owned(),
        hash: key.secret_hash(),
        created_at_ms,
        expires_at_ms: created_at_ms.saturating_add(ttl_seconds.saturating_mul(1000)),
    };
    let relay = app.insert_relay(record).await?;
    let created = CreatedRelay {
        key: key.reveal(),
        info: info(&relay),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// All relays that stand alone.
#[utoipa::path(get, path = "/api/v1/relays", tag = "operator", responses((status = 200, body = Vec<RelayInfo>)))]
pub(crate) async fn list(State(app): State<App>) -> Json<Vec<RelayInfo>> {
    Json(app.read(|state| state.relays().map(info).collect()))
}

/// Removes a relay: nodes use it no more, and it serves nobody.
#[utoipa::path(delete, path = "/api/v1/relays/{name}", tag = "operator", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name: NodeName = name.parse().map_err(|_| ApiError::not_found("relay"))?;
    app.delete_relay(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A relay comes by its key, or tells where it is now. Signed by its machine key.
#[utoipa::path(post, path = "/api/v1/relay/register", tag = "relay", request_body = RelayRegistration, responses(
    (status = 200, body = RelayRegistered),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "auth_key_*, not_registered"),
    (status = 429, body = ErrorBody, description = "rate_limited"),
))]
pub(crate) async fn register(
    State(app): State<App>,
    request: Request,
) -> Result<Json<RelayRegistered>, ApiError> {
    let source = source_ip(&request);
    if app.is_limited(source) {
        return Err(ApiError::rate_limited(
            "too many failed attempts from this address; wait a minute and check the key",
        ));
    }
    let signed = Signed::from_request(request, &app).await?;
    let asked: RelayRegistration = signed.json()?;
    let is_reached = (1..=N_RELAY_URLS_MAX).contains(&asked.urls.len())
        && asked
            .urls
            .iter()
            .all(|url| url.len() <= 255 && host_of(url).is_some());
    if !is_reached || asked.stun.len() > N_STUN_MAX {
        return Err(ApiError::bad_request(format!(
            "1 to {N_RELAY_URLS_MAX} `urls` of the form https://HOST:PORT, and at most {N_STUN_MAX} `stun`"
        )));
    }
    let auth_key = asked
        .auth_secret
        .as_deref()
        .map(parse_secret_text)
        .transpose()
        .map_err(|err| {
            let text = err.to_string();
            ApiError::new(StatusCode::FORBIDDEN, code::AUTH_KEY_UNKNOWN, text)
        })?;
    let answer = RelayAnswer {
        machine_key: signed.machine_key,
        urls: asked.urls,
        stun: asked.stun,
        auth_key,
        now_ms: unix_ms(),
    };
    let result = app.register_relay(answer).await;
    if let Err(StoreError::Refused(JoinRefusal::KeyUnknown)) = result {
        app.on_failure(source);
    }
    let relay = result.map_err(refused)?;
    let id = relay_entry(&relay).ok_or_else(ApiError::internal)?.id;
    tracing::info!(relay = %id, name = %relay.name, urls = relay.urls.join(" "), "a relay tells where it is");
    Ok(Json(RelayRegistered {
        id,
        name: relay.name,
        network_id: app.read(|state| state.network().id),
        coordinator_key: app.key().public(),
    }))
}

/// Whom the relay serves: one long answer of signed lines. Signed by its machine key. A node offers a relay of its own by
/// asking for it with `port` and `pin`; the coordinator then comes to that port of the address that asks, and the map names
/// the relay until the answer is over.
#[utoipa::path(get, path = "/api/v1/relay/members", tag = "relay", params(
    ("port" = Option<u16>, Query, description = "where the node's relay speaks HTTPS, and by UDP"),
    ("pin" = Option<String>, Query, description = "the hash of the key that vouches for its certificate"),
), responses(
    (status = 200, content_type = "application/x-proxima-members", body = String),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
    (status = 409, body = ErrorBody, description = "relay_unreachable; conflict: the map has room for no more relays"),
))]
pub(crate) async fn members(
    State(app): State<App>,
    request: Request,
) -> Result<Response, ApiError> {
    let lines = if request.uri().query().is_some() {
        let Query(offer) = Query::<RelayOffer>::try_from_uri(request.uri())
            .map_err(|err| ApiError::bad_request(err.to_string()))?;
        let source = source_ip(&request);
        let node = SignedByNode::from_request(request, &app).await?;
        let relay = offered(&app, &node, source, offer).await?;
        tracing::info!(node = %node.id, relay = %relay.id, urls = relay.urls.join(" "), "a node offers a relay");
        app.open_offer(node.machine_key, relay)
    } else {
        let signed = Signed::from_request(request, &app).await?;
        if !app.read(|state| state.is_relay(&signed.machine_key)) {
            return Err(unknown_relay());
        }
        app.open_members(signed.machine_key)
    };
    let lines = stream::unfold(lines, |mut lines| async move {
        Some((lines.recv().await?, lines))
    });
    let headers = [
        (CONTENT_TYPE, MEMBERS_CONTENT_TYPE),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// The relay that a node offers, as the map is to name it, once the coordinator has come to it. It comes nowhere but to
/// who asks.
async fn offered(
    app: &App,
    node: &SignedByNode,
    source: Option<IpAddr>,
    offer: RelayOffer,
) -> Result<RelayEntry, ApiError> {
    let source = source.map(|source| source.to_canonical());
    let Some(ip) = source.filter(|source| !source.is_loopback()) else {
        let text = "a relay is offered from where other nodes reach it, not from the coordinator's own machine";
        return Err(unreachable(text.to_owned()));
    };
    let (n_others, name) = app.read(|state| {
        let name = state
            .node(&node.id)
            .map(|node| node.record.name.to_string());
        (state.n_other_relays(&node.id), name)
    });
    if n_others >= N_RELAYS_MAX {
        let text = format!("the mesh has {n_others} relays, and nodes look at no more");
        return Err(ApiError::new(StatusCode::CONFLICT, code::CONFLICT, text));
    }
    let at = SocketAddr::new(ip, offer.port);
    reach(ip, offer.port, offer.pin).await.map_err(|reason| {
        unreachable(format!(
            "the coordinator does not reach it at {at} ({reason})"
        ))
    })?;
    let url = format!("https://{at}");
    Ok(RelayEntry {
        id: RelayId::of(offer.pin.as_bytes(), &url),
        name: name.unwrap_or_default(),
        urls: vec![url],
        pin: offer.pin,
        udp: vec![],
        stun: vec![at],
    })
}

fn unreachable(text: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code::RELAY_UNREACHABLE, text)
}

fn info(relay: &RelayRecord) -> RelayInfo {
    RelayInfo {
        name: relay.name.clone(),
        id: relay_entry(relay).map(|entry| entry.id),
        machine_key: relay.machine_key,
        urls: relay.urls.clone(),
        created_at_ms: relay.created_at_ms,
        key_expires_at_ms: relay.key_expires_at_ms,
    }
}

fn refused(err: StoreError) -> ApiError {
    if matches!(err, StoreError::Refused(JoinRefusal::NotRegistered)) {
        return unknown_relay();
    }
    ApiError::from(err)
}

fn unknown_relay() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        code::NOT_REGISTERED,
        "this relay is not of the mesh (any more); let it in where the coordinator runs: coordinator relay add NAME",
    )
}
