//! The HTTP API: its table of contents.

pub(crate) mod api_keys;
pub(crate) mod auth_keys;
pub(crate) mod error;
pub(crate) mod guard;
pub(crate) mod health;
pub(crate) mod map;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod proof;
pub(crate) mod register;
pub(crate) mod relays;
pub(crate) mod users;
pub(crate) mod wants;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use mesh_proto::control::{ErrorBody, code};
use mesh_proto::request::NONCE_HEADER;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::ApiError;
use crate::coordinator::Coordinator;
use crate::metrics;

const BODY_LEN_MAX: usize = 1 << 20;
/// A request that is not answered by then never will be. Map streams answer at once and go on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// What handlers work on.
pub(crate) type App = Arc<Coordinator>;

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The admin socket; whether its peer is root or the coordinator's own user.
    Local { is_operator: bool },
    /// The network.
    Remote(SocketAddr),
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Proxima coordinator",
    description = "The control plane of a Proxima mesh. Node routes are signed by the machine key; operator routes take \
                   an API key (`Authorization: Bearer pxa_…`), or none on the local socket."
))]
struct Document;

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(node_routes())
        .merge(public_routes())
}

fn public_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(register::identity))
        .routes(routes!(health::alive))
}

fn node_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(register::register))
        .routes(routes!(map::stream))
        .routes(routes!(node::update))
        .routes(routes!(node::beat))
        .routes(routes!(node::rotate))
        .routes(routes!(node::allowed))
        .routes(routes!(node::logout))
        .routes(routes!(wants::want))
        .routes(routes!(wants::wanted))
        .routes(routes!(relays::register))
        .routes(routes!(relays::members))
}

fn operator_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth_keys::create, auth_keys::list))
        .routes(routes!(auth_keys::revoke))
        .routes(routes!(users::create, users::list))
        .routes(routes!(users::rename, users::delete))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::change, nodes::delete))
        .routes(routes!(relays::create, relays::list))
        .routes(routes!(relays::delete))
        .routes(routes!(api_keys::create, api_keys::list))
        .routes(routes!(api_keys::delete))
        .routes(routes!(health::health))
}

/// The OpenAPI document, as served.
#[must_use]
pub fn openapi() -> String {
    let (_, document) = routes().merge(operator_routes()).split_for_parts();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The whole API.
pub(crate) fn router(app: App) -> Router {
    let guarded = operator_routes().route_layer(middleware::from_fn_with_state(
        Arc::clone(&app),
        guard::operator,
    ));
    let (router, _) = routes().merge(guarded).split_for_parts();
    let scrape = get(health::metrics).route_layer(middleware::from_fn_with_state(
        Arc::clone(&app),
        guard::scraper,
    ));
    router
        .route("/metrics", scrape)
        .route("/api/v1/openapi.json", get(document))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// A deadline, a fresh nonce and a count for every answer.
async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(ANSWER_DEADLINE, next.run(request)).await;
    let mut answer = answer
        .unwrap_or_else(|_| ApiError::unavailable("the request took too long").into_response());
    let nonce = app.nonces.issue(std::time::Instant::now());
    if let Some(nonce) = nonce
        .ok()
        .and_then(|nonce| HeaderValue::try_from(nonce).ok())
    {
        answer.headers_mut().insert(NONCE_HEADER, nonce);
    }
    metrics::request(answer.status().as_u16());
    answer
}

async fn document() -> Response {
    ([("content-type", "application/json")], openapi()).into_response()
}

async fn no_route() -> Response {
    let body = ErrorBody::new(
        code::NOT_FOUND,
        "there is no such route; see /api/v1/openapi.json",
    );
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

async fn wrong_method() -> Response {
    let body = ErrorBody::new(
        code::BAD_REQUEST,
        "the route does not take this method; see /api/v1/openapi.json",
    );
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}
