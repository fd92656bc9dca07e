//! Nodes in SQLite: letting machines in, changing and deleting nodes.

use std::collections::BTreeSet;

use mesh_proto::id::{NodeId, NodeName, Tag, UserId};
use sqlx::{Row as _, SqliteConnection};
use subtle::ConstantTimeEq as _;

use super::SqliteStore;
use super::row::{self, from_json, hash_from, parse, to_i64, to_json};
use crate::ipam;
use crate::store::{JoinRefusal, NodeChange, NodeRecord, PresenceRecord, Registration, StoreError};

/// What an auth key makes of a machine.
struct Grant {
    user: UserId,
    tags: Vec<Tag>,
    is_ephemeral: bool,
}

const fn refused(why: JoinRefusal) -> StoreError {
    StoreError::Refused(why)
}

impl SqliteStore {
    pub(crate) async fn register(
        &self,
        registration: &Registration,
    ) -> Result<NodeRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = register(&mut tx.connection, registration).await;
        tx.finish(result).await
    }

    pub(crate) async fn change_node(
        &self,
        id: NodeId,
        change: &NodeChange,
    ) -> Result<NodeRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = change_node(&mut tx.connection, id, change).await;
        tx.finish(result).await
    }

    pub(crate) async fn delete_node(&self, id: NodeId) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = sqlx::query("DELETE FROM nodes WHERE id = $1")
            .bind(id.to_string())
            .execute(&mut tx.connection)
            .await
            .map_err(StoreError::from)
            .and_then(|done| {
                if done.rows_affected() == 1 {
                    Ok(())
                } else {
                    Err(StoreError::NotFound("node"))
                }
            });
        tx.finish(result).await
    }

    pub(crate) async fn list_nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM nodes ORDER BY created_at_ms, id")
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(row::node).collect()
    }

    pub(crate) async fn keep_presence(&self, records: &[PresenceRecord]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        let result = keep_presence(&mut tx.connection, records).await;
        tx.finish(result).await
    }
}

async fn register(
    connection: &mut SqliteConnection,
    asked: &Registration,
) -> Result<NodeRecord, StoreError> {
    let id = NodeId::of(&asked.machine_key);
    let taken = sqlx::query("SELECT id FROM nodes WHERE node_key = $1 AND id <> $2")
        .bind(asked.node_key.to_string())
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    if taken.is_some() {
        return Err(refused(JoinRefusal::NodeKeyTaken));
    }
    match find(connection, id).await? {
        Some(known) if !known.is_expired(asked.now_ms) => {
            take_back(connection, asked, &known).await?
        }
        Some(_) => {
            let grant = spend(connection, asked, JoinRefusal::NodeExpired).await?;
            renew(connection, asked, id, &grant).await?;
        }
        None => {
            let grant = spend(connection, asked, JoinRefusal::NotRegistered).await?;
            insert(connection, asked, id, &grant).await?;
        }
    }
    find(connection, id)
        .await?
        .ok_or(StoreError::NotFound("node"))
}

/// A node that is in needs no auth key: it may be one whose first answer was lost, or one with a new node key.
async fn take_back(
    connection: &mut SqliteConnection,
    asked: &Registration,
    known: &NodeRecord,
) -> Result<(), StoreError> {
    if known.node_key == asked.node_key && known.os == asked.os && known.version == asked.version {
        return Ok(());
    }
    sqlx::query("UPDATE nodes SET node_key = $1, node_key_signature = $2, os = $3, version = $4 WHERE id = $5")
        .bind(asked.node_key.to_string())
        .bind(asked.node_key_signature.to_string())
        .bind(&asked.os)
        .bind(&asked.version)
        .bind(known.id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

async fn renew(
    connection: &mut SqliteConnection,
    asked: &Registration,
    id: NodeId,
    grant: &Grant,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE nodes SET node_key = $1, node_key_signature = $2, os = $3, version = $4, user_id = $5, tags = $6, \
         is_ephemeral = $7, expires_at_ms = $8 WHERE id = $9",
    )
    .bind(asked.node_key.to_string())
    .bind(asked.node_key_signature.to_string())
    .bind(&asked.os)
    .bind(&asked.version)
    .bind(grant.user.0)
    .bind(to_json(&grant.tags)?)
    .bind(i64::from(grant.is_ephemeral))
    .bind(expiry(asked, grant)?)
    .bind(id.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert(
    connection: &mut SqliteConnection,
    asked: &Registration,
    id: NodeId,
    grant: &Grant,
) -> Result<(), StoreError> {
    let mesh = sqlx::query("SELECT ipv4_pool, ipv4_next FROM mesh WHERE id = 1")
        .fetch_one(&mut *connection)
        .await?;
    let next = u32::try_from(mesh.try_get::<i64, _>("ipv4_next")?).map_err(row::broken)?;
    let pool = parse(mesh.try_get("ipv4_pool")?)?;
    let (ipv4, next) = ipam::allocate(pool, next).ok_or(refused(JoinRefusal::PoolExhausted))?;
    sqlx::query("UPDATE mesh SET ipv4_next = $1 WHERE id = 1")
        .bind(i64::from(next))
        .execute(&mut *connection)
        .await?;
    let name = free_name(connection, &NodeName::from_hostname(&asked.hostname)).await?;
    sqlx::query(
        "INSERT INTO nodes (id, machine_key, node_key, node_key_signature, name, user_id, tags, ipv4, os, version, \
         is_ephemeral, created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(id.to_string())
    .bind(asked.machine_key.to_string())
    .bind(asked.node_key.to_string())
    .bind(asked.node_key_signature.to_string())
    .bind(name.to_string())
    .bind(grant.user.0)
    .bind(to_json(&grant.tags)?)
    .bind(ipv4.to_string())
    .bind(&asked.os)
    .bind(&asked.version)
    .bind(i64::from(grant.is_ephemeral))
    .bind(to_i64(asked.now_ms)?)
    .bind(expiry(asked, grant)?)
    .execute(connection)
    .await?;
    Ok(())
}

fn expiry(asked: &Registration, grant: &Grant) -> Result<Option<i64>, StoreError> {
    let expires_at_ms = asked.expires_at_ms.filter(|_| grant.tags.is_empty());
    expires_at_ms.map(to_i64).transpose()
}

/// Uses the auth key up: checked and counted in the transaction that lets the machine in.
async fn spend(
    connection: &mut SqliteConnection,
    asked: &Registration,
    without: JoinRefusal,
) -> Result<Grant, StoreError> {
    let (prefix, hash) = asked.auth_key.as_ref().ok_or_else(|| refused(without))?;
    let row = sqlx::query("SELECT * FROM auth_keys WHERE prefix = $1")
        .bind(prefix)
        .fetch_optional(&mut *connection)
        .await?;
    let row = row.ok_or(refused(JoinRefusal::KeyUnknown))?;
    let kept = hash_from(row.try_get("hash")?)?;
    if !bool::from(kept.ct_eq(hash)) {
        return Err(refused(JoinRefusal::KeyUnknown));
    }
    let spent = sqlx::query(
        "UPDATE auth_keys SET n_uses = n_uses + 1 \
         WHERE prefix = $1 AND is_revoked = 0 AND expires_at_ms > $2 AND (is_reusable = 1 OR n_uses = 0)",
    )
    .bind(prefix)
    .bind(to_i64(asked.now_ms)?)
    .execute(&mut *connection)
    .await?;
    if spent.rows_affected() != 1 {
        let is_spent =
            row.try_get::<i64, _>("is_reusable")? == 0 && row.try_get::<i64, _>("n_uses")? > 0;
        let why = match (row.try_get::<i64, _>("is_revoked")?, is_spent) {
            (0, true) => JoinRefusal::KeySpent,
            (0, false) => JoinRefusal::KeyExpired,
            _ => JoinRefusal::KeyRevoked,
        };
        return Err(refused(why));
    }
    Ok(Grant {
        user: UserId(row.try_get("user_id")?),
        tags: from_json(row.try_get("tags")?)?,
        is_ephemeral: row.try_get::<i64, _>("is_ephemeral")? != 0,
    })
}

async fn free_name(
    connection: &mut SqliteConnection,
    wanted: &NodeName,
) -> Result<NodeName, StoreError> {
    let rows = sqlx::query("SELECT name FROM nodes WHERE name = $1 OR name LIKE $2")
        .bind(wanted.to_string())
        .bind(format!("{wanted}-%"))
        .fetch_all(connection)
        .await?;
    let taken: BTreeSet<String> = rows
        .iter()
        .map(|row| row.try_get("name"))
        .collect::<Result<_, _>>()?;
    let names = std::iter::once(wanted.clone()).chain((2..).map(|n| wanted.numbered(n)));
    names
        .into_iter()
        .find(|name| !taken.contains(name.as_str()))
        .ok_or_else(|| StoreError::Conflict("no name is left for this node".to_owned()))
}

async fn find(
    connection: &mut SqliteConnection,
    id: NodeId,
) -> Result<Option<NodeRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM nodes WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(row::node).transpose()
}

async fn change_node(
    connection: &mut SqliteConnection,
    id: NodeId,
    change: &NodeChange,
) -> Result<NodeRecord, StoreError> {
    let key = id.to_string();
    let update = match change {
        NodeChange::Name(name) => {
            sqlx::query("UPDATE nodes SET name = $1 WHERE id = $2").bind(name.to_string()).bind(key)
        }
        NodeChange::ExpireAt(at_ms) => {
            sqlx::query("UPDATE nodes SET expires_at_ms = $1 WHERE id = $2").bind(to_i64(*at_ms)?).bind(key)
        }
        NodeChange::Key { node_key, signature } => {
            sqlx::query("UPDATE nodes SET node_key = $1, node_key_signature = $2 WHERE id = $3")
                .bind(node_key.to_string())
                .bind(signature.to_string())
                .bind(key)
        }
        NodeChange::Told { endpoints, offers } => sqlx::query(
            "UPDATE nodes SET endpoints = COALESCE($1, endpoints), offers = COALESCE($2, offers) WHERE id = $3",
        )
        .bind(endpoints.as_ref().map(to_json).transpose()?)
        .bind(offers.as_deref().map(to_json).transpose()?)
        .bind(key),
    };
    match update
        .execute(&mut *connection)
        .await
        .map_err(StoreError::from)
    {
        Ok(done) if done.rows_affected() == 1 => {}
        Ok(_) => return Err(StoreError::NotFound("node")),
        Err(StoreError::Conflict(_)) => {
            let why = match change {
                NodeChange::Name(name) => {
                    format!("another node is named `{name}` already; choose another name")
                }
                NodeChange::Key { .. } => "another node has this node key already".to_owned(),
                NodeChange::ExpireAt(_) | NodeChange::Told { .. } => {
                    "the change clashes with another".to_owned()
                }
            };
            return Err(StoreError::Conflict(why));
        }
        Err(err) => return Err(err),
    }
    find(connection, id)
        .await?
        .ok_or(StoreError::NotFound("node"))
}

async fn keep_presence(
    connection: &mut SqliteConnection,
    records: &[PresenceRecord],
) -> Result<(), StoreError> {
    for record in records {
        sqlx::query("UPDATE nodes SET last_seen_ms = $1, was_online = $2 WHERE id = $3")
            .bind(record.last_seen_ms.map(to_i64).transpose()?)
            .bind(i64::from(record.was_online))
            .bind(record.id.to_string())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
