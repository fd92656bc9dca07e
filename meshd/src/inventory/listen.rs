//! Whether a model server listens beyond loopback, where anyone on the network reaches it without asking the mesh.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mesh_proto::share::BackendApi;

/// TCP's state LISTEN in the kernel's tables.
const LISTEN: &str = "0A";

/// The TCP ports on which something listens on all addresses; empty where the kernel's tables cannot be read.
pub(crate) fn ports_on_all_addresses() -> BTreeSet<u16> {
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

/// What to tell the owner of a server, when its port is open to all.
pub(crate) fn warning(authority: &str, api: BackendApi, exposed: &BTreeSet<u16>) -> Option<String> {
    let addr: SocketAddr = authority.parse().ok()?;
    let is_here = match addr.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !is_here || !exposed.contains(&addr.port()) {
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
        let exposed = BTreeSet::from([11434]);
        assert!(warning("127.0.0.1:11434", BackendApi::Ollama, &exposed).is_some());
        assert!(warning("127.0.0.1:8080", BackendApi::OpenAi, &exposed).is_none());
        assert!(warning("192.168.1.9:11434", BackendApi::Ollama, &exposed).is_none());
    }
}
