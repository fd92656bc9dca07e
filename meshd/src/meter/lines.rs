//! Records put into words, in blocks that wait for the disk.
//!
//! Pure. Each block can be read by itself.

use std::collections::VecDeque;
use std::{fmt, io};

use mesh_proto::usage::UsageRecord;

use super::entry::Subjects;

/// Room of a block: what is written in one go, so that a request which comes meanwhile waits for some microseconds at most.
const BLOCK_LEN: usize = 32 << 10;
/// A little more than the length of a record's lines, as most are.
const LINE_LEN: usize = 1 << 10;
/// Empty blocks that are kept for what comes next.
const N_SPARE_MAX: usize = 32;

/// Lines of some records.
#[derive(Default)]
pub(super) struct Block {
    text: Vec<u8>,
    n_records: usize,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("n_records", &self.n_records)
            .finish_non_exhaustive()
    }
}

impl Block {
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn n_records(&self) -> usize {
        self.n_records
    }
}

/// Blocks, the oldest first, the last one still to be filled.
#[derive(Debug, Default)]
pub(super) struct Lines {
    blocks: VecDeque<Block>,
    n_records: usize,
    n_bytes: usize,
    subjects: Subjects,
    spare: Vec<Block>,
}

impl Lines {
    /// Adds a record.
    ///
    /// # Errors
    /// None that a record gives rise to.
    pub(super) fn push(&mut self, record: &UsageRecord) -> io::Result<()> {
        let is_full = |block: &Block| block.text.len() + LINE_LEN > BLOCK_LEN;
        if self.blocks.back().is_none_or(is_full) {
            let block = self.spare.pop().unwrap_or_else(|| Block {
                text: Vec::with_capacity(BLOCK_LEN),
                n_records: 0,
            });
            self.subjects.clear();
            self.blocks.push_back(block);
        }
        let Some(block) = self.blocks.back_mut() else {
            return Ok(());
        };
        let n_before = block.text.len();
        if let Err(err) = self.subjects.write(record, &mut block.text) {
            self.subjects.clear();
            block.text.truncate(n_before);
            return Err(err);
        }
        block.n_records += 1;
        self.n_records += 1;
        self.n_bytes += block.text.len() - n_before;
        Ok(())
    }

    /// How many records wait.
    pub(super) fn n_records(&self) -> usize {
        self.n_records
    }

    /// How long their lines are.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Takes all blocks out.
    pub(super) fn take(&mut self) -> VecDeque<Block> {
        (self.n_records, self.n_bytes) = (0, 0);
        std::mem::take(&mut self.blocks)
    }

    /// Puts blocks back before those that came meanwhile.
    pub(super) fn put_back(&mut self, mut blocks: VecDeque<Block>) {
        for block in &blocks {
            self.n_records += block.n_records;
            self.n_bytes += block.text.len();
        }
        blocks.append(&mut self.blocks);
        self.blocks = blocks;
    }

    /// Loses the oldest blocks until no more records than these are left. Gives how many were lost.
    pub(super) fn shorten(&mut self, n_max: usize) -> usize {
        let n_before = self.n_records;
        while self.n_records > n_max
            && let Some(block) = self.blocks.pop_front()
        {
            self.n_records -= block.n_records;
            self.n_bytes -= block.text.len();
            self.reuse(block);
        }
        n_before - self.n_records
    }

    /// Keeps the room of a block that is no longer needed.
    pub(super) fn reuse(&mut self, mut block: Block) {
        // One record with a name of any length made it larger.
        if self.spare.len() < N_SPARE_MAX && block.text.capacity() <= BLOCK_LEN {
            block.text.clear();
            block.n_records = 0;
            self.spare.push(block);
        }
    }

    /// Lets go of the room that a burst needed.
    pub(super) fn rest(&mut self) {
        self.spare = Vec::new();
    }
}
