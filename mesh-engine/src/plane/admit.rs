//! Judges the opened packets of a batch: the first of each flow in full, those that follow it by comparison.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::Guard;

use super::{Local, Plane, seconds};
use crate::event::{Admit, ChecksumState, DropReason, PlaneEvent};
use crate::filter::{self, Rules};
use crate::fit;
use crate::packet::{Headers, TCP, UDP, Upper};
use crate::peer::PeerHandle;

/// What one peer may send, as of the batch at hand.
pub struct Admitter<'a> {
    plane: &'a Plane,
    peer: &'a PeerHandle,
    now: Instant,
    now_s: u32,
    local: Guard<Option<Arc<Local>>>,
    rules: Guard<Arc<Rules>>,
    /// The flow of the packet that was admitted last.
    last: Option<(FlowKey, Headers)>,
}

impl<'a> Admitter<'a> {
    pub(super) fn new(plane: &'a Plane, now: Instant, peer: &'a PeerHandle) -> Self {
        let now_ms = plane.shared.set_clock(now);
        Self {
            plane,
            peer,
            now,
            now_s: seconds(now_ms),
            local: plane.local.load(),
            rules: peer.rules(),
            last: None,
        }
    }

    /// Checks an opened packet: source, destination, packet filter; translates service ports in place.
    pub fn admit(&mut self, packet: &mut [u8]) -> Admit {
        match self.try_admit(packet) {
            Ok(admit) => admit,
            Err(reason) => {
                self.plane.shared.count_drop(reason);
                Admit::Drop(reason)
            }
        }
    }

    fn try_admit(&mut self, packet: &mut [u8]) -> Result<Admit, DropReason> {
        if self.peer.is_gone() {
            return Err(DropReason::PeerGone);
        }
        let local = self.local.as_ref().ok_or(DropReason::NoRoute)?;
        let key = FlowKey::of(packet);
        if let (Some(key), Some((last, headers))) = (&key, &self.last)
            && key == last
        {
            local.services.unmask(packet, headers)?;
            return Ok(Admit::Deliver);
        }
        let headers = Headers::parse(packet).ok_or(DropReason::Malformed)?;
        if !self.peer.owns(headers.src) {
            return Err(DropReason::WrongSource);
        }
        if !local.is_own(headers.dst) {
            return Err(DropReason::WrongDestination);
        }
        if let Upper::EchoReply { ident } = headers.upper
            && let Some(token) = self.plane.echo.token_of(ident, packet, &headers)
        {
            return Ok(Admit::Consumed(PlaneEvent::Pong {
                peer: self.peer.clone(),
                token,
                at: self.now,
            }));
        }
        if local.services.is_hidden(&headers) {
            return Err(DropReason::Filtered);
        }
        if !filter::admits(&self.plane.flows, &self.rules, &headers, packet, self.now_s) {
            return Err(DropReason::Filtered);
        }
        local.services.unmask(packet, &headers)?;
        if fit::is_syn(packet, &headers)
            && let Some(mtu) = self.peer.settled_mtu()
        {
            // What this machine may send back; the peer sees to its own direction.
            fit::clamp_mss(packet, &headers, mtu, ChecksumState::Complete);
        }
        self.last = key.map(|key| (key, headers));
        Ok(Admit::Deliver)
    }
}

impl fmt::Debug for Admitter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admitter").field(self.peer).finish()
    }
}

/// What tells the flow of a whole TCP or UDP packet with plain headers; any other packet has none and is judged in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FlowKey {
    first: u8,
    protocol: u8,
    /// Addresses (the last 8 bytes of them for IPv4) and ports.
    rest: [u8; 36],
}

/// The shortest TCP header; nothing shorter is taken for whole.
const UPPER_MIN: usize = 20;
/// Where TCP has its flags.
const FLAGS_AT: usize = 13;
const SYN: u8 = 0x02;

impl FlowKey {
    fn of(packet: &[u8]) -> Option<Self> {
        let mut rest = [0; 36];
        let flags;
        let (protocol, from) = match *packet.first()? {
            0x45 => {
                let header: &[u8; 20 + UPPER_MIN] = packet.first_chunk()?;
                // More fragments, or not the first.
                if header[6] & 0x3f != 0 || header[7] != 0 {
                    return None;
                }
                rest[..12].copy_from_slice(&header[12..24]);
                flags = header[20 + FLAGS_AT];
                (header[9], 0x45)
            }
            byte if byte >> 4 == 6 => {
                let header: &[u8; 40 + UPPER_MIN] = packet.first_chunk()?;
                rest.copy_from_slice(&header[8..44]);
                flags = header[40 + FLAGS_AT];
                (header[6], 0x60)
            }
            _ => return None,
        };
        // A SYN is looked at for more than its flow.
        let is_plain = match protocol {
            TCP => flags & SYN == 0,
            UDP => true,
            _ => false,
        };
        is_plain.then_some(Self {
            first: from,
            protocol,
            rest,
        })
    }
}
