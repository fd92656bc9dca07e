//! What a packet says that opens a connection. Pure.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// Who opens a connection, and to which port, if the packet does that.
pub(super) fn opening(packet: &[u8]) -> Option<(SocketAddr, u16)> {
    let first = *packet.first()?;
    let (src, at) = match first >> 4 {
        4 if *packet.get(9)? == TCP => {
            let src: [u8; 4] = *packet.get(12..)?.first_chunk()?;
            (IpAddr::from(src), usize::from(first & 0xf) * 4)
        }
        6 if *packet.get(6)? == TCP => {
            let src: [u8; 16] = *packet.get(8..)?.first_chunk()?;
            (IpAddr::from(src), 40)
        }
        _ => return None,
    };
    let [s0, s1, d0, d1] = *packet.get(at..)?.first_chunk()?;
    let flags = *packet.get(at + 13)?;
    let is_opening = flags & (SYN | ACK | RST) == SYN;
    is_opening.then(|| {
        let from = SocketAddr::new(src, u16::from_be_bytes([s0, s1]));
        (from, u16::from_be_bytes([d0, d1]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_syn_opens() {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&[10, 77, 1, 9]);
        packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x2c, 0xaa]);
        for (flags, is_opening) in [
            (SYN, true),
            (SYN | ACK, false),
            (ACK, false),
            (SYN | RST, false),
        ] {
            packet[33] = flags;
            let expected = is_opening.then(|| ("10.77.1.9:40000".parse().unwrap(), 11_434));
            assert_eq!(opening(&packet), expected, "{flags:#x}");
        }
        packet[33] = SYN;
        for len in 0..34 {
            assert_eq!(opening(&packet[..len]), None, "{len}");
        }
        packet[9] = 17;
        assert_eq!(opening(&packet), None);
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6] = TCP;
        packet[8..24].fill(0xfd);
        packet[42..44].copy_from_slice(&80_u16.to_be_bytes());
        packet[53] = SYN;
        let (from, port) = opening(&packet).unwrap();
        assert_eq!(
            (from.ip(), port),
            (
                "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd".parse().unwrap(),
                80
            )
        );
    }
}
