//! Who may use the operator's routes: the local socket's owner without a key, everybody else with an API key.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use subtle::ConstantTimeEq as _;

use super::error::ApiError;
use super::proof::source_ip;
use super::{App, Origin};
use crate::auth::secret::parse_api_key;
use crate::clock::unix_ms;

/// How often the use of an API key is written down.
const TOUCH_EVERY_MS: u64 = 60_000;

/// What of a request says who asks. Kept apart from it, as a request's body cannot be shared between threads.
struct Asker {
    origin: Option<Origin>,
    source: Option<IpAddr>,
    is_from_web_page: bool,
    api_key: Option<String>,
}

impl Asker {
    fn of(request: &Request) -> Self {
        let header = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        Self {
            origin: request.extensions().get().copied(),
            source: source_ip(request),
            // Browsers send Origin; no program that operates a coordinator does.
            is_from_web_page: request.headers().contains_key(ORIGIN),
            api_key: header
                .and_then(|value| value.strip_prefix("Bearer "))
                .map(|key| key.trim().to_owned()),
        }
    }
}

/// Lets operators through.
pub(crate) async fn operator(State(app): State<App>, request: Request, next: Next) -> Response {
    let asker = Asker::of(&request);
    match admit(&app, asker).await {
        Ok(()) => next.run(request).await,
        Err(err) => err.into_response(),
    }
}

/// Lets operators and programs on this machine through: metrics tell nothing of anybody.
pub(crate) async fn scraper(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_here = source_ip(&request).is_some_and(|source| source.to_canonical().is_loopback());
    if is_here {
        return next.run(request).await;
    }
    operator(State(app), request, next).await
}

async fn admit(app: &App, asker: Asker) -> Result<(), ApiError> {
    if asker.is_from_web_page {
        return Err(ApiError::forbidden("requests of web pages are refused"));
    }
    match asker.origin {
        Some(Origin::Local { is_operator: true }) => Ok(()),
        Some(Origin::Local { is_operator: false }) | None => Err(ApiError::forbidden(
            "only root and the coordinator's own user may use this socket; use sudo",
        )),
        Some(Origin::Remote(_)) => {
            if app.is_limited(asker.source) {
                return Err(ApiError::rate_limited(
                    "too many failed attempts from this address; wait a minute",
                ));
            }
            let key = asker.api_key.ok_or_else(ApiError::unauthorized)?;
            check_api_key(app, &key).await.inspect_err(|err| {
                if *err == ApiError::unauthorized() {
                    app.on_failure(asker.source);
                }
            })
        }
    }
}

async fn check_api_key(app: &App, key: &str) -> Result<(), ApiError> {
    let (prefix, hash) = parse_api_key(key).ok_or_else(ApiError::unauthorized)?;
    let found = app.store().find_api_key(prefix).await?;
    let (kept, info) = found.ok_or_else(ApiError::unauthorized)?;
    let now_ms = unix_ms();
    if !bool::from(kept.ct_eq(&hash)) || info.expires_at_ms <= now_ms {
        return Err(ApiError::unauthorized());
    }
    if info
        .last_used_ms
        .is_none_or(|used| used.saturating_add(TOUCH_EVERY_MS) < now_ms)
    {
        let touched = app.store().touch_api_key(prefix, now_ms).await;
        app.note(&touched);
    }
    Ok(())
}
