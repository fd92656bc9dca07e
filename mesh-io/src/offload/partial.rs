//! What a TCP/IP stack in this process leaves to offload, said in the kernel's own way.

use super::checksum;
use super::header::{Gso, OffloadError, VirtioHeader};
use super::split::{TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, put, take};

/// Where the headers of a whole packet without IP options or extension headers are.
struct Layout {
    is_v4: bool,
    protocol: u8,
    transport: usize,
}

fn layout(packet: &[u8]) -> Option<Layout> {
    let (is_v4, transport, protocol) = match *packet.first()? {
        0x45 => (true, 20, *packet.get(9)?),
        byte if byte >> 4 == 6 => (false, 40, *packet.get(6)?),
        _ => return None,
    };
    Some(Layout {
        is_v4,
        protocol,
        transport,
    })
}

/// Makes the offload header for a TCP packet that was built without its checksum, to be cut into segments of `segment_size`
/// bytes of payload if there is more; writes the pseudo-header's sum where the checksum belongs. Any other packet is
/// taken for complete.
///
/// # Errors
/// [`OffloadError::Malformed`] when it is no whole IP packet.
pub fn leave_to_offload(
    packet: &mut [u8],
    segment_size: u16,
) -> Result<VirtioHeader, OffloadError> {
    let layout = layout(packet).ok_or(OffloadError::Malformed)?;
    if layout.protocol != TCP {
        return Ok(VirtioHeader::default());
    }
    let at = layout.transport;
    let [offset] = take(packet, at + 12)?;
    let header_len = at + usize::from(offset >> 4) * 4;
    let transport_len = packet.len() - at;
    let payload_len = packet
        .len()
        .checked_sub(header_len)
        .ok_or(OffloadError::Malformed)?;
    let pseudo = checksum::pseudo_header(packet, TCP, transport_len);
    put(packet, at + TCP_CHECKSUM, checksum::fold(pseudo))?;
    let is_long = payload_len > usize::from(segment_size);
    let short = |value: usize| u16::try_from(value).map_err(|_| OffloadError::Malformed);
    Ok(VirtioHeader {
        needs_checksum: true,
        gso: match (is_long, layout.is_v4) {
            (false, _) => Gso::None,
            (true, true) => Gso::Tcp4,
            (true, false) => Gso::Tcp6,
        },
        header_len: short(header_len)?,
        gso_size: if is_long { segment_size } else { 0 },
        checksum_start: short(at)?,
        checksum_offset: short(TCP_CHECKSUM)?,
        ..VirtioHeader::default()
    })
}

/// Whether the checksums of a packet are right: that of its IPv4 header, and that of TCP or UDP where it has one. A
/// packet of another protocol, or with options before it, is left to whoever reads that.
#[must_use]
pub fn is_intact(packet: &[u8]) -> bool {
    let Some(layout) = layout(packet) else {
        return true;
    };
    let Some((ip, transport)) = packet.split_at_checked(layout.transport) else {
        return false;
    };
    if layout.is_v4 && !checksum::is_right(checksum::sum(0, ip)) {
        return false;
    }
    let has_checksum = match layout.protocol {
        TCP => true,
        UDP => take::<2>(transport, UDP_CHECKSUM).is_ok_and(|field| field != [0, 0]),
        _ => false,
    };
    let pseudo = checksum::pseudo_header(ip, layout.protocol, transport.len());
    !has_checksum || checksum::is_right(checksum::sum(pseudo, transport))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Segments, complete_checksum};

    /// A TCP packet with a right IP header and no TCP checksum.
    fn packet(is_v4: bool, payload_len: usize) -> Vec<u8> {
        let at = if is_v4 { 20 } else { 40 };
        let mut packet = vec![0; at + 20];
        let len = u16::try_from(20 + payload_len).unwrap();
        if is_v4 {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            packet[8] = 64;
            packet[9] = TCP;
            packet[12..20].copy_from_slice(&[10, 77, 1, 0, 10, 77, 1, 1]);
            let sum = checksum::fold(checksum::sum(0, &packet[..20])).map(|byte| !byte);
            packet[10..12].copy_from_slice(&sum);
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet[6] = TCP;
            packet[8..40].fill(0xfd);
        }
        packet[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
        packet[at + 12] = 5 << 4;
        packet[at + 13] = 0x18;
        packet.extend((0..payload_len).map(|at| at.to_le_bytes()[0]));
        packet
    }

    #[test]
    fn what_is_left_to_offload_comes_out_right() {
        for is_v4 in [true, false] {
            for payload_len in [0, 1, 1240, 1241, 60_000] {
                let mut packet = packet(is_v4, payload_len);
                assert!(!is_intact(&packet), "{is_v4} {payload_len}");
                let header = leave_to_offload(&mut packet, 1240).unwrap();
                assert_eq!(header.gso != Gso::None, payload_len > 1240);
                if header.gso == Gso::None {
                    complete_checksum(&header, &mut packet).unwrap();
                    assert!(is_intact(&packet));
                    continue;
                }
                let mut segments = Segments::new(&header, &packet).unwrap();
                let (mut room, mut n_bytes) = ([0; 1400], 0);
                while let Some(len) = segments.write_next(&mut room).unwrap() {
                    assert!(is_intact(&room[..len]));
                    n_bytes += len - usize::from(header.header_len);
                }
                assert_eq!(n_bytes, payload_len);
            }
        }
    }

    #[test]
    fn a_broken_packet_is_not_intact_and_no_bytes_upset_it() {
        let mut packet = packet(true, 100);
        let header = leave_to_offload(&mut packet, 1240).unwrap();
        complete_checksum(&header, &mut packet).unwrap();
        for at in 12..packet.len() {
            packet[at] ^= 0x10;
            assert!(!is_intact(&packet), "{at}");
            packet[at] ^= 0x10;
        }
        for len in 0..60 {
            let _ = is_intact(&packet[..len]);
            let _ = leave_to_offload(&mut packet[..len].to_vec(), 1240);
        }
        assert!(leave_to_offload(&mut [], 1240).is_err());
        let mut ping = vec![0; 28];
        ping[0] = 0x45;
        ping[9] = 1;
        assert_eq!(
            leave_to_offload(&mut ping, 1240),
            Ok(VirtioHeader::default())
        );
    }
}
