//! Where foreign names go: to the servers that the system had before, one bounded question at a time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::message::{Question, Transport};

/// Questions that wait for an upstream at once; more are refused at once, and the asker tries its next server.
const N_IN_FLIGHT_MAX: usize = 256;
const N_SERVERS_MAX: usize = 3;
const UDP_TIMEOUT: Duration = Duration::from_millis(1500);
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
const DATAGRAM_LEN_MAX: usize = 65_535;

/// The upstream servers, changed as the system's own change.
#[derive(Debug)]
pub struct Upstreams {
    servers: ArcSwap<Vec<SocketAddr>>,
    in_flight: Semaphore,
}

impl Default for Upstreams {
    fn default() -> Self {
        Self {
            servers: ArcSwap::default(),
            in_flight: Semaphore::new(N_IN_FLIGHT_MAX),
        }
    }
}

impl Upstreams {
    /// Replaces the servers.
    pub fn set(&self, servers: Vec<SocketAddr>) {
        self.servers.store(servers.into());
    }

    /// The servers, best first.
    #[must_use]
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.servers.load().to_vec()
    }

    /// The answer to a foreign question.
    ///
    /// `is_own` says which addresses are the mesh's: no question goes to them, for it would come back here, and none of
    /// them is taken from an answer, for a foreign name must not lead a browser into the mesh.
    pub async fn ask(&self, question: &Question, is_own: impl Fn(IpAddr) -> bool) -> Vec<u8> {
        let servers = self.servers.load_full();
        let usable = servers
            .iter()
            .filter(|server| !is_own(server.ip().to_canonical()));
        let usable: Vec<SocketAddr> = usable.copied().take(N_SERVERS_MAX).collect();
        // Refused, not SERVFAIL or silence: stub resolvers then go on to their next server at once.
        if usable.is_empty() || !question.wants_recursion() {
            return question.error(ResponseCode::Refused);
        }
        let Ok(_permit) = self.in_flight.try_acquire() else {
            return question.error(ResponseCode::Refused);
        };
        for server in usable {
            if let Some(mut answer) = exchange(question, server).await {
                strip(&mut answer, &is_own);
                return question.relay(answer);
            }
        }
        question.error(ResponseCode::ServFail)
    }
}

async fn exchange(question: &Question, server: SocketAddr) -> Option<Message> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).ok()?;
    let id = u16::from_be_bytes(id);
    let request = question.forwarded(id)?;
    let (limit, answer) = match question.transport() {
        Transport::Udp => (
            UDP_TIMEOUT,
            tokio::time::timeout(UDP_TIMEOUT, by_udp(question, server, id, &request)).await,
        ),
        Transport::Tcp => (
            TCP_TIMEOUT,
            tokio::time::timeout(TCP_TIMEOUT, by_tcp(question, server, id, &request)).await,
        ),
    };
    match answer {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(err)) => {
            tracing::debug!(%server, %err, "upstream resolver failed");
            None
        }
        Err(_) => {
            tracing::debug!(%server, ?limit, "upstream resolver is silent");
            None
        }
    }
}

async fn by_udp(
    question: &Question,
    server: SocketAddr,
    id: u16,
    request: &[u8],
) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket of its own for each question: the source port is as hard to guess as the kernel makes it.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let n = socket.recv(&mut buffer).await?;
        // What does not belong to the question is not its answer: the true one may still come.
        if let Some(answer) = accept(question, id, &buffer[..n]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(
    question: &Question,
    server: SocketAddr,
    id: u16,
    request: &[u8],
) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), request].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    accept(question, id, &answer)
        .ok_or_else(|| io::Error::other("the answer is not for the question"))
}

fn accept(question: &Question, id: u16, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_answer = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == id
        && answer.queries.iter().eq([question.query()]);
    is_answer.then_some(answer)
}

/// Takes the mesh's addresses out of an answer.
fn strip(answer: &mut Message, is_own: &impl Fn(IpAddr) -> bool) {
    let is_clean = |record: &Record| !addrs_of(&record.data).into_iter().any(is_own);
    answer.answers.retain(is_clean);
    answer.authorities.retain(is_clean);
    answer.additionals.retain(is_clean);
}

fn addrs_of(data: &RData) -> Vec<IpAddr> {
    if let RData::A(a) = data {
        return vec![a.0.into()];
    }
    if let RData::AAAA(aaaa) = data {
        return vec![aaaa.0.into()];
    }
    let service = if let RData::HTTPS(https) = data {
        &https.0
    } else if let RData::SVCB(service) = data {
        service
    } else {
        return Vec::new();
    };
    let mut addrs: Vec<IpAddr> = Vec::new();
    for (_, value) in &service.svc_params {
        if let SvcParamValue::Ipv4Hint(hint) = value {
            addrs.extend(hint.0.iter().map(|a| IpAddr::from(a.0)));
        } else if let SvcParamValue::Ipv6Hint(hint) = value {
            addrs.extend(hint.0.iter().map(|aaaa| IpAddr::from(aaaa.0)));
        }
    }
    addrs
}
