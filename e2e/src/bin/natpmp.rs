//! The part of a home router that maps ports when asked by NAT-PMP (RFC 6886): `natpmp INNER-IP OUTER-IP`, on a router that
//! [`e2e::net::nat`] made. It knows no PCP, as most that are old.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

const PORT: u16 = 5351;
const RESPONSE: u8 = 128;
const UNSUPPORTED_VERSION: u16 = 1;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut ip = || -> Result<Ipv4Addr> {
        let text = args.next().context("usage: natpmp INNER-IP OUTER-IP")?;
        Ok(text.parse()?)
    };
    let (inner, outer) = (ip()?, ip()?);
    let socket = UdpSocket::bind((inner, PORT))?;
    let start = Instant::now();
    let mut request = [0; 1100];
    loop {
        let (len, from) = socket.recv_from(&mut request)?;
        let request = request.get(..len).unwrap_or_default();
        let epoch_s = u32::try_from(start.elapsed().as_secs())?;
        if let Some(answer) = answer(request, from, outer, epoch_s)? {
            socket.send_to(&answer, from)?;
        }
    }
}

fn answer(
    request: &[u8],
    from: SocketAddr,
    outer: Ipv4Addr,
    epoch_s: u32,
) -> Result<Option<Vec<u8>>> {
    let [version, opcode, rest @ ..] = request else {
        return Ok(None);
    };
    let head = |result: u16| {
        let mut answer = vec![0, RESPONSE | opcode];
        answer.extend(result.to_be_bytes());
        answer.extend(epoch_s.to_be_bytes());
        answer
    };
    Ok(match (version, opcode, rest) {
        (0, 0, _) => {
            let mut answer = head(0);
            answer.extend(outer.octets());
            Some(answer)
        }
        (0, 1, [_, _, a, b, _, _, lifetime @ ..]) => {
            let port = u16::from_be_bytes([*a, *b]);
            map(port, from, lifetime != [0; 4])?;
            let mut answer = head(0);
            answer.extend(port.to_be_bytes());
            answer.extend(port.to_be_bytes());
            answer.extend(lifetime);
            Some(answer)
        }
        (0, ..) => None,
        _ => Some(head(UNSUPPORTED_VERSION)),
    })
}

/// One mapping at a time, of a port to itself.
fn map(port: u16, to: SocketAddr, is_wanted: bool) -> Result<()> {
    let mut script = "flush chain ip nat inward\n".to_owned();
    if is_wanted {
        let to = to.ip();
        script += &format!("add rule ip nat inward iifname out udp dport {port} dnat to {to}\n");
    }
    let status = Command::new("nft").arg(&script).status()?;
    ensure!(status.success(), "nft: {script}");
    Ok(())
}
