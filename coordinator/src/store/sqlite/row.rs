//! Rows of the database as values of the domain.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use mesh_proto::admin::{ApiKeyInfo, AuthKeyInfo};
use mesh_proto::id::UserId;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::store::{NodeRecord, StoreError, UserRecord};

pub(super) fn broken(why: impl Display) -> StoreError {
    StoreError::Broken(why.to_string())
}

pub(super) fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(broken)
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(broken)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(broken)
}

pub(super) fn to_u64(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(broken)
}

pub(super) fn to_i64(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value)
        .map_err(|_| StoreError::Conflict("the number is too large to keep".to_owned()))
}

pub(super) fn hash_from(text: &str) -> Result<[u8; 32], StoreError> {
    let bytes = data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .map_err(broken)?;
    bytes
        .try_into()
        .map_err(|_| broken("a hash of another length"))
}

pub(super) fn hash_text(hash: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(hash)
}

fn time(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    to_u64(row.try_get(column)?)
}

fn time_opt(row: &SqliteRow, column: &str) -> Result<Option<u64>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?
        .map(to_u64)
        .transpose()
}

fn flag(row: &SqliteRow, column: &str) -> Result<bool, StoreError> {
    Ok(row.try_get::<i64, _>(column)? != 0)
}

pub(super) fn node(row: &SqliteRow) -> Result<NodeRecord, StoreError> {
    Ok(NodeRecord {
        id: parse(row.try_get("id")?)?,
        name: parse(row.try_get("name")?)?,
        user: UserId(row.try_get("user_id")?),
        tags: from_json(row.try_get("tags")?)?,
        machine_key: parse(row.try_get("machine_key")?)?,
        node_key: parse(row.try_get("node_key")?)?,
        node_key_signature: parse(row.try_get("node_key_signature")?)?,
        ipv4: parse(row.try_get("ipv4")?)?,
        os: row.try_get("os")?,
        version: row.try_get("version")?,
        is_ephemeral: flag(row, "is_ephemeral")?,
        created_at_ms: time(row, "created_at_ms")?,
        expires_at_ms: time_opt(row, "expires_at_ms")?,
        last_seen_ms: time_opt(row, "last_seen_ms")?,
        was_online: flag(row, "was_online")?,
        endpoints: from_json(row.try_get("endpoints")?)?,
        offers: Arc::new(from_json(row.try_get("offers")?)?),
    })
}

pub(super) fn user(row: &SqliteRow) -> Result<UserRecord, StoreError> {
    Ok(UserRecord {
        id: UserId(row.try_get("id")?),
        name: parse(row.try_get("name")?)?,
        created_at_ms: time(row, "created_at_ms")?,
    })
}

pub(super) fn auth_key(row: &SqliteRow) -> Result<AuthKeyInfo, StoreError> {
    Ok(AuthKeyInfo {
        prefix: row.try_get("prefix")?,
        user: parse(row.try_get("user_name")?)?,
        is_reusable: flag(row, "is_reusable")?,
        is_ephemeral: flag(row, "is_ephemeral")?,
        tags: from_json(row.try_get("tags")?)?,
        n_uses: time(row, "n_uses")?,
        created_at_ms: time(row, "created_at_ms")?,
        expires_at_ms: time(row, "expires_at_ms")?,
        is_revoked: flag(row, "is_revoked")?,
    })
}

pub(super) fn api_key(row: &SqliteRow) -> Result<ApiKeyInfo, StoreError> {
    Ok(ApiKeyInfo {
        prefix: row.try_get("prefix")?,
        created_at_ms: time(row, "created_at_ms")?,
        expires_at_ms: time(row, "expires_at_ms")?,
        last_used_ms: time_opt(row, "last_used_ms")?,
    })
}
