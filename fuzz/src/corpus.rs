//! Captured packets, which the mutations start from.

use std::sync::LazyLock;

use data_encoding::HEXLOWER;

static PACKETS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let lines = include_str!("../corpus/packets.hex").lines();
    let packets = lines.filter(|line| !line.starts_with('#'));
    let decode = |line: &str| HEXLOWER.decode(line.as_bytes());
    packets
        .map(|line| decode(line).expect("the corpus is hexadecimal"))
        .collect()
});

/// All of them.
#[must_use]
pub fn packets() -> &'static [Vec<u8>] {
    &PACKETS
}
