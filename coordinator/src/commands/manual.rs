//! Completions and the manual page, from the same definitions as the command line.

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::client::Failure;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "coordinator", &mut script);
    std::io::stdout().write_all(&script).map_err(Failure::other)
}

pub(crate) fn man() -> Result<(), Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(Failure::other)?;
    std::io::stdout().write_all(&page).map_err(Failure::other)
}
