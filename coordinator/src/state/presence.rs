//! Whether a node is there: its map stream, its beats, and the grace after a start. Pure.

use std::time::{Duration, Instant};

use mesh_proto::control::BEAT_DEADLINE_MS;

use crate::store::NodeRecord;

const BEAT_DEADLINE: Duration = Duration::from_millis(BEAT_DEADLINE_MS);

/// Whether a node is there.
#[derive(Debug, Clone)]
pub(crate) struct Presence {
    is_streaming: bool,
    last_beat: Option<Instant>,
    last_seen_ms: Option<u64>,
    is_online: bool,
    is_unkept: bool,
    told: (bool, Option<u64>),
}

impl Presence {
    pub(crate) const fn new(record: &NodeRecord) -> Self {
        Self {
            is_streaming: false,
            last_beat: None,
            last_seen_ms: record.last_seen_ms,
            is_online: false,
            is_unkept: false,
            told: (false, record.last_seen_ms),
        }
    }

    pub(crate) const fn is_online(&self) -> bool {
        self.is_online
    }

    pub(crate) const fn is_streaming(&self) -> bool {
        self.is_streaming
    }

    pub(crate) const fn last_seen_ms(&self) -> Option<u64> {
        self.last_seen_ms
    }

    pub(super) const fn on_stream_opened(&mut self, now: Instant, now_ms: u64) {
        self.is_streaming = true;
        self.on_beat(now, now_ms);
    }

    pub(super) const fn on_stream_closed(&mut self, now_ms: u64) {
        self.is_streaming = false;
        self.last_seen_ms = Some(now_ms);
    }

    pub(super) const fn on_beat(&mut self, now: Instant, now_ms: u64) {
        self.last_beat = Some(now);
        self.last_seen_ms = Some(now_ms);
    }

    /// Decides anew whether the node is online; true when what others are told changed.
    pub(super) fn settle(
        &mut self,
        record: &NodeRecord,
        now: Instant,
        now_ms: u64,
        grace_until: Instant,
    ) -> bool {
        let must_beat = !record.offers.models.is_empty();
        let is_beating = self
            .last_beat
            .is_some_and(|at| now.saturating_duration_since(at) < BEAT_DEADLINE);
        let is_heard = self.is_streaming && (is_beating || !must_beat);
        let is_in_grace = record.was_online && now < grace_until;
        let is_online = !record.is_expired(now_ms) && (is_heard || is_in_grace);
        self.is_unkept |= self.is_online != is_online;
        self.is_online = is_online;
        let told = self.as_told();
        std::mem::replace(&mut self.told, told) != told
    }

    /// What others are told: whether it is online, and otherwise when it was heard last.
    pub(crate) const fn as_told(&self) -> (bool, Option<u64>) {
        (
            self.is_online,
            if self.is_online {
                None
            } else {
                self.last_seen_ms
            },
        )
    }

    pub(super) const fn take_is_unkept(&mut self) -> bool {
        let is_unkept = self.is_unkept;
        self.is_unkept = false;
        is_unkept
    }
}
