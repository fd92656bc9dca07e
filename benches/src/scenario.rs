//! What is counted: each step of the way that a packet takes, by itself.

use std::hint::black_box;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use mesh_engine::{
    Admit, ChecksumState, Inbound, Opened, Outbound, SEAL_BUFFER_MIN, SEAL_OVERHEAD, Sealed,
};
use mesh_io::TunCapabilities;
use mesh_io::buf::Arena;
use mesh_io::offload::{Gso, Merger, Segments, VirtioHeader};

use crate::pair::Pair;

/// The most steps that a scenario is made ready for.
pub(crate) const N_STEPS_MAX: u32 = 72;

/// Packets of a step that goes by batches.
const N_BATCH: u32 = 44;
/// A full packet of a tunnel with an MTU of 1420, and a small one with 200 bytes of payload.
const FULL: usize = 1420;
const SMALL: usize = 228;
const IP_LEN: usize = 20;
/// A TCP header with the timestamps that Linux sends.
const TCP_LEN: usize = 32;
const HEADERS: usize = IP_LEN + TCP_LEN;

/// One step, to be repeated; fails when what it counts did not happen.
type Step = Box<dyn FnMut() -> Result<()>>;

/// Something to count.
pub(crate) struct Scenario {
    /// What it is called in the baseline.
    pub(crate) name: &'static str,
    /// How many packets a step takes.
    pub(crate) n_packets: u32,
    setup: fn() -> Result<Step>,
}

const fn batch(name: &'static str, setup: fn() -> Result<Step>) -> Scenario {
    Scenario {
        name,
        n_packets: N_BATCH,
        setup,
    }
}

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    batch("split", split),
    batch("outbound", outbound),
    batch("encapsulate", || encapsulate(FULL)),
    batch("encapsulate_200", || encapsulate(SMALL)),
    batch("inbound", inbound),
    batch("decapsulate", || decapsulate(FULL)),
    batch("decapsulate_200", || decapsulate(SMALL)),
    batch("admit", || admit(1)),
    batch("admit_mixed", || admit(2)),
    batch("merge", merge),
];

/// Runs a scenario, as valgrind is told to.
///
/// # Errors
/// When there is no such scenario, or it does not do what it should.
pub(crate) fn run(name: &str, n_steps: u32) -> Result<()> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
    let scenario = scenario.with_context(|| {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        format!("no scenario {name}; there are {}", names.join(", "))
    })?;
    ensure!(n_steps <= N_STEPS_MAX, "at most {N_STEPS_MAX} steps");
    let mut step = (scenario.setup)()?;
    for _ in 0..n_steps {
        step()?;
    }
    Ok(())
}

/// A TCP packet of `len` bytes over IPv4, its checksums left for offload.
pub(crate) fn tcp(addrs: (Ipv4Addr, Ipv4Addr), seq: u32, len: usize) -> Vec<u8> {
    let total = u16::try_from(len).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(addrs.0.octets());
    packet.extend(addrs.1.octets());
    packet.extend(5_201_u16.to_be_bytes());
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.resize(len, 0x5a);
    packet
}

fn super_packet(addrs: (Ipv4Addr, Ipv4Addr)) -> (VirtioHeader, Vec<u8>) {
    let n_segments = N_BATCH as usize;
    let header = VirtioHeader {
        needs_checksum: true,
        gso: Gso::Tcp4,
        header_len: HEADERS as u16,
        gso_size: (FULL - HEADERS) as u16,
        checksum_start: IP_LEN as u16,
        checksum_offset: 16,
        ..VirtioHeader::default()
    };
    let len = HEADERS + n_segments * (FULL - HEADERS);
    (header, tcp(addrs, 1, len))
}

fn split() -> Result<Step> {
    let addrs = (Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 1, 2));
    let (header, packet) = super_packet(addrs);
    let mut out = vec![0; FULL];
    Ok(Box::new(move || {
        let mut segments = Segments::new(&header, black_box(&packet))?;
        let mut n_segments = 0;
        while segments.write_next(black_box(&mut out))?.is_some() {
            n_segments += 1;
        }
        ensure!(n_segments == N_BATCH, "{n_segments} segments");
        Ok(())
    }))
}

fn merge() -> Result<Step> {
    let addrs = (Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 1, 2));
    let (header, packet) = super_packet(addrs);
    let mut arena = Arena::new(N_BATCH as usize * FULL);
    let mut segments = Segments::new(&header, &packet)?;
    let mut ranges = Vec::new();
    while let Some(len) = segments.write_next(arena.spare())? {
        ranges.push(arena.commit(len));
    }
    let first = arena.filled().get(..HEADERS).context("a header")?.to_vec();
    let capabilities = TunCapabilities {
        has_header: true,
        has_tcp: true,
        has_udp: true,
    };
    let mut merger = Merger::new(capabilities, N_BATCH as usize);
    Ok(Box::new(move || {
        // The merger writes into the headers of the first packet only.
        let place = arena.filled_mut().get_mut(..HEADERS).context("a header")?;
        place.copy_from_slice(&first);
        for range in &ranges {
            merger.push(arena.filled(), range.clone());
        }
        let mut n_written = 0;
        merger.flush(arena.filled_mut(), |header, parts| {
            black_box((header, parts));
            n_written += 1;
        });
        ensure!(n_written == 1, "merged into {n_written} packets");
        Ok(())
    }))
}

fn outbound() -> Result<Step> {
    let pair = Pair::new()?;
    let mut packet = tcp((pair.a.ipv4, pair.b.ipv4), 1, FULL);
    Ok(Box::new(move || {
        for _ in 0..N_BATCH {
            let outbound =
                pair.a
                    .plane
                    .outbound(pair.now, black_box(&mut packet), ChecksumState::Partial);
            ensure!(matches!(outbound, Outbound::Peer(_)), "{outbound:?}");
        }
        Ok(())
    }))
}

fn encapsulate(len: usize) -> Result<Step> {
    let pair = Pair::new()?;
    let packet = tcp((pair.a.ipv4, pair.b.ipv4), 1, len);
    let mut out = vec![0; (len + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)];
    Ok(Box::new(move || {
        let mut sealer = pair.b_of_a.seal();
        for _ in 0..N_BATCH {
            let sealed = sealer.seal(black_box(&packet), black_box(&mut out));
            ensure!(matches!(sealed, Sealed::Datagram(_)), "{sealed:?}");
        }
        black_box(sealer.finish());
        Ok(())
    }))
}

/// Sealed packets for all steps.
fn sealed(pair: &Pair, len: usize) -> Result<Vec<Vec<u8>>> {
    let packet = tcp((pair.a.ipv4, pair.b.ipv4), 1, len);
    let mut sealer = pair.b_of_a.seal();
    let datagrams = (0..N_STEPS_MAX * N_BATCH).map(|_| {
        let mut out = vec![0; (len + SEAL_OVERHEAD).max(SEAL_BUFFER_MIN)];
        let Sealed::Datagram(len) = sealer.seal(&packet, &mut out) else {
            anyhow::bail!("not sealed");
        };
        out.truncate(len);
        Ok(out)
    });
    datagrams.collect()
}

fn inbound() -> Result<Step> {
    let pair = Pair::new()?;
    let datagrams = sealed(&pair, SMALL)?;
    let datagram = datagrams.into_iter().next().context("no datagram")?;
    Ok(Box::new(move || {
        for _ in 0..N_BATCH {
            let inbound = pair.b.plane.inbound(pair.now, black_box(&datagram));
            ensure!(matches!(inbound, Inbound::Data(_)), "{inbound:?}");
        }
        Ok(())
    }))
}

fn decapsulate(len: usize) -> Result<Step> {
    let pair = Pair::new()?;
    let datagrams = sealed(&pair, len)?;
    let mut batches = 0..;
    let mut out = vec![0; len + SEAL_OVERHEAD];
    Ok(Box::new(move || {
        let n_batch = N_BATCH as usize;
        let start = batches.next().unwrap_or(0) * n_batch;
        let batch = datagrams.get(start..start + n_batch);
        let mut opener = pair.a_of_b.open();
        for datagram in batch.context("no datagrams are left")? {
            let opened = opener.open(pair.a.endpoint, black_box(datagram), black_box(&mut out));
            ensure!(matches!(opened, Opened::Packet(_)), "{opened:?}");
        }
        black_box(opener.finish());
        Ok(())
    }))
}

/// A burst of `n_flows` flows in turn: with one, all but the first packet are judged by comparison.
fn admit(n_flows: u16) -> Result<Step> {
    let pair = Pair::new()?;
    let packet = tcp((pair.a.ipv4, pair.b.ipv4), 1, FULL);
    let mut packets: Vec<_> = (0..n_flows)
        .map(|flow| {
            let mut packet = packet.clone();
            packet[IP_LEN..IP_LEN + 2].copy_from_slice(&(5_201 + flow).to_be_bytes());
            packet
        })
        .collect();
    let n_rounds = N_BATCH / u32::from(n_flows.max(1));
    Ok(Box::new(move || {
        let mut admitter = pair.b.plane.admitter(pair.now, &pair.a_of_b);
        for _ in 0..n_rounds {
            for packet in &mut packets {
                let admit = admitter.admit(black_box(packet));
                ensure!(matches!(admit, Admit::Deliver), "{admit:?}");
            }
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::{N_STEPS_MAX, SCENARIOS, run};

    #[test]
    fn each_scenario_does_what_it_counts() {
        for scenario in SCENARIOS {
            run(scenario.name, N_STEPS_MAX).unwrap();
        }
        assert!(run("nothing", 1).is_err());
    }
}
