//! Records as they are kept: what many have in common is said once, in a line of its own, and each has a line for the rest.
//!
//! Pure. A line names what it belongs to by a number, which a later line may give anew.

use std::io;

use mesh_proto::id::NetworkId;
use mesh_proto::share::Digest;
use mesh_proto::usage::{Endpoint, Outcome, Party, Random16, UsageRecord};
use serde::{Deserialize, Serialize};

/// Subjects that have a number at a time.
const N_SUBJECTS: usize = 16;

/// Who asked whom for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    version: u32,
    network_id: NetworkId,
    client: Party,
    host: Party,
    model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

/// The line that gives a subject its number.
#[derive(Debug, Serialize, Deserialize)]
struct Numbered<S> {
    of: usize,
    subject: S,
}

/// A request's line.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    of: usize,
    rid: Random16,
    nonce: Random16,
    endpoint: Endpoint,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    delivered_tokens: u64,
    n_chunks: u64,
    n_bytes: u64,
    start_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_byte_ms: Option<u64>,
    end_ms: u64,
    outcome: Outcome,
}

impl Subject {
    fn of(record: &UsageRecord) -> Self {
        Self {
            version: record.version,
            network_id: record.network_id,
            client: record.client.clone(),
            host: record.host.clone(),
            model: record.model.clone(),
            digest: record.digest,
        }
    }

    fn is_of(&self, record: &UsageRecord) -> bool {
        let Self {
            version,
            network_id,
            client,
            host,
            model,
            digest,
        } = self;
        *client == record.client
            && *model == record.model
            && *host == record.host
            && *digest == record.digest
            && *network_id == record.network_id
            && *version == record.version
    }
}

/// The subjects that have numbers.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    numbered: Vec<Subject>,
    /// The one that goes when there is no more room.
    oldest: usize,
}

impl Subjects {
    /// Gives no numbers anew: what is written next can be read without what was written before.
    pub(super) fn clear(&mut self) {
        self.numbered.clear();
        self.oldest = 0;
    }

    /// Writes a record's lines.
    ///
    /// # Errors
    /// None that a record gives rise to.
    pub(super) fn write(&mut self, record: &UsageRecord, text: &mut Vec<u8>) -> io::Result<()> {
        let known = self.numbered.iter().position(|kept| kept.is_of(record));
        let of = match known {
            Some(of) => of,
            None => {
                let subject = Subject::of(record);
                let of = if self.numbered.len() < N_SUBJECTS {
                    self.numbered.len()
                } else {
                    self.oldest
                };
                line(
                    text,
                    &Numbered {
                        of,
                        subject: &subject,
                    },
                )?;
                self.put(of, subject);
                of
            }
        };
        let entry = Entry {
            of,
            rid: record.rid,
            nonce: record.nonce,
            endpoint: record.endpoint,
            prompt_tokens: record.prompt_tokens,
            output_tokens: record.output_tokens,
            delivered_tokens: record.delivered_tokens,
            n_chunks: record.n_chunks,
            n_bytes: record.n_bytes,
            start_ms: record.start_ms,
            first_byte_ms: record.first_byte_ms,
            end_ms: record.end_ms,
            outcome: record.outcome,
        };
        line(text, &entry)
    }

    /// Reads a line; gives the record that it is. A line that makes no sense may have been a subject: what would be of it now is
    /// nobody's.
    pub(super) fn read(&mut self, text: &[u8]) -> Option<UsageRecord> {
        if let Ok(entry) = serde_json::from_slice::<Entry>(text) {
            return self.record(entry);
        }
        match serde_json::from_slice::<Numbered<Subject>>(text) {
            Ok(Numbered { of, subject }) if of <= self.numbered.len().min(N_SUBJECTS - 1) => {
                self.put(of, subject);
            }
            Ok(_) | Err(_) => self.clear(),
        }
        None
    }

    fn put(&mut self, of: usize, subject: Subject) {
        if let Some(place) = self.numbered.get_mut(of) {
            *place = subject;
            self.oldest = (of + 1) % N_SUBJECTS;
        } else {
            self.numbered.push(subject);
        }
    }

    fn record(&self, entry: Entry) -> Option<UsageRecord> {
        let subject = self.numbered.get(entry.of)?.clone();
        Some(UsageRecord {
            version: subject.version,
            network_id: subject.network_id,
            rid: entry.rid,
            nonce: entry.nonce,
            client: subject.client,
            host: subject.host,
            model: subject.model,
            digest: subject.digest,
            endpoint: entry.endpoint,
            prompt_tokens: entry.prompt_tokens,
            output_tokens: entry.output_tokens,
            delivered_tokens: entry.delivered_tokens,
            n_chunks: entry.n_chunks,
            n_bytes: entry.n_bytes,
            start_ms: entry.start_ms,
            first_byte_ms: entry.first_byte_ms,
            end_ms: entry.end_ms,
            outcome: entry.outcome,
        })
    }
}

fn line(text: &mut Vec<u8>, of: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *text, of)?;
    text.push(b'\n');
    Ok(())
}
