//! Segmentation offload by hand: super-packets split into wire segments, and segments merged into super-packets.
//! Pure: never touches a device, never allocates per packet, never trusts a header.
//!
//! [`Segments`] and [`complete_checksum`] serve packets read from the TUN, [`Merger`] those written to it.
//! [`leave_to_offload`] and [`is_intact`] serve a TCP/IP stack that stands where the kernel's does.

mod checksum;
mod header;
mod merge;
mod partial;
mod split;
#[cfg(test)]
mod tests;

pub use header::{Gso, OffloadError, VIRTIO_HEADER_LEN, VirtioHeader};
pub use merge::{MAX_PARTS, Merger};
pub use partial::{is_intact, leave_to_offload};
pub use split::{Segments, complete_checksum};
