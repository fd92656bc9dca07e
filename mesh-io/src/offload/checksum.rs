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
pub(super) fn sum(acc: u64, data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= WIDE_FROM && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has AVX2.
        return unsafe { wide::sum(acc, data) };
    }
    plain_sum(acc, data)
}

/// From this length on it pays to look for wide registers.
#[cfg(target_arch = "x86_64")]
const WIDE_FROM: usize = 64;

fn plain_sum(mut acc: u64, data: &[u8]) -> u64 {
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

/// The same sum in wide registers: every payload byte passes here once at each end.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
    };

    #[target_feature(enable = "avx2")]
    pub(super) fn sum(acc: u64, data: &[u8]) -> u64 {
        let zero = _mm256_setzero_si256();
        // Independent sums, so that additions need not wait for each other; named ones, because an array of them would
        // live in memory.
        let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
        let (blocks, tail) = data.as_chunks::<64>();
        for block in blocks {
            let (low, high) = block.split_at(32);
            // SAFETY: both halves are 32 bytes long, and the load takes any alignment.
            let (low, high) = unsafe {
                (
                    _mm256_loadu_si256(low.as_ptr().cast()),
                    _mm256_loadu_si256(high.as_ptr().cast()),
                )
            };
            // 32-bit words widened to 64 bits: their order does not matter to a sum.
            a = _mm256_add_epi64(a, _mm256_unpacklo_epi32(low, zero));
            b = _mm256_add_epi64(b, _mm256_unpackhi_epi32(low, zero));
            c = _mm256_add_epi64(c, _mm256_unpacklo_epi32(high, zero));
            d = _mm256_add_epi64(d, _mm256_unpackhi_epi32(high, zero));
        }
        let total = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
        super::plain_sum(acc + lanes(total), tail)
    }

    #[target_feature(enable = "avx2")]
    fn lanes(sums: __m256i) -> u64 {
        let mut lanes = [0_u64; 4];
        // SAFETY: the array is 32 bytes long, and the store takes any alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
        lanes.iter().sum()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 word by word.
    fn reference(data: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap().to_be_bytes()
    }

    #[test]
    fn sums_of_all_lengths_and_alignments_are_right() {
        let mut word = 1_u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            word.to_be_bytes()[0]
        })
        .take(70_000)
        .collect();
        let lens = (0..400).chain([1_279, 1_280, 1_281, 65_535]);
        for len in lens {
            for start in [0, 1, 2, 31] {
                let data = &bytes[start..start + len];
                assert_eq!(fold(sum(0, data)), reference(data), "{start} {len}");
                assert_eq!(fold(plain_sum(0, data)), reference(data), "{start} {len}");
            }
        }
        let ones = [0xff; 65_535];
        assert_eq!(fold(sum(0, &ones)), reference(&ones));
    }
}
