//! Segmentation offload by hand: super-packets split into wire segments, and segments merged into super-packets.
//! Pure: never touches a device, never allocates per packet, never trusts a header.
//!
//! [`Segments`] and [`complete_checksum`] serve packets read from the TUN, [`Merger`] those written to it.

mod checksum;
mod header;
mod merge;
mod split;
#[cfg(test)]
mod tests;

pub use header::{Gso, OffloadError, VIRTIO_HEADER_LEN, VirtioHeader};
pub use merge::{MAX_PARTS, Merger};
pub use split::{Segments, complete_checksum};
