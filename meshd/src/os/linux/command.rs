//! Runs a system program: input given, output bounded, never longer than a few seconds.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(10);
const OUTPUT_LEN_MAX: u64 = 16 << 20;

/// Runs the program and gives its standard output.
///
/// # Errors
/// `NotFound` when there is no such program; else with what it said on standard error.
pub(super) async fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that reads nothing closes its end: that is no fault.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
        let status = child.wait().await?;
        if status.success() {
            return stdout;
        }
        let said = stderr?;
        let said = said
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no reason given");
        Err(io::Error::other(format!("{program}: {said}")))
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{program} does not end"),
        )),
    }
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_LEN_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
