//! Which models guests had pulled, kept over restarts: their sizes count against the budget for as long as they are there.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::Names;
use crate::state_dir::replace_file;

/// The file's name in the state directory.
pub(crate) const LEDGER_FILE: &str = "pulled.json";
/// More names than this are not kept: a host offers no more models.
const N_NAMES_MAX: usize = 1024;

/// The list and its file.
#[derive(Debug, Default)]
pub struct Ledger {
    /// In memory alone without one, as in tests.
    file: Option<PathBuf>,
    names: Mutex<Names>,
}

impl Ledger {
    /// Reads the list; a missing file is an empty one.
    ///
    /// # Errors
    /// When the file cannot be read, or is none of ours.
    pub fn open(file: PathBuf) -> io::Result<Self> {
        let names = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Names::new(),
            Err(err) => return Err(err),
        };
        Ok(Self {
            file: Some(file),
            names: Mutex::new(names),
        })
    }

    pub(super) fn models(&self) -> Names {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.clone()
    }

    /// Forgets a name: its model did not come. Blocks.
    pub(super) fn remove(&self, model: &str) -> io::Result<()> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut without = names.clone();
        if !without.remove(model) {
            return Ok(());
        }
        self.write(&without)?;
        *names = without;
        Ok(())
    }

    /// Keeps a name; it is on disk when this returns. Blocks.
    pub(super) fn add(&self, model: &str) -> io::Result<()> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(model) {
            return Ok(());
        }
        if names.len() >= N_NAMES_MAX {
            return Err(io::Error::other("too many models were pulled for guests"));
        }
        let mut with = names.clone();
        with.insert(model.to_owned());
        self.write(&with)?;
        *names = with;
        Ok(())
    }

    fn write(&self, names: &Names) -> io::Result<()> {
        match &self.file {
            Some(file) => replace_file(file, &serde_json::to_vec(names)?),
            None => Ok(()),
        }
    }
}
