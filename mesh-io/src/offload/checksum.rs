//! The Internet checksum (RFC 1071), summed in the machine's own byte order.

/// The address, protocol and length fields that a transport checksum covers besides the packet (RFC 9293, 8200).
pub(super) fn pseudo_header(ip: &[u8], protocol: u8, transport_len: usize) -> u64 {
    let is_v4 = ip.first().is_some_and(|byte| byte >> 4 == 4);
    let addrs = if is_v4 { ip.get(12..20) } else { ip.get(8..40) };
    let len = u32::try_from(transport_len).unwrap_or(u32::MAX);
    let acc = sum(0, addrs.unwrap_or_default());
    let acc = sum(acc, &len.to_be_bytes());
    sum(acc, &[0, protocol])
}

/// Adds `data`, which must begin at an even offset of what is summed.
pub(super) fn sum(mut acc: u64, data: &[u8]) -> u64 {
    // Packets are at most 64 KiB long: a 64-bit sum of 32-bit words cannot overflow.
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        acc += u64::from(u32::from_ne_bytes(*word));
    }
    let (pairs, odd) = tail.as_chunks::<2>();
    for pair in pairs {
        acc += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = odd {
        acc += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    acc
}

/// Brings a sum to 16 bits, as the bytes that stand in a packet.
pub(super) fn fold(mut acc: u64) -> [u8; 2] {
    while acc > 0xffff {
        acc = (acc >> 16) + (acc & 0xffff);
    }
    // Just brought below 2^16.
    u16::try_from(acc).unwrap_or(u16::MAX).to_ne_bytes()
}

/// The checksum field for a sum: its complement, and never zero, which means "none" in UDP.
pub(super) fn finish(acc: u64) -> [u8; 2] {
    match fold(acc).map(|byte| !byte) {
        [0, 0] => [0xff, 0xff],
        field => field,
    }
}

/// Whether a sum over a stretch with its checksum field is right.
pub(super) fn is_right(acc: u64) -> bool {
    fold(acc) == [0xff, 0xff]
}
