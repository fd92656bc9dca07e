//! Usage records on disk: lines of JSON, in segments of which the oldest go when there are too many. Blocking.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use mesh_proto::usage::UsageRecord;
use serde::{Deserialize, Serialize};

use super::entry::Subjects;

/// Bytes of a segment, after which the next one begins.
const SEGMENT_MAX: u64 = 4 << 20;
/// Segments that are kept.
const N_SEGMENTS_MAX: u64 = 16;
/// The longest line that is read back; ours are a twentieth of it.
const LINE_MAX: usize = 16 << 10;

/// A place in the spool: all before it is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    segment: u64,
    offset: u64,
}

/// The records of one state directory.
#[derive(Debug, Default)]
pub(super) struct Spool {
    root: PathBuf,
    /// Where the next record goes. What lies behind it was never acknowledged.
    end: Place,
    segment_max: u64,
    open: Option<File>,
}

impl Spool {
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            end: Place {
                segment: 1,
                offset: 0,
            },
            segment_max: SEGMENT_MAX,
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub(super) fn with_segments_of(root: &Path, segment_max: u64) -> Self {
        Self {
            segment_max,
            ..Self::at(root)
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) const fn end(&self) -> Place {
        self.end
    }

    /// Reads the records after a place, oldest first, and finds the end. A line that a crash cut short ends its segment.
    ///
    /// # Errors
    /// When the folder or a segment cannot be read; what was read by then is told.
    pub(super) fn replay(
        &mut self,
        from: Place,
        mut each: impl FnMut(UsageRecord),
    ) -> io::Result<()> {
        for segment in self.segments()? {
            self.end = Place { segment, offset: 0 };
            let mut reader = BufReader::new(File::open(self.path(segment))?);
            let mut line = Vec::new();
            let mut subjects = Subjects::default();
            loop {
                line.clear();
                let n = reader.read_until(b'\n', &mut line)?;
                if n == 0 || line.last() != Some(&b'\n') {
                    break;
                }
                self.end.offset += u64::try_from(n).unwrap_or(u64::MAX);
                if self.end <= from {
                    continue;
                }
                // What is too long makes no sense either.
                line.truncate(LINE_MAX);
                if let Some(record) = subjects.read(&line) {
                    each(record);
                }
            }
        }
        Ok(())
    }

    /// Adds texts of whole lines; they are on disk when it returns.
    ///
    /// # Errors
    /// When they cannot all be written. None of them counts as written then, and the next try writes over what is there of them.
    pub(super) fn append<'a>(&mut self, texts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        if self.end.offset >= self.segment_max {
            self.open = None;
            self.end = Place {
                segment: self.end.segment + 1,
                offset: 0,
            };
            self.drop_oldest()?;
        }
        match self.write(texts) {
            Ok(n_bytes) => {
                self.end.offset += n_bytes;
                Ok(())
            }
            Err(err) => {
                if let Some(file) = self.open.take() {
                    // Half a line would hide the next one. Where this fails as well, the next opening does it.
                    let _ = file.set_len(self.end.offset);
                }
                Err(err)
            }
        }
    }

    /// Writes behind the end, and tells how much.
    fn write<'a>(&mut self, texts: impl Iterator<Item = &'a [u8]>) -> io::Result<u64> {
        let file = match &mut self.open {
            Some(file) => file,
            closed => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.root)?;
                let path = self.root.join(file_name(self.end.segment));
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)?;
                // What a crash or a full disk left behind the end was never acknowledged.
                file.set_len(self.end.offset)?;
                File::open(&self.root)?.sync_all()?;
                closed.insert(file)
            }
        };
        let mut n_bytes = 0;
        for text in texts {
            file.write_all(text)?;
            n_bytes += u64::try_from(text.len()).unwrap_or(u64::MAX);
            // Requests come in between that the same core serves.
            thread::yield_now();
        }
        file.sync_data()?;
        Ok(n_bytes)
    }

    fn drop_oldest(&self) -> io::Result<()> {
        for segment in self.segments()? {
            if segment + N_SEGMENTS_MAX <= self.end.segment {
                fs::remove_file(self.path(segment))?;
            }
        }
        Ok(())
    }

    /// The numbers of the segments that are there, oldest first.
    fn segments(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(err),
        };
        let mut segments = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            segments.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.root.join(file_name(segment))
    }
}

fn file_name(segment: u64) -> String {
    format!("{segment:08}.jsonl")
}
