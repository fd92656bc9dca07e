//! Whether a model server listens beyond loopback, where anyone on the network reaches it without asking the mesh.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_proto::share::BackendApi;

/// TCP's state LISTEN in the kernel's tables.
const LISTEN: &str = "0A";

/// How long a reading of the kernel's tables serves: on a busy machine they are long.
const KEPT: Duration = Duration::from_secs(30);

/// The TCP ports on which something listens on all addresses, as last read.
#[derive(Debug, Default)]
pub(crate) struct OpenPorts {
    read_at: Option<Instant>,
    ports: BTreeSet<u16>,
}

impl OpenPorts {
    /// The ports, read anew when the last reading is too old; empty where the kernel's tables cannot be read.
    pub(crate) fn at(&mut self, now: Instant) -> &BTreeSet<u16> {
        self.at_by(now, read)
    }

    fn at_by(&mut self, now: Instant, read: impl FnOnce() -> BTreeSet<u16>) -> &BTreeSet<u16> {
        let is_fresh = self
            .read_at
            .is_some_and(|at| now.saturating_duration_since(at) < KEPT);
        if !is_fresh {
            self.ports = read();
            self.read_at = Some(now);
        }
        &self.ports
    }
}

fn read() -> BTreeSet<u16> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| parse(&table))
        .collect()
}

fn parse(table: &str) -> Vec<u16> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (addr, port) = fields.next()?.split_once(':')?;
            let is_listening = fields.nth(1)? == LISTEN;
            let is_unspecified = addr.bytes().all(|b| b == b'0');
            (is_listening && is_unspecified)
                .then(|| u16::from_str_radix(port, 16).ok())
                .flatten()
        })
        .collect()
}

/// The port of a server that is asked by loopback; only such a one is of this machine for certain.
pub(crate) fn loopback_port(authority: &str) -> Option<u16> {
    let addr: SocketAddr = authority.parse().ok()?;
    addr.ip().is_loopback().then_some(addr.port())
}

/// What to tell the owner of a server, when its port is open to all.
pub(crate) fn warning(port: u16, api: BackendApi, open: &BTreeSet<u16>) -> Option<String> {
    if !open.contains(&port) {
        return None;
    }
    let fix = match api {
        BackendApi::Ollama => "unset OLLAMA_HOST or set it to 127.0.0.1, and restart Ollama",
        BackendApi::OpenAi => "start it with --host 127.0.0.1",
    };
    Some(format!(
        "it listens on all addresses, so anyone on your network can use and change it without the mesh; {fix}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 00000000:1F91 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
";

    #[test]
    fn finds_listeners_on_all_addresses() {
        assert_eq!(parse(TABLE), [8080]);
        let v6 =
            "0: 00000000000000000000000000000000:2CAA 00000000000000000000000000000000:0000 0A x";
        assert_eq!(parse(v6), [11434]);
        assert_eq!(parse("nonsense\n\n: :"), Vec::<u16>::new());
    }

    #[test]
    fn warns_of_an_open_server_alone() {
        let open = BTreeSet::from([11434]);
        assert!(warning(11434, BackendApi::Ollama, &open).is_some());
        assert!(warning(8080, BackendApi::OpenAi, &open).is_none());
        assert_eq!(loopback_port("127.0.0.1:11434"), Some(11434));
        assert_eq!(loopback_port("[::1]:8080"), Some(8080));
        assert_eq!(loopback_port("192.168.1.9:11434"), None);
    }

    #[test]
    fn the_tables_are_read_no_more_often_than_a_reading_is_kept() {
        let (start, mut open) = (Instant::now(), OpenPorts::default());
        let mut n_read = 0;
        for seconds in 0..61 {
            let now = start + Duration::from_secs(seconds);
            open.at_by(now, || {
                n_read += 1;
                BTreeSet::from([n_read])
            });
        }
        assert_eq!(n_read, 3, "at 0, 30 and 60 seconds");
        assert_eq!(open.ports, BTreeSet::from([3]));
    }
}
