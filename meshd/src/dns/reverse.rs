//! Names of addresses: which reverse names belong to the mesh, and the zones that cover its prefixes. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// What a name under `arpa` is to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reverse {
    /// None of the mesh's.
    Foreign,
    /// Above addresses of the mesh, no address itself.
    Above,
    /// An address of the mesh.
    Address(IpAddr),
    /// Below an address of the mesh, or misspelt: there is no such name.
    Missing,
}

/// Reads a reverse name, its labels in lower case and without the root.
#[must_use]
pub fn parse(labels: &[String], pool: Ipv4Net, prefix: Ipv6Net) -> Reverse {
    let [address @ .., kind, top] = labels else {
        return Reverse::Foreign;
    };
    match (kind.as_str(), top.as_str()) {
        ("in-addr", "arpa") => parse_v4(address, pool),
        ("ip6", "arpa") => parse_v6(address, prefix),
        _ => Reverse::Foreign,
    }
}

fn parse_v4(labels: &[String], pool: Ipv4Net) -> Reverse {
    let mut octets = [0; 4];
    let mut n_read = 0;
    for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
        let Ok(value) = label.parse() else { break };
        *octet = value;
        n_read += 1;
    }
    let bits = n_read * 8;
    if bits < usize::from(pool.prefix_len()) || !pool.contains(&Ipv4Addr::from(octets)) {
        return Reverse::Foreign;
    }
    match (n_read == labels.len(), n_read) {
        (true, 4) => Reverse::Address(Ipv4Addr::from(octets).into()),
        (true, _) => Reverse::Above,
        (false, _) => Reverse::Missing,
    }
}

fn parse_v6(labels: &[String], prefix: Ipv6Net) -> Reverse {
    let mut address = 0_u128;
    let mut n_read = 0;
    for label in labels.iter().rev().take(32) {
        let mut digits = label.chars();
        let (Some(digit), None) = (digits.next().and_then(|c| c.to_digit(16)), digits.next())
        else {
            break;
        };
        address |= u128::from(digit) << (124 - 4 * n_read);
        n_read += 1;
    }
    let bits = n_read * 4;
    if bits < usize::from(prefix.prefix_len()) || !prefix.contains(&Ipv6Addr::from(address)) {
        return Reverse::Foreign;
    }
    match (n_read == labels.len(), n_read) {
        (true, 32) => Reverse::Address(Ipv6Addr::from(address).into()),
        (true, _) => Reverse::Above,
        (false, _) => Reverse::Missing,
    }
}

/// The reverse zones that together are the pool: one when it ends on an octet, else up to 128 that do.
#[must_use]
pub fn zones_v4(pool: Ipv4Net) -> Vec<String> {
    let n_octets = usize::from(pool.prefix_len().div_ceil(8)).max(1);
    let whole = u8::try_from(n_octets * 8).unwrap_or(32);
    let Ok(parts) = pool.trunc().subnets(whole.max(pool.prefix_len())) else {
        return Vec::new();
    };
    let zone = |part: Ipv4Net| {
        let mut name = String::new();
        for octet in part.network().octets()[..n_octets].iter().rev() {
            let _ = write!(name, "{octet}.");
        }
        name + "in-addr.arpa"
    };
    parts.map(zone).collect()
}

/// The reverse zones that together are the prefix.
#[must_use]
pub fn zones_v6(prefix: Ipv6Net) -> Vec<String> {
    let n_nibbles = usize::from(prefix.prefix_len().div_ceil(4)).max(1);
    let whole = u8::try_from(n_nibbles * 4).unwrap_or(128);
    let Ok(parts) = prefix.trunc().subnets(whole.max(prefix.prefix_len())) else {
        return Vec::new();
    };
    let zone = |part: Ipv6Net| {
        let bits = u128::from(part.network());
        let mut name = String::new();
        for at in (0..n_nibbles).rev() {
            let _ = write!(name, "{:x}.", (bits >> (124 - 4 * at)) & 0xf);
        }
        name + "ip6.arpa"
    };
    parts.map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_name(name: &str, pool: &str) -> Reverse {
        let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
        parse(
            &labels,
            pool.parse().unwrap(),
            "fdab:abab:abab::/48".parse().unwrap(),
        )
    }

    #[test]
    fn reverse_names_of_ipv4() {
        let pool = "10.171.0.0/16";
        let address = |ip: &str| Reverse::Address(ip.parse().unwrap());
        assert_eq!(
            parse_name("7.1.171.10.in-addr.arpa", pool),
            address("10.171.1.7")
        );
        assert_eq!(parse_name("1.171.10.in-addr.arpa", pool), Reverse::Above);
        assert_eq!(parse_name("171.10.in-addr.arpa", pool), Reverse::Above);
        assert_eq!(parse_name("10.in-addr.arpa", pool), Reverse::Foreign);
        assert_eq!(
            parse_name("1.1.172.10.in-addr.arpa", pool),
            Reverse::Foreign
        );
        assert_eq!(
            parse_name("x.7.1.171.10.in-addr.arpa", pool),
            Reverse::Missing
        );
        assert_eq!(
            parse_name("lb._dns-sd._udp.0.1.171.10.in-addr.arpa", pool),
            Reverse::Missing
        );
        assert_eq!(
            parse_name("300.1.171.10.in-addr.arpa", pool),
            Reverse::Missing
        );
        assert_eq!(parse_name("in-addr.arpa", pool), Reverse::Foreign);
        assert_eq!(
            parse_name("31.171.10.in-addr.arpa", "10.171.16.0/20"),
            Reverse::Above
        );
        assert_eq!(
            parse_name("32.171.10.in-addr.arpa", "10.171.16.0/20"),
            Reverse::Foreign
        );
        assert_eq!(
            parse_name("171.10.in-addr.arpa", "10.171.16.0/20"),
            Reverse::Foreign
        );
    }

    #[test]
    fn reverse_names_of_ipv6() {
        let own = "3.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.b.a.b.a.b.a.b.a.b.a.d.f.ip6.arpa";
        let pool = "10.171.0.0/16";
        assert_eq!(
            parse_name(own, pool),
            Reverse::Address("fdab:abab:abab::53".parse().unwrap())
        );
        assert_eq!(
            parse_name("b.a.b.a.b.a.b.a.b.a.d.f.ip6.arpa", pool),
            Reverse::Above
        );
        assert_eq!(parse_name("b.a.d.f.ip6.arpa", pool), Reverse::Foreign);
        assert_eq!(
            parse_name("00.b.a.b.a.b.a.b.a.b.a.d.f.ip6.arpa", pool),
            Reverse::Missing
        );
        assert_eq!(
            parse_name("8.b.d.0.1.0.0.2.ip6.arpa", pool),
            Reverse::Foreign
        );
    }

    #[test]
    fn zones_cover_the_prefixes() {
        assert_eq!(
            zones_v4("10.171.0.0/16".parse().unwrap()),
            ["171.10.in-addr.arpa"]
        );
        let zones = zones_v4("10.171.16.0/20".parse().unwrap());
        assert_eq!(
            (zones.len(), zones[0].as_str()),
            (16, "16.171.10.in-addr.arpa")
        );
        let zones = zones_v6("fdab:abab:abab::/48".parse().unwrap());
        assert_eq!(zones, ["b.a.b.a.b.a.b.a.b.a.d.f.ip6.arpa"]);
        assert_eq!(zones_v6("fdab:abab:aba8::/46".parse().unwrap()).len(), 4);
    }
}
