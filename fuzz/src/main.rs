//! `fuzz [--cases N] [--seed N] [--threads N] [TARGET…]`: tries every target, or those named, with ten million cases each.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use fuzz::{Entry, TARGETS, find, regression, runner};

/// What the command line says.
struct Options {
    n_cases: u64,
    seed: u64,
    n_threads: u64,
    targets: Vec<Entry>,
}

fn main() -> Result<ExitCode> {
    let options = parse(std::env::args().skip(1))?;
    let mut code = ExitCode::SUCCESS;
    for entry in &options.targets {
        println!("{}: {}", entry.name, entry.about);
        let outcome = runner::run(entry, options.seed, options.n_cases, options.n_threads);
        println!(
            "{}: {} cases in {:.1} s, {:.0} cases/s, seeds from {}",
            entry.name,
            outcome.n_cases,
            outcome.time.as_secs_f64(),
            outcome.rate(),
            options.seed
        );
        for seed in outcome.failed {
            code = ExitCode::FAILURE;
            regression::add(entry, seed)?;
            println!(
                "{0}: seed {seed} FAILED; kept in {1}; again: fuzz {0} --seed {seed} --cases 1",
                entry.name,
                regression::path().display()
            );
        }
    }
    Ok(code)
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options> {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut options = Options {
        n_cases: 10_000_000,
        // Another stretch of seeds each second.
        seed: since_1970.as_secs() << 24,
        n_threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        targets: vec![],
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let value = args
                .next()
                .with_context(|| format!("{arg} needs a number"))?;
            value.parse().with_context(|| format!("{arg} {value}"))
        };
        match arg.as_str() {
            "--cases" => options.n_cases = number()?,
            "--seed" => options.seed = number()?,
            "--threads" => options.n_threads = number()?.max(1),
            name => match find(name) {
                Some(entry) => options.targets.push(entry),
                None => {
                    let names = TARGETS.map(|entry| entry.name).join(", ");
                    bail!("no target {name}; there are {names}");
                }
            },
        }
    }
    if options.targets.is_empty() {
        options.targets.extend(TARGETS);
    }
    Ok(options)
}
