//! The addresses by which others can reach this machine, read from the kernel's own tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// More addresses than this help nobody.
const N_MAX: usize = 4;

/// This machine's addresses, that of the default route first. Loopback and link-local ones are left out.
pub(crate) fn list() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = default_route().into_iter().collect();
    let ipv4 = std::fs::read_to_string("/proc/self/net/fib_trie").unwrap_or_default();
    let ipv6 = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    found.extend(parse_fib_trie(&ipv4).into_iter().map(IpAddr::V4));
    found.extend(parse_if_inet6(&ipv6).into_iter().map(IpAddr::V6));
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.truncate(N_MAX);
    addresses
}

/// Connecting a UDP socket sends nothing and shows which address the kernel would send from.
fn default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

fn parse_fib_trie(table: &str) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    let mut last = None;
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last.take()
            && !address.is_loopback()
            && !address.is_link_local()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

/// Lines of `address index prefix scope flags name`, hexadecimal. Scope 0 is global; flag 1 is a temporary address.
fn parse_if_inet6(table: &str) -> Vec<Ipv6Addr> {
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let scope = fields.nth(2)?;
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        (scope == "00" && flags & 1 == 0).then(|| Ipv6Addr::from(address))
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernel_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.0\n        \
                    /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.255\n        \
                    /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(parse_fib_trie(trie), [Ipv4Addr::new(10, 0, 0, 5)]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe80000000000000025056fffe000001 02 40 20 80     eth0\n\
                     20010db8000000000000000000000005 02 40 00 80     eth0\n\
                     20010db8000000000000000000000006 02 40 00 01     eth0\n";
        assert_eq!(
            parse_if_inet6(inet6),
            ["2001:db8::5".parse::<Ipv6Addr>().unwrap()]
        );
        assert_eq!(parse_if_inet6("nonsense\n\n"), Vec::<Ipv6Addr>::new());
    }
}
