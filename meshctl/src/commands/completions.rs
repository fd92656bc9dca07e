//! `completions` and `man`: made from the same definitions as the command line itself.

use std::io;

use clap::CommandFactory as _;

use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(super) fn run(args: &CompletionsArgs, output: &Output) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "meshctl", &mut script);
    output.print_raw(&script)?;
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs, output: &Output) -> Result<Exit, Failure> {
    if let Some(dir) = &args.output {
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Args::command(), dir)
        };
        write()
            .map_err(|err| Failure::failed(format!("cannot write to {}: {err}", dir.display())))?;
        return Ok(Exit::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command())
        .render(&mut page)
        .map_err(|err| Failure::failed(format!("cannot make the manual page: {err}")))?;
    output.print_raw(&page)?;
    Ok(Exit::Done)
}
