//! The store on SQLite: one writing connection, a few reading ones, durable at each commit.

mod key;
mod node;
mod relay;
mod row;
mod want;

use std::io;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_proto::id::NetworkId;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};

use self::row::{broken, parse, to_i64, to_u64};
use super::{MeshRecord, StoreError};

/// The migrations, oldest first; append-only.
const MIGRATIONS: [(i64, &str, &str); 3] = [
    (1, "mesh", include_str!("migrations/sqlite/0001_mesh.sql")),
    (
        2,
        "relays",
        include_str!("migrations/sqlite/0002_relays.sql"),
    ),
    (3, "wants", include_str!("migrations/sqlite/0003_wants.sql")),
];

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const N_READERS: u32 = 4;
/// More than a join takes in the log, bytes.
const TRIAL_LEN: usize = 65_536;

/// A SQLite database.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    options: SqliteConnectOptions,
    /// Empty while a transaction has the connection, and after one that ended badly: the next one opens it anew.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
}

/// A write transaction. Dropped unfinished, its connection is closed, which rolls it back.
pub(super) struct WriteTx<'a> {
    slot: MutexGuard<'a, Option<SqliteConnection>>,
    pub(super) connection: SqliteConnection,
}

impl SqliteStore {
    pub(crate) async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let mut connection = SqliteConnection::connect_with(&options).await?;
        migrate(&mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(N_READERS)
            .connect_lazy_with(options.clone().read_only(true));
        Ok(Self {
            options,
            writer: Mutex::new(Some(connection)),
            readers,
        })
    }

    pub(super) const fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    pub(super) async fn begin(&self) -> Result<WriteTx<'_>, StoreError> {
        let mut slot = self.writer.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut connection)
            .await?;
        Ok(WriteTx { slot, connection })
    }

    pub(super) async fn open_mesh(
        &self,
        network_id: NetworkId,
        pool: Ipv4Net,
        now_ms: u64,
    ) -> Result<MeshRecord, StoreError> {
        let mut tx = self.begin().await?;
        let result = open_mesh(&mut tx.connection, network_id, pool, now_ms).await;
        tx.finish(result).await
    }

    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // A small write may fit in what the log has of the disk already, where no join does.
        let trial = self.options.get_filename().with_extension("trial");
        tokio::task::spawn_blocking(move || has_room(&trial))
            .await
            .map_err(|err| StoreError::Unavailable(err.to_string()))?
            .map_err(|err| StoreError::Unavailable(format!("is the disk full? {err}")))?;
        let result = sqlx::query("UPDATE mesh SET epoch = epoch")
            .execute(&mut tx.connection)
            .await;
        tx.finish(result.map(drop).map_err(StoreError::from)).await
    }
}

fn has_room(trial: &Path) -> io::Result<()> {
    let written = std::fs::write(trial, vec![0; TRIAL_LEN]);
    let removed = std::fs::remove_file(trial);
    written.and(removed)
}

impl WriteTx<'_> {
    /// Commits what went well and rolls back the rest. A connection that failed itself is not used again.
    pub(super) async fn finish<T>(
        mut self,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_done = match &result {
            Ok(_) => {
                sqlx::query("COMMIT").execute(&mut self.connection).await?;
                true
            }
            Err(StoreError::Unavailable(_) | StoreError::Broken(_)) => false,
            Err(StoreError::NotFound(_) | StoreError::Conflict(_) | StoreError::Refused(_)) => {
                sqlx::query("ROLLBACK")
                    .execute(&mut self.connection)
                    .await
                    .is_ok()
            }
        };
        if is_done {
            *self.slot = Some(self.connection);
        }
        result
    }
}

async fn open_mesh(
    connection: &mut SqliteConnection,
    network_id: NetworkId,
    pool: Ipv4Net,
    now_ms: u64,
) -> Result<MeshRecord, StoreError> {
    let found = sqlx::query("SELECT network_id, ipv4_pool, epoch FROM mesh WHERE id = 1")
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = found else {
        let epoch = next_epoch(0, now_ms);
        sqlx::query("INSERT INTO mesh (id, network_id, ipv4_pool, ipv4_next, epoch) VALUES (1, $1, $2, 0, $3)")
            .bind(network_id.to_string())
            .bind(pool.to_string())
            .bind(to_i64(epoch)?)
            .execute(connection)
            .await?;
        return Ok(MeshRecord {
            network_id,
            ipv4_pool: pool,
            epoch,
            is_new: true,
        });
    };
    let epoch = next_epoch(to_u64(row.try_get("epoch")?)?, now_ms);
    sqlx::query("UPDATE mesh SET epoch = $1 WHERE id = 1")
        .bind(to_i64(epoch)?)
        .execute(connection)
        .await?;
    Ok(MeshRecord {
        network_id: parse(row.try_get("network_id")?)?,
        ipv4_pool: parse(row.try_get("ipv4_pool")?)?,
        epoch,
        is_new: false,
    })
}

/// Higher than any epoch before, also than those that a restored backup does not know of: they were of earlier times.
fn next_epoch(stored: u64, now_ms: u64) -> u64 {
    stored.saturating_add(1).max(now_ms)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sql)| {
            let sql = sqlx::SqlSafeStr::into_sql_str(*sql);
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let result = Migrator::with_migrations(migrations)
        .run_direct(None, connection, false)
        .await;
    result.map_err(not_migrated)
}

fn not_migrated(err: MigrateError) -> StoreError {
    if let MigrateError::VersionMissing(version) = err {
        return StoreError::Broken(format!(
            "the database is of a newer version of this program (migration {version}); \
             install that version, or restore a backup from before the update"
        ));
    }
    if let MigrateError::Execute(err) | MigrateError::ExecuteMigration(err, _) = err {
        return err.into();
    }
    StoreError::Broken(err.to_string())
}

/// Primary result codes after which the database file itself is to blame (SQLITE_CORRUPT, SQLITE_NOTADB).
const CODES_BROKEN: [i32; 2] = [11, 26];

impl From<sqlx::Error> for StoreError {
    fn from(err: sqlx::Error) -> Self {
        if let sqlx::Error::Database(database) = &err {
            let code = database
                .code()
                .and_then(|code| code.parse::<i32>().ok())
                .unwrap_or(0)
                & 0xff;
            if database.is_unique_violation() || database.is_foreign_key_violation() {
                return Self::Conflict(err.to_string());
            }
            if CODES_BROKEN.contains(&code) {
                return broken(err);
            }
            return Self::Unavailable(database.message().to_owned());
        }
        let is_nonsense = matches!(
            err,
            sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::ColumnNotFound(_)
        );
        if is_nonsense {
            broken(err)
        } else {
            Self::Unavailable(err.to_string())
        }
    }
}
