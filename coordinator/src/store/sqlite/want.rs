//! Wanted models in SQLite.

use mesh_proto::control::{N_WANTED_MAX, N_WANTS_MAX, WantedModel};
use mesh_proto::id::UserId;
use sqlx::{Row as _, SqliteConnection};

use super::SqliteStore;
use super::row::{to_i64, to_u64};
use crate::store::StoreError;

impl SqliteStore {
    pub(crate) async fn put_want(
        &self,
        user: UserId,
        model: &str,
        now_ms: u64,
        forgotten_before_ms: u64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = put(&mut tx.connection, user, model, now_ms, forgotten_before_ms).await;
        tx.finish(result).await
    }

    pub(crate) async fn delete_want(&self, user: UserId, model: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = sqlx::query("DELETE FROM wants WHERE user_id = $1 AND model = $2")
            .bind(user.0)
            .bind(model)
            .execute(&mut tx.connection)
            .await
            .map(drop)
            .map_err(StoreError::from);
        tx.finish(result).await
    }

    pub(crate) async fn list_wanted(
        &self,
        forgotten_before_ms: u64,
    ) -> Result<Vec<WantedModel>, StoreError> {
        let rows = sqlx::query(
            "SELECT model, COUNT(*) AS n_users, MAX(asked_at_ms) AS asked_at_ms FROM wants \
             WHERE asked_at_ms >= $1 GROUP BY model ORDER BY n_users DESC, asked_at_ms DESC, model LIMIT $2",
        )
        .bind(to_i64(forgotten_before_ms)?)
        .bind(i64::try_from(N_WANTED_MAX).unwrap_or(i64::MAX))
        .fetch_all(self.readers())
        .await?;
        let wanted = rows.iter().map(|row| {
            Ok(WantedModel {
                model: row.try_get("model")?,
                n_users: u32::try_from(row.try_get::<i64, _>("n_users")?).unwrap_or(u32::MAX),
                asked_at_ms: to_u64(row.try_get("asked_at_ms")?)?,
            })
        });
        wanted.collect()
    }
}

async fn put(
    connection: &mut SqliteConnection,
    user: UserId,
    model: &str,
    now_ms: u64,
    forgotten_before_ms: u64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM wants WHERE asked_at_ms < $1")
        .bind(to_i64(forgotten_before_ms)?)
        .execute(&mut *connection)
        .await?;
    let others = sqlx::query("SELECT COUNT(*) AS n FROM wants WHERE user_id = $1 AND model <> $2")
        .bind(user.0)
        .bind(model)
        .fetch_one(&mut *connection)
        .await?;
    let n_others = usize::try_from(others.try_get::<i64, _>("n")?).unwrap_or(usize::MAX);
    if n_others >= N_WANTS_MAX {
        return Err(StoreError::Conflict(format!(
            "you want {N_WANTS_MAX} models already, which is the most; take one back: meshctl models want NAME --not"
        )));
    }
    sqlx::query(
        "INSERT INTO wants (user_id, model, asked_at_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (user_id, model) DO UPDATE SET asked_at_ms = excluded.asked_at_ms",
    )
    .bind(user.0)
    .bind(model)
    .bind(to_i64(now_ms)?)
    .execute(connection)
    .await?;
    Ok(())
}
