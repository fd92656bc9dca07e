//! resolvconf, openresolv's or Debian's: a record of ours among those that it makes `/etc/resolv.conf` from.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::command;

/// Both programs put records named so before those of plain networks: openresolv takes `tun[0-9]*`, Debian's `tun*`.
/// The others stay behind ours, so programs still resolve when the daemon dies.
const RECORD: &str = "tun0-proxima";

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

pub(super) async fn add(root: &Path, servers: &[IpAddr]) -> io::Result<()> {
    let program = program(root)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no resolvconf"))?;
    command::run(&program, &["-a", RECORD], &record(servers))
        .await
        .map(drop)
}

/// Takes the record out; a resolvconf that is gone has none.
pub(super) async fn delete(root: &Path) -> io::Result<()> {
    let Some(program) = program(root) else {
        return Ok(());
    };
    // openresolv complains of a record that is not there unless told `-f`, which Debian's does not know.
    match command::run(&program, &["-f", "-d", RECORD], "").await {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            command::run(&program, &["-d", RECORD], "").await.map(drop)
        }
        other => other.map(drop),
    }
}

fn record(servers: &[IpAddr]) -> String {
    let mut record = String::new();
    for server in servers {
        let _ = writeln!(record, "nameserver {server}");
    }
    record
}
