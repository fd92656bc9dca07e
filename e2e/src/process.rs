//! A running program of the lab: its log, its signals, its end.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::wait::wait_until;

/// A program that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with both outputs appended to a log file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || -> Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(log);
            file.with_context(|| log.display().to_string())
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it wrote so far, and what earlier ones with the same log wrote.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn ensure_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} ended with {status}:\n{}",
                self.name,
                tail(&self.log(), 20)
            );
        }
        Ok(())
    }

    /// Sends a signal by its name, such as `TERM`.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.pid().to_string();
        let output = Command::new("kill").args(["-s", signal, &pid]).output()?;
        ensure_success("kill", &output)
    }

    /// Kills it without a word (`kill -9`) and reaps it.
    pub fn kill(&mut self) {
        // Both fail only when it has ended and was reaped, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let what = format!("{} ends after SIGTERM", self.name);
        wait_until(&what, limit, || {
            self.child.try_wait()?.context("still running")
        })
    }

    /// A figure of its memory, in KiB, by its name in `/proc/PID/status`, such as `VmRSS`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory_kib(&self, name: &str) -> Result<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let mut lines = status.lines().map(str::split_whitespace);
        let figure = lines.find_map(|mut words| {
            let is_it = words.next()?.strip_suffix(':') == Some(name);
            is_it.then_some(words.next()?)
        });
        let figure = figure.with_context(|| format!("no {name}"))?;
        Ok(figure.parse()?)
    }

    /// The memory that it has in RAM, in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_mib(&self) -> Result<f64> {
        Ok(f64::from(self.memory_kib("VmRSS")?) / 1024.0)
    }

    /// Its CPU time so far, of all threads.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .context("no fields")?
            .split(' ')
            .collect();
        let ticks: u64 = fields.get(11).context("utime")?.parse::<u64>()?
            + fields.get(12).context("stime")?.parse::<u64>()?;
        // USER_HZ is 100 on every architecture that we run on.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, n_lines: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}

/// Fails with both outputs when a program did not succeed.
///
/// # Errors
/// When it did not.
pub fn ensure_success(what: &str, output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Standard output as text.
#[must_use]
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
#[must_use]
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
