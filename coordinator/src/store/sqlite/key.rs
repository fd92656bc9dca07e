//! Users, auth keys and API keys in SQLite.

use mesh_proto::admin::{ApiKeyInfo, AuthKeyInfo};
use mesh_proto::id::{UserId, UserName};
use sqlx::{Row as _, SqliteConnection};

use super::SqliteStore;
use super::row::{self, hash_from, hash_text, to_i64, to_json};
use crate::store::{NewAuthKeyRecord, StoreError, UserRecord};

impl SqliteStore {
    pub(crate) async fn insert_user(
        &self,
        name: &UserName,
        now_ms: u64,
    ) -> Result<UserRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = insert_user(&mut tx.connection, name, now_ms).await;
        tx.finish(result).await
    }

    pub(crate) async fn rename_user(
        &self,
        name: &UserName,
        new_name: &UserName,
    ) -> Result<UserRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = rename_user(&mut tx.connection, name, new_name).await;
        tx.finish(result).await
    }

    pub(crate) async fn delete_user(&self, name: &UserName) -> Result<UserId, StoreError> {
        let mut tx = self.begin().await?;
        let result = delete_user(&mut tx.connection, name).await;
        tx.finish(result).await
    }

    pub(crate) async fn list_users(&self) -> Result<Vec<UserRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM users ORDER BY id")
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(row::user).collect()
    }

    pub(crate) async fn insert_auth_key(
        &self,
        key: &NewAuthKeyRecord,
    ) -> Result<AuthKeyInfo, StoreError> {
        let mut tx = self.begin().await?;
        let result = insert_auth_key(&mut tx.connection, key).await;
        tx.finish(result).await
    }

    pub(crate) async fn list_auth_keys(&self) -> Result<Vec<AuthKeyInfo>, StoreError> {
        let rows = sqlx::query(
            "SELECT auth_keys.*, users.name AS user_name FROM auth_keys JOIN users ON users.id = auth_keys.user_id \
             ORDER BY auth_keys.created_at_ms DESC, prefix",
        )
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(row::auth_key).collect()
    }

    pub(crate) async fn revoke_auth_key(&self, prefix: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = sqlx::query("UPDATE auth_keys SET is_revoked = 1 WHERE prefix = $1")
            .bind(prefix)
            .execute(&mut tx.connection)
            .await;
        tx.finish(one_row(result, "auth key")).await
    }

    pub(crate) async fn forget_keys(&self, ended_before_ms: u64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = forget_keys(&mut tx.connection, ended_before_ms).await;
        tx.finish(result).await
    }

    pub(crate) async fn insert_api_key(
        &self,
        info: &ApiKeyInfo,
        hash: &[u8; 32],
    ) -> Result<(), StoreError> {
        let (created_at_ms, expires_at_ms) =
            (to_i64(info.created_at_ms)?, to_i64(info.expires_at_ms)?);
        let mut tx = self.begin().await?;
        let result = sqlx::query(
            "INSERT INTO api_keys (prefix, hash, created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(&info.prefix)
        .bind(hash_text(hash))
        .bind(created_at_ms)
        .bind(expires_at_ms)
        .execute(&mut tx.connection)
        .await;
        tx.finish(one_row(result, "API key")).await
    }

    pub(crate) async fn list_api_keys(&self) -> Result<Vec<ApiKeyInfo>, StoreError> {
        let rows = sqlx::query("SELECT * FROM api_keys ORDER BY created_at_ms DESC, prefix")
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(row::api_key).collect()
    }

    pub(crate) async fn delete_api_key(&self, prefix: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let result = sqlx::query("DELETE FROM api_keys WHERE prefix = $1")
            .bind(prefix)
            .execute(&mut tx.connection)
            .await;
        tx.finish(one_row(result, "API key")).await
    }

    pub(crate) async fn find_api_key(
        &self,
        prefix: &str,
    ) -> Result<Option<([u8; 32], ApiKeyInfo)>, StoreError> {
        let row = sqlx::query("SELECT * FROM api_keys WHERE prefix = $1")
            .bind(prefix)
            .fetch_optional(self.readers())
            .await?;
        row.map(|row| Ok((hash_from(row.try_get("hash")?)?, row::api_key(&row)?)))
            .transpose()
    }

    pub(crate) async fn touch_api_key(&self, prefix: &str, now_ms: u64) -> Result<(), StoreError> {
        let now_ms = to_i64(now_ms)?;
        let mut tx = self.begin().await?;
        let result = sqlx::query("UPDATE api_keys SET last_used_ms = $1 WHERE prefix = $2")
            .bind(now_ms)
            .bind(prefix)
            .execute(&mut tx.connection)
            .await;
        tx.finish(one_row(result, "API key")).await
    }
}

fn one_row(
    result: Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error>,
    what: &'static str,
) -> Result<(), StoreError> {
    if result?.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::NotFound(what))
    }
}

async fn find_user(
    connection: &mut SqliteConnection,
    name: &UserName,
) -> Result<Option<UserRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM users WHERE name = $1")
        .bind(name.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(row::user).transpose()
}

fn name_taken(name: &UserName, err: sqlx::Error) -> StoreError {
    let err = StoreError::from(err);
    if matches!(err, StoreError::Conflict(_)) {
        return StoreError::Conflict(format!("there is a user `{name}` already"));
    }
    err
}

async fn insert_user(
    connection: &mut SqliteConnection,
    name: &UserName,
    now_ms: u64,
) -> Result<UserRecord, StoreError> {
    sqlx::query("INSERT INTO users (name, created_at_ms) VALUES ($1, $2)")
        .bind(name.to_string())
        .bind(to_i64(now_ms)?)
        .execute(&mut *connection)
        .await
        .map_err(|err| name_taken(name, err))?;
    find_user(connection, name)
        .await?
        .ok_or(StoreError::NotFound("user"))
}

async fn rename_user(
    connection: &mut SqliteConnection,
    name: &UserName,
    new_name: &UserName,
) -> Result<UserRecord, StoreError> {
    let result = sqlx::query("UPDATE users SET name = $1 WHERE name = $2")
        .bind(new_name.to_string())
        .bind(name.to_string())
        .execute(&mut *connection)
        .await
        .map_err(|err| name_taken(new_name, err))?;
    if result.rows_affected() != 1 {
        return Err(StoreError::NotFound("user"));
    }
    find_user(connection, new_name)
        .await?
        .ok_or(StoreError::NotFound("user"))
}

async fn delete_user(
    connection: &mut SqliteConnection,
    name: &UserName,
) -> Result<UserId, StoreError> {
    let user = find_user(connection, name)
        .await?
        .ok_or(StoreError::NotFound("user"))?;
    let result = sqlx::query("DELETE FROM users WHERE id = $1")
        .bind(user.id.0)
        .execute(connection)
        .await;
    match result.map_err(StoreError::from) {
        Ok(_) => Ok(user.id),
        Err(StoreError::Conflict(_)) => Err(StoreError::Conflict(format!(
            "`{name}` still owns nodes; delete them first: coordinator node list, coordinator node delete NAME"
        ))),
        Err(err) => Err(err),
    }
}

async fn insert_auth_key(
    connection: &mut SqliteConnection,
    key: &NewAuthKeyRecord,
) -> Result<AuthKeyInfo, StoreError> {
    let user = match &key.user {
        Some(name) => find_user(connection, name).await?,
        None => {
            let row = sqlx::query("SELECT * FROM users ORDER BY id LIMIT 1")
                .fetch_optional(&mut *connection)
                .await?;
            row.as_ref().map(row::user).transpose()?
        }
    };
    let user = user.ok_or(StoreError::NotFound("user"))?;
    sqlx::query(
        "INSERT INTO auth_keys (prefix, hash, user_id, is_reusable, is_ephemeral, tags, created_at_ms, expires_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&key.prefix)
    .bind(hash_text(&key.hash))
    .bind(user.id.0)
    .bind(i64::from(key.is_reusable))
    .bind(i64::from(key.is_ephemeral))
    .bind(to_json(&key.tags)?)
    .bind(to_i64(key.created_at_ms)?)
    .bind(to_i64(key.expires_at_ms)?)
    .execute(connection)
    .await?;
    Ok(AuthKeyInfo {
        prefix: key.prefix.clone(),
        user: user.name,
        is_reusable: key.is_reusable,
        is_ephemeral: key.is_ephemeral,
        tags: key.tags.clone(),
        n_uses: 0,
        created_at_ms: key.created_at_ms,
        expires_at_ms: key.expires_at_ms,
        is_revoked: false,
    })
}

async fn forget_keys(
    connection: &mut SqliteConnection,
    ended_before_ms: u64,
) -> Result<(), StoreError> {
    let before = to_i64(ended_before_ms)?;
    sqlx::query("DELETE FROM auth_keys WHERE expires_at_ms < $1")
        .bind(before)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM api_keys WHERE expires_at_ms < $1")
        .bind(before)
        .execute(connection)
        .await?;
    Ok(())
}
