//! Which IPv4 address a new node gets. Pure: the caller keeps the high-water mark, and keeps it for ever.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The first addresses of a pool stay free: the service address is one of them.
pub(crate) const N_RESERVED: u32 = 256;

/// Whether a pool has room for a mesh.
pub(crate) fn is_usable(pool: Ipv4Net) -> bool {
    (8..=22).contains(&pool.prefix_len())
}

/// The next address that was never given out, and the mark to keep after giving it out.
///
/// Addresses that end in 0 or 255 are left out: too much software takes them for networks and broadcasts.
pub(crate) fn allocate(pool: Ipv4Net, next: u32) -> Option<(Ipv4Addr, u32)> {
    let base = u32::from(pool.network());
    let last = u32::from(pool.broadcast());
    let mut offset = next.max(N_RESERVED);
    loop {
        let address = base.checked_add(offset).filter(|address| *address < last)?;
        offset += 1;
        if !matches!(address & 0xff, 0 | 0xff) {
            return Some((Ipv4Addr::from(address), offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_address_is_given_twice(prefix in 8_u8..=22, octet: u8, start in 0_u32..2000, n in 1_usize..900) {
            let pool = Ipv4Net::new(Ipv4Addr::new(10, octet, 0, 0), prefix).unwrap().trunc();
            let mut next = start;
            let mut seen = BTreeSet::new();
            for _ in 0..n {
                let Some((address, after)) = allocate(pool, next) else { break };
                prop_assert!(after > next);
                prop_assert!(pool.contains(&address));
                prop_assert!(u32::from(address) - u32::from(pool.network()) >= N_RESERVED);
                prop_assert!(seen.insert(address));
                next = after;
            }
        }
    }

    #[test]
    fn a_full_pool_says_so() {
        let pool: Ipv4Net = "10.7.0.0/22".parse().unwrap();
        let mut next = 0;
        let mut n_given = 0;
        while let Some((_, after)) = allocate(pool, next) {
            next = after;
            n_given += 1;
        }
        assert_eq!(n_given, 3 * 254);
        assert!(allocate(pool, u32::MAX).is_none());
    }

    #[test]
    fn a_pool_must_have_room() {
        assert!(is_usable("10.7.0.0/16".parse().unwrap()));
        assert!(!is_usable("10.7.0.0/24".parse().unwrap()));
        assert!(!is_usable("0.0.0.0/0".parse().unwrap()));
    }
}
