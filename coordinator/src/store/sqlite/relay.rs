//! Relays in SQLite.

use mesh_proto::id::NodeName;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use subtle::ConstantTimeEq as _;

use super::SqliteStore;
use super::row::{from_json, hash_from, hash_text, parse, to_i64, to_json, to_u64};
use crate::store::{JoinRefusal, NewRelayRecord, RelayAnswer, RelayRecord, StoreError};

impl SqliteStore {
    pub(crate) async fn insert_relay(
        &self,
        relay: &NewRelayRecord,
    ) -> Result<RelayRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = insert(&mut tx.connection, relay).await;
        tx.finish(result).await
    }

    pub(crate) async fn register_relay(
        &self,
        answer: &RelayAnswer,
    ) -> Result<RelayRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = register(&mut tx.connection, answer).await;
        tx.finish(result).await
    }

    pub(crate) async fn delete_relay(&self, name: &NodeName) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = sqlx::query("DELETE FROM relays WHERE name = $1")
            .bind(name.to_string())
            .execute(&mut tx.connection)
            .await
            .map_err(StoreError::from)
            .and_then(|done| match done.rows_affected() {
                1 => Ok(()),
                _ => Err(StoreError::NotFound("relay")),
            });
        tx.finish(result).await
    }

    pub(crate) async fn list_relays(&self) -> Result<Vec<RelayRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM relays ORDER BY name")
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(record).collect()
    }
}

fn record(row: &SqliteRow) -> Result<RelayRecord, StoreError> {
    Ok(RelayRecord {
        name: parse(row.try_get("name")?)?,
        machine_key: row
            .try_get::<Option<String>, _>("machine_key")?
            .as_deref()
            .map(parse)
            .transpose()?,
        urls: from_json(row.try_get("urls")?)?,
        stun: from_json(row.try_get("stun")?)?,
        created_at_ms: to_u64(row.try_get("created_at_ms")?)?,
        key_expires_at_ms: row
            .try_get::<Option<i64>, _>("key_expires_at_ms")?
            .map(to_u64)
            .transpose()?,
    })
}

async fn find(connection: &mut SqliteConnection, name: &str) -> Result<RelayRecord, StoreError> {
    let row = sqlx::query("SELECT * FROM relays WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    record(&row.ok_or(StoreError::NotFound("relay"))?)
}

async fn insert(
    connection: &mut SqliteConnection,
    relay: &NewRelayRecord,
) -> Result<RelayRecord, StoreError> {
    let name = relay.name.to_string();
    let result = sqlx::query(
        "INSERT INTO relays (name, created_at_ms, key_prefix, key_hash, key_expires_at_ms) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&name)
    .bind(to_i64(relay.created_at_ms)?)
    .bind(&relay.prefix)
    .bind(hash_text(&relay.hash))
    .bind(to_i64(relay.expires_at_ms)?)
    .execute(&mut *connection)
    .await;
    match result.map_err(StoreError::from) {
        Ok(_) => find(connection, &name).await,
        Err(StoreError::Conflict(_)) => Err(StoreError::Conflict(format!(
            "there is a relay `{name}` already; for a new key remove it first: coordinator relay remove {name}"
        ))),
        Err(err) => Err(err),
    }
}

/// A known relay tells where it is; an unknown one spends its key in the same transaction.
async fn register(
    connection: &mut SqliteConnection,
    answer: &RelayAnswer,
) -> Result<RelayRecord, StoreError> {
    let machine_key = answer.machine_key.to_string();
    let known = sqlx::query("SELECT name FROM relays WHERE machine_key = $1")
        .bind(&machine_key)
        .fetch_optional(&mut *connection)
        .await?;
    let name: String = match known {
        Some(row) => row.try_get("name")?,
        None => spend(connection, answer).await?,
    };
    sqlx::query(
        "UPDATE relays SET machine_key = $1, urls = $2, stun = $3, key_prefix = NULL, key_hash = NULL, \
         key_expires_at_ms = NULL WHERE name = $4",
    )
    .bind(&machine_key)
    .bind(to_json(&answer.urls)?)
    .bind(to_json(&answer.stun)?)
    .bind(&name)
    .execute(&mut *connection)
    .await?;
    find(connection, &name).await
}

/// The relay whose key this is.
async fn spend(
    connection: &mut SqliteConnection,
    answer: &RelayAnswer,
) -> Result<String, StoreError> {
    let refused = |why| Err(StoreError::Refused(why));
    let Some((prefix, hash)) = &answer.auth_key else {
        return refused(JoinRefusal::NotRegistered);
    };
    let row = sqlx::query("SELECT * FROM relays WHERE key_prefix = $1")
        .bind(prefix)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return refused(JoinRefusal::KeyUnknown);
    };
    let kept = hash_from(row.try_get("key_hash")?)?;
    if !bool::from(kept.ct_eq(hash)) {
        return refused(JoinRefusal::KeyUnknown);
    }
    if to_u64(row.try_get("key_expires_at_ms")?)? <= answer.now_ms {
        return refused(JoinRefusal::KeyExpired);
    }
    Ok(row.try_get("name")?)
}
