//! resolvconf, openresolv's or Debian's: a record of ours among those that it makes `/etc/resolv.conf` from.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::command;
use super::names::Plan;

/// Both programs put records named `tun…` before those of plain networks.
pub(super) const RECORD: &str = "tun-proxima.inet";

const PLACES: [&str; 3] = [
    "usr/sbin/resolvconf",
    "sbin/resolvconf",
    "usr/bin/resolvconf",
];

/// The program, unless it is systemd's stand-in of that name.
pub(super) fn program(root: &Path) -> Option<String> {
    PLACES
        .iter()
        .map(|place| root.join(place))
        .find_map(|path| {
            let real = path.canonicalize().ok()?;
            let is_stand_in = real.file_name().is_some_and(|name| name == "resolvectl");
            (!is_stand_in)
                .then(|| path.to_str().map(str::to_owned))
                .flatten()
        })
}

pub(super) async fn apply(program: &str, plan: &Plan) -> io::Result<()> {
    let record = record(plan);
    // openresolv takes a metric, and 0 puts our servers first; Debian's takes none and has its own order.
    match command::run(program, &["-m", "0", "-a", RECORD], &record).await {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            command::run(program, &["-a", RECORD], &record)
                .await
                .map(drop)
        }
        other => other.map(drop),
    }
}

pub(super) async fn undo(program: &str, record: &str) -> io::Result<()> {
    match command::run(program, &["-f", "-d", record], "").await {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            command::run(program, &["-d", record], "").await.map(drop)
        }
        other => other.map(drop),
    }
}

fn record(plan: &Plan) -> String {
    let mut record = String::new();
    for server in &plan.servers {
        let _ = writeln!(record, "nameserver {server}");
    }
    record
}
