//! Fills a mesh: `crowd AUTH_KEY TARGET OWN_IP N_ACTIVE N_IDLE`.
//!
//! Registers made-up machines. The active ones are WireGuard ends of their own, with a UDP socket each, that ask the node
//! named TARGET for an ICMP echo through their tunnel five times a second; the idle ones only are in the map. Prints each
//! second how many members had an answer, and how many answers there were.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use e2e::control::{Client, random_bytes};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::RegisterResponse;
use mesh_proto::id::NodeId;
use mesh_proto::key::{MachinePrivateKey, NodePrivateKey};
use mesh_proto::netmap::Netmap;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const N_AT_ONCE: usize = 16;
const ASK_EACH: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(250);
const REPORT_EACH: Duration = Duration::from_secs(1);
const MAX_DATAGRAM: usize = 2048;
/// Where an idle member says that it is; nobody listens there.
const DISCARD_PORT: u16 = 9;

/// An active member.
struct Member {
    registered: RegisterResponse,
    secret: [u8; 32],
    socket: UdpSocket,
}

/// Whom the active members talk to.
struct Target {
    key: PublicKey,
    endpoint: SocketAddr,
    ipv4: Ipv4Addr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let auth_key: Arc<AuthKey> = Arc::new(next("an auth key")?.parse()?);
    let target_name = next("the name of the target")?;
    let own_ip: IpAddr = next("the own address")?.parse()?;
    let n_active: usize = next("how many are active")?.parse()?;
    let n_idle: usize = next("how many are idle")?.parse()?;

    register_idle(&auth_key, own_ip, n_idle).await?;
    let mut members = Vec::new();
    let mut map_reader = None;
    for number in 0..n_active {
        let (member, client) = register_active(&auth_key, own_ip, number).await?;
        map_reader = Some((client, member.registered.clone()));
        members.push(member);
    }
    let Some((client, registered)) = map_reader else {
        println!("{}", json!({ "members": 0, "answers": 0 }));
        // They are members and do nothing, for as long as they are wanted.
        return std::future::pending().await;
    };
    let (target, addrs) = meet(client, registered, &target_name).await?;

    let target = Arc::new(target);
    let mut counts = Vec::new();
    let mut tasks = JoinSet::new();
    for (member, index) in members.into_iter().zip(0..) {
        let ipv4 = addrs.get(&member.registered.node_id);
        let ipv4 = *ipv4.context("a member is not in the map")?;
        let count = Arc::new(AtomicU64::new(0));
        counts.push(Arc::clone(&count));
        tasks.spawn(Link::new(index, member, ipv4, Arc::clone(&target), count).run());
    }
    let mut report = tokio::time::interval(REPORT_EACH);
    loop {
        tokio::select! {
            ended = tasks.join_next() => ended.context("nobody is active")???,
            _ = report.tick() => {
                let answers: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
                let n_members = answers.iter().filter(|count| **count > 0).count();
                println!("{}", json!({ "members": n_members, "answers": answers.iter().sum::<u64>() }));
            }
        }
    }
}

async fn register_idle(auth_key: &Arc<AuthKey>, own_ip: IpAddr, n_idle: usize) -> Result<()> {
    let dials = Arc::new(Semaphore::new(N_AT_ONCE));
    let mut tasks = JoinSet::new();
    for number in 0..n_idle {
        let (auth_key, dials) = (Arc::clone(auth_key), Arc::clone(&dials));
        tasks.spawn(async move {
            let _permit = dials.acquire().await?;
            let name = format!("idle{number}");
            let (mut client, _) = register(&auth_key, &name, random_bytes()?).await?;
            let endpoint = SocketAddr::new(own_ip, DISCARD_PORT);
            client.report_endpoint(endpoint).await
        });
    }
    while let Some(registered) = tasks.join_next().await {
        registered??;
    }
    Ok(())
}

async fn register_active(
    auth_key: &AuthKey,
    own_ip: IpAddr,
    number: usize,
) -> Result<(Member, Client)> {
    let secret = random_bytes()?;
    let socket = UdpSocket::bind((own_ip, 0)).await?;
    let (mut client, registered) = register(auth_key, &format!("active{number}"), secret).await?;
    client.report_endpoint(socket.local_addr()?).await?;
    let member = Member {
        registered,
        secret,
        socket,
    };
    Ok((member, client))
}

async fn register(
    auth_key: &AuthKey,
    name: &str,
    secret: [u8; 32],
) -> Result<(Client, RegisterResponse)> {
    let machine_key = MachinePrivateKey::from_bytes(&random_bytes()?);
    let mut client = Client::connect(auth_key, machine_key).await?;
    let node_key = NodePrivateKey::from_bytes(secret).public();
    let registered = client.register(auth_key, node_key, name).await;
    Ok((client, registered.map_err(|refusal| refusal.of(name))?))
}

/// Reads one member's map until the target is reachable in it; gives the addresses of all.
async fn meet(
    client: Client,
    registered: RegisterResponse,
    target_name: &str,
) -> Result<(Target, BTreeMap<NodeId, Ipv4Addr>)> {
    let mut stream = client.map_stream(registered).await?;
    loop {
        let map = stream.next().await?;
        let Some(target) = find(map, target_name) else {
            continue;
        };
        let peers = map.peers.iter().map(|(id, peer)| (*id, peer.ipv4));
        return Ok((
            target,
            peers.chain([(map.node.id, map.node.ipv4)]).collect(),
        ));
    }
}

fn find(map: &Netmap, name: &str) -> Option<Target> {
    let peer = map.peers.values().find(|peer| peer.name.as_str() == name)?;
    let is_underlay = |endpoint: &&SocketAddr| matches!(endpoint.ip(), IpAddr::V4(ip) if ip.octets().starts_with(&[192, 168]));
    Some(Target {
        key: PublicKey::from(*peer.node_key.as_bytes()),
        endpoint: *peer.endpoints.iter().find(is_underlay)?,
        ipv4: peer.ipv4,
    })
}

/// An active member's tunnel.
struct Link {
    tunnel: Tunn,
    socket: UdpSocket,
    target: Arc<Target>,
    question: Vec<u8>,
    n_answers: Arc<AtomicU64>,
}

impl Link {
    fn new(
        index: u32,
        member: Member,
        ipv4: Ipv4Addr,
        target: Arc<Target>,
        n_answers: Arc<AtomicU64>,
    ) -> Self {
        let secret = StaticSecret::from(member.secret);
        Self {
            tunnel: Tunn::new(secret, target.key, None, None, index, None),
            socket: member.socket,
            question: echo_request(ipv4, target.ipv4),
            target,
            n_answers,
        }
    }

    async fn run(mut self) -> Result<()> {
        let mut ask = tokio::time::interval(ASK_EACH);
        let mut tick = tokio::time::interval(TICK);
        // Asking late is better than asking twice.
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut datagram, mut out) = ([0; MAX_DATAGRAM], [0; MAX_DATAGRAM]);
        loop {
            tokio::select! {
                _ = ask.tick() => {
                    let sealed = self.tunnel.encapsulate(&self.question, &mut out);
                    self.send(sealed).await?;
                }
                _ = tick.tick() => {
                    let due = self.tunnel.update_timers(&mut out);
                    self.send(due).await?;
                }
                received = self.socket.recv_from(&mut datagram) => {
                    let (len, from) = received?;
                    let bytes = datagram.get(..len).unwrap_or_default();
                    self.receive(from, bytes, &mut out).await?;
                }
            }
        }
    }

    async fn receive(&mut self, from: SocketAddr, bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let mut result = self.tunnel.decapsulate(Some(from.ip()), bytes, out);
        // What waited for the session comes out by asking again with nothing.
        while let TunnResult::WriteToNetwork(reply) = result {
            self.socket.send_to(reply, self.target.endpoint).await?;
            result = self.tunnel.decapsulate(None, &[], out);
        }
        if let TunnResult::WriteToTunnelV4(packet, _) = result
            && is_echo_reply(packet)
        {
            self.n_answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn send(&self, result: TunnResult<'_>) -> Result<()> {
        if let TunnResult::WriteToNetwork(bytes) = result {
            self.socket.send_to(bytes, self.target.endpoint).await?;
        }
        Ok(())
    }
}

fn echo_request(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet.splice(10..12, sum);
    let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = checksum(&echo);
    echo.splice(2..4, sum);
    packet.extend(echo);
    packet
}

fn is_echo_reply(packet: &[u8]) -> bool {
    let [version, .., 1] = packet.get(..10).unwrap_or_default() else {
        return false;
    };
    packet.get(usize::from(version & 0xf) * 4) == Some(&0)
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [_, _, high, low] = folded.to_be_bytes();
    [!high, !low]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{checksum, echo_request, is_echo_reply};

    #[test]
    fn a_request_has_right_checksums_and_is_no_reply() {
        let request = echo_request(Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4));
        assert_eq!(checksum(&request[..20]), [0, 0]);
        assert_eq!(checksum(&request[20..]), [0, 0]);
        assert!(!is_echo_reply(&request));
        let mut reply = request;
        reply[20] = 0;
        assert!(is_echo_reply(&reply));
        assert!(!is_echo_reply(&[]));
    }
}
