//! What waits for one client, in turns: each source a row of its own, served round by round. Pure.
//!
//! Deficit round robin (Shreedhar and Varghese 1996) over bytes, so that a source that sends much delays itself and
//! nobody else. When the lane is full, the source that has more than its share loses, be it the one that sends now or
//! another.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use mesh_proto::relay::FRAME_MAX;

use super::hub::ClientId;

/// What a source may send in each round: the longest frame fits.
const QUANTUM: usize = FRAME_MAX;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) n_bytes: usize,
    pub(crate) n_datagrams: usize,
}

/// What goes when the lane is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loses {
    /// What waits longest: nobody may wait for it any more.
    Oldest,
    /// What comes last: an earlier one is already on its way to be answered.
    Newest,
}

/// A frame that waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) frame: Bytes,
    pub(crate) n_datagrams: usize,
}

/// The frames of all sources.
#[derive(Debug)]
pub(crate) struct Lane {
    bounds: Bounds,
    loses: Loses,
    rows: HashMap<ClientId, Row>,
    /// The sources that have something, the next one first.
    turns: VecDeque<ClientId>,
    n_bytes: usize,
    n_datagrams: usize,
}

#[derive(Debug, Default)]
struct Row {
    frames: VecDeque<Waiting>,
    n_bytes: usize,
    deficit: usize,
}

impl Lane {
    pub(crate) fn new(bounds: Bounds, loses: Loses) -> Self {
        Self {
            bounds,
            loses,
            rows: HashMap::new(),
            turns: VecDeque::new(),
            n_bytes: 0,
            n_datagrams: 0,
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Takes a frame in; tells how many datagrams were lost for it, its own among them.
    pub(crate) fn push(&mut self, source: ClientId, waiting: Waiting) -> usize {
        let mut n_lost = 0;
        while !self.has_room(&waiting) {
            let victim = self.victim(source, waiting.frame.len());
            if victim == source && self.loses == Loses::Newest {
                return n_lost + waiting.n_datagrams;
            }
            match self.lose(victim) {
                Some(lost) => n_lost += lost.n_datagrams,
                None => return n_lost + waiting.n_datagrams,
            }
        }
        self.n_bytes += waiting.frame.len();
        self.n_datagrams += waiting.n_datagrams;
        let row = self.rows.entry(source).or_default();
        if row.frames.is_empty() {
            self.turns.push_back(source);
        }
        row.n_bytes += waiting.frame.len();
        row.frames.push_back(waiting);
        n_lost
    }

    /// The next frame.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        loop {
            let source = *self.turns.front()?;
            let row = self.rows.get_mut(&source)?;
            let len = row.frames.front()?.frame.len();
            if row.deficit < len {
                row.deficit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            row.deficit -= len;
            return self.remove(source, Loses::Oldest).map(|it| it.frame);
        }
    }

    fn has_room(&self, waiting: &Waiting) -> bool {
        self.n_bytes + waiting.frame.len() <= self.bounds.n_bytes
            && self.n_datagrams + waiting.n_datagrams <= self.bounds.n_datagrams
    }

    /// Who loses: the sender, when it would have more than its share, otherwise the one that has most.
    fn victim(&self, source: ClientId, len: usize) -> ClientId {
        let own = self.rows.get(&source).map_or(0, |row| row.n_bytes);
        let n_sources = self.turns.len() + usize::from(own == 0);
        if own + len > self.bounds.n_bytes / n_sources.max(1) {
            return source;
        }
        let most = self
            .turns
            .iter()
            .max_by_key(|source| self.rows.get(source).map_or(0, |row| row.n_bytes));
        most.copied().unwrap_or(source)
    }

    fn lose(&mut self, victim: ClientId) -> Option<Waiting> {
        self.remove(victim, self.loses)
    }

    fn remove(&mut self, source: ClientId, which: Loses) -> Option<Waiting> {
        let row = self.rows.get_mut(&source)?;
        let waiting = match which {
            Loses::Oldest => row.frames.pop_front(),
            Loses::Newest => row.frames.pop_back(),
        }?;
        row.n_bytes -= waiting.frame.len();
        if row.frames.is_empty() {
            self.rows.remove(&source);
            self.turns.retain(|turn| *turn != source);
        }
        self.n_bytes -= waiting.frame.len();
        self.n_datagrams -= waiting.n_datagrams;
        Some(waiting)
    }
}

#[cfg(test)]
mod tests;
