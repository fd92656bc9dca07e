//! Usage added up by day, guest and model, within bounds; and how it is kept on disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::id::{NodeId, UserId};
use mesh_proto::usage::{UsageRecord, UsageRow, UsageSum};
use serde::{Deserialize, Serialize};

use super::spool::Place;
use crate::gateway::Account;

/// Days that are kept.
const N_DAYS_MAX: u64 = 400;
/// Rows that are kept; the oldest days go first.
const N_ROWS_MAX: usize = 20_000;
/// The file is never larger; one that is was not written by us.
const FILE_LEN_MAX: u64 = 16 << 20;
const FILE: &str = "totals.json";
const NEW_FILE: &str = "totals.json.new";
const DAY_SECS: u64 = 24 * 3_600;

/// The sums.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    rows: BTreeMap<Key, UsageSum>,
    names: BTreeMap<Account, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    day: u64,
    account: Account,
    model: String,
}

/// How they are written.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// Records before it are in the sums.
    place: Place,
    rows: Vec<SavedRow>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedRow {
    day: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    name: String,
    model: String,
    sum: UsageSum,
}

/// The day of a time, from 1970-01-01.
pub(super) fn day_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
        / DAY_SECS
}

impl Totals {
    pub(super) fn count(&mut self, record: &UsageRecord) {
        let account = super::account(record);
        self.name(account, record);
        let key = Key {
            day: record.end_ms / 1_000 / DAY_SECS,
            account,
            model: record.model.clone(),
        };
        self.rows.entry(key).or_default().count(record);
        self.trim();
    }

    /// Keeps the newest name of an account.
    fn name(&mut self, account: Account, record: &UsageRecord) {
        let known = self.names.get(&account);
        match account {
            Account::Owner | Account::User(_) => {
                let name = record.client.owner_name.as_str();
                if known.is_none_or(|known| known != name) {
                    self.names.insert(account, name.to_owned());
                }
            }
            Account::Tagged(node) => {
                if known.is_none() {
                    self.names.insert(account, node.to_string());
                }
            }
        }
    }

    fn trim(&mut self) {
        while let (Some(first), Some(last)) =
            (self.rows.keys().next(), self.rows.keys().next_back())
        {
            let is_old = first.day + N_DAYS_MAX <= last.day;
            let is_full = self.rows.len() > N_ROWS_MAX;
            if !(is_old || is_full) {
                return;
            }
            self.rows.pop_first();
        }
    }

    /// Tokens of one day by account and model.
    pub(super) fn of_day(&self, day: u64) -> impl Iterator<Item = (Account, &str, u64)> {
        let rows = self.rows.iter().filter(move |(key, _)| key.day == day);
        rows.map(|(key, sum)| {
            let n_tokens = sum.prompt_tokens.saturating_add(sum.output_tokens);
            (key.account, key.model.as_str(), n_tokens)
        })
    }

    /// The rows since a day, oldest first.
    pub(super) fn rows(&self, since: u64) -> Vec<UsageRow> {
        let rows = self.rows.iter().filter(|(key, _)| key.day >= since);
        rows.map(|(key, sum)| UsageRow {
            day: date(key.day),
            guest: self.names.get(&key.account).cloned().unwrap_or_default(),
            is_owner: key.account == Account::Owner,
            model: key.model.clone(),
            sum: *sum,
        })
        .collect()
    }

    fn saved(&self, place: Place) -> Saved {
        let rows = self.rows.iter().map(|(key, sum)| SavedRow {
            day: key.day,
            user: match key.account {
                Account::User(user) => Some(user),
                Account::Owner | Account::Tagged(_) => None,
            },
            node: match key.account {
                Account::Tagged(node) => Some(node),
                Account::Owner | Account::User(_) => None,
            },
            name: self.names.get(&key.account).cloned().unwrap_or_default(),
            model: key.model.clone(),
            sum: *sum,
        });
        Saved {
            place,
            rows: rows.collect(),
        }
    }

    fn of(saved: Saved) -> Self {
        let mut totals = Self::default();
        for row in saved.rows {
            let account = match (row.user, row.node) {
                (_, Some(node)) => Account::Tagged(node),
                (Some(user), None) => Account::User(user),
                (None, None) => Account::Owner,
            };
            totals.names.insert(account, row.name);
            let key = Key {
                day: row.day,
                account,
                model: row.model,
            };
            totals.rows.entry(key).or_default().add(&row.sum);
        }
        totals.trim();
        totals
    }
}

/// `2026-11-23`, by the civil calendar.
fn date(day: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(day.saturating_mul(DAY_SECS).min(1 << 40));
    let mut text = crate::gateway::rfc3339(time);
    text.truncate(10);
    text
}

/// The sums on disk, and up to which record they go.
///
/// # Errors
/// When they cannot be read or make no sense.
pub(super) fn read(root: &Path) -> io::Result<Option<(Totals, Place)>> {
    let path = root.join(FILE);
    match fs::metadata(&path) {
        Ok(file) if file.len() > FILE_LEN_MAX => {
            return Err(io::Error::other("the file is too large"));
        }
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    }
    let saved: Saved = serde_json::from_slice(&fs::read(&path)?)?;
    let place = saved.place;
    Ok(Some((Totals::of(saved), place)))
}

/// Replaces the sums on disk; a crash leaves the old or the new ones.
///
/// # Errors
/// When they cannot be written; the old ones stay then.
pub(super) fn write(root: &Path, totals: &Totals, place: Place) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    let text = serde_json::to_vec(&totals.saved(place))?;
    let new = root.join(NEW_FILE);
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, root.join(FILE))?;
    File::open(root)?.sync_all()
}
