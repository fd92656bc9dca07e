//! The data side: what happens to each packet, shared by all packet threads, without locks or allocation.

use std::time::Instant;

use crate::event::{Admit, ChecksumState, DropReason, Inbound, Outbound};
use crate::peer::PeerHandle;

/// The part of the mesh that each packet passes.
#[derive(Debug)]
pub struct Plane {}

impl Plane {
    /// Decides on one IP packet, or one super-packet with its headers intact, read from the TUN.
    pub fn outbound(
        &self,
        _now: Instant,
        _packet: &mut [u8],
        _checksum: ChecksumState,
    ) -> Outbound {
        Outbound::Drop(DropReason::NoRoute)
    }

    /// Finds where a datagram belongs.
    #[must_use]
    pub fn inbound(&self, _datagram: &[u8]) -> Inbound {
        Inbound::Drop(DropReason::NotOurs)
    }

    /// Checks an opened packet: source, destination, packet filter; translates service ports in place.
    pub fn admit(&self, _now: Instant, _peer: &PeerHandle, _packet: &mut [u8]) -> Admit {
        Admit::Drop(DropReason::Filtered)
    }
}
