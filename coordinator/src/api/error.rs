//! The one error envelope, and which status each error has.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mesh_proto::control::{ErrorBody, code};
use serde::de::DeserializeOwned;

use crate::auth::secret::NoRandomness;
use crate::store::{JoinRefusal, StoreError};

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// What to do without a good auth key.
const MAKE_A_KEY: &str = "make a new one where the coordinator runs: coordinator key create";

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(crate) const fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        let list = match what {
            "node" => "node list",
            "user" => "user list, or make one: coordinator user create NAME",
            "API key" => "key api-list",
            "relay" => "relay list",
            _ => "key list",
        };
        let message = format!("no such {what}; list them: coordinator {list}");
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    }

    pub(crate) fn bad_proof(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code::BAD_PROOF, message)
    }

    pub(crate) fn bad_nonce() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            code::BAD_NONCE,
            "the nonce is unknown, used or too old; sign again with the one in this answer",
        )
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            code::UNAUTHORIZED,
            "an API key is needed (Authorization: Bearer pxa_…); make one where the coordinator runs: \
             coordinator key api-create",
        )
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message)
    }

    pub(crate) fn rate_limited(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code::RATE_LIMITED, message)
    }

    pub(crate) fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE, message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code::INTERNAL,
            "the coordinator has a fault; its log says more",
        )
    }

    pub(crate) fn not_registered() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            code::NOT_REGISTERED,
            "this machine is not registered (any more); join with an auth key: meshctl up --auth-key pxk_… \
             (made by: coordinator key create)",
        )
    }

    pub(crate) fn node_expired() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            code::NODE_EXPIRED,
            "this node's key expired; log in again with an auth key: meshctl up --auth-key pxk_… \
             (made by: coordinator key create)",
        )
    }
}

impl From<NoRandomness> for ApiError {
    fn from(err: NoRandomness) -> Self {
        tracing::error!(%err, "cannot draw a secret");
        Self::internal()
    }
}

impl From<StoreError> for ApiError {
    fn from(err: StoreError) -> Self {
        match err {
            StoreError::NotFound(what) => Self::not_found(what),
            StoreError::Conflict(message) => {
                Self::new(StatusCode::CONFLICT, code::CONFLICT, message)
            }
            StoreError::Refused(why) => why.into(),
            StoreError::Unavailable(_) => Self::unavailable(
                "the coordinator cannot write its state at the moment (disk full?); nothing was changed, try again",
            ),
            StoreError::Broken(why) => {
                tracing::error!(%why, "the store is broken");
                Self::internal()
            }
        }
    }
}

impl From<JoinRefusal> for ApiError {
    fn from(why: JoinRefusal) -> Self {
        let forbidden = |code, message: &str| {
            Self::new(
                StatusCode::FORBIDDEN,
                code,
                format!("{message}; {MAKE_A_KEY}"),
            )
        };
        match why {
            JoinRefusal::NotRegistered => Self::not_registered(),
            JoinRefusal::NodeExpired => Self::node_expired(),
            JoinRefusal::KeyUnknown => forbidden(
                code::AUTH_KEY_UNKNOWN,
                "this coordinator does not know this auth key",
            ),
            JoinRefusal::KeySpent => forbidden(
                code::AUTH_KEY_SPENT,
                "this auth key was for one machine and has been used",
            ),
            JoinRefusal::KeyExpired => {
                forbidden(code::AUTH_KEY_EXPIRED, "this auth key has expired")
            }
            JoinRefusal::KeyRevoked => {
                forbidden(code::AUTH_KEY_REVOKED, "this auth key was revoked")
            }
            JoinRefusal::NodeKeyTaken => Self::new(
                StatusCode::CONFLICT,
                code::CONFLICT,
                "another machine has this node key: a copied state directory? Delete the state directory of the copy",
            ),
            JoinRefusal::PoolExhausted => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code::POOL_EXHAUSTED,
                "every IPv4 address of this mesh has been given out",
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody::new(self.code, self.message))).into_response()
    }
}

/// Reads a JSON body.
pub(crate) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|err| {
        ApiError::bad_request(format!("the body is not what this route takes: {err}"))
    })
}
