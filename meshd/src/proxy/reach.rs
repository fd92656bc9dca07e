//! From what a client asks for to a connection: names, whose address it is, and the way there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream as StdUnixStream;

use mesh_proto::{MODEL_PORT, WEB_PORT};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::dns::server::{Found, Names};
use crate::netstack::{Accepted, Care, DialError, Dialed, StackDialer};
use crate::view::{Caller, ViewReceiver};

/// Addresses of a name that are tried.
const N_ADDRS_MAX: usize = 4;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Ip(IpAddr),
    Name(String),
}

/// Why it does not get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "this proxy leads into the mesh alone: have the client reach other destinations without it (no_proxy)"
    )]
    Foreign,
    #[error(
        "no such name in this mesh: `meshctl status` lists its nodes, `meshctl models` its models"
    )]
    NoName,
    #[error("no node of this mesh has that address: `meshctl status` lists them")]
    NoNode,
    #[error("this node has nothing at that port; its gateway is at 11434 and 80 of ollama.proxima")]
    NoService,
    #[error("the other end refused the connection")]
    Refused,
    #[error("the other end does not answer")]
    Silent,
    #[error("this node has too many connections open: close some, or try again in a moment")]
    Busy,
}

/// Where connections to this node's own gateway are handed in.
#[derive(Debug, Clone)]
pub struct Door {
    /// The gateway's end.
    pub gateway: mpsc::Sender<Accepted>,
    /// The own overlay address, which stands for this machine's programs.
    pub own: Ipv4Addr,
}

/// The ways of a proxy.
#[derive(Debug)]
pub struct Reach {
    /// The mesh.
    pub view: ViewReceiver,
    /// The zone.
    pub names: Names,
    /// The way to peers.
    pub dialer: StackDialer,
    /// The way to the own gateway.
    pub door: Door,
}

/// A way that was found and waits for the client's socket.
#[derive(Debug)]
pub(super) enum Reached {
    Peer(Dialed),
    Gateway(Door),
}

impl Reach {
    /// Opens the way to a port of a target.
    pub(super) async fn open(&self, target: &Target, port: u16) -> Result<Reached, Refusal> {
        let addrs = match target {
            Target::Ip(ip) => vec![*ip],
            Target::Name(name) => match self.names.addrs(name) {
                Found::Addrs(addrs) => addrs,
                Found::Missing => return Err(Refusal::NoName),
                Found::Foreign => return Err(Refusal::Foreign),
            },
        };
        let mut last = Refusal::NoNode;
        for ip in addrs.into_iter().take(N_ADDRS_MAX) {
            match self.open_addr(ip, port).await {
                Ok(reached) => return Ok(reached),
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    async fn open_addr(&self, ip: IpAddr, port: u16) -> Result<Reached, Refusal> {
        let view = self.view.borrow().clone().ok_or(Refusal::NoNode)?;
        match view.caller(ip) {
            Some(Caller::Own) if [MODEL_PORT, WEB_PORT].contains(&port) => {
                Ok(Reached::Gateway(self.door.clone()))
            }
            Some(Caller::Own) => Err(Refusal::NoService),
            Some(Caller::Peer(..)) => {
                let to = SocketAddr::new(ip, port);
                let dialed = self.dialer.dial(to, Care::PATIENT).await;
                dialed.map(Reached::Peer).map_err(|err| match err {
                    DialError::Refused => Refusal::Refused,
                    DialError::TimedOut => Refusal::Silent,
                    DialError::Busy => Refusal::Busy,
                })
            }
            None if self.names.is_mesh_addr(ip) => Err(Refusal::NoNode),
            None => Err(Refusal::Foreign),
        }
    }
}

impl Reached {
    /// Connects the client's socket with what was reached; `early` was read from it already. Returns once nothing of it is
    /// this side's concern.
    pub(super) async fn join(self, client: TcpStream, early: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Peer(dialed) => dialed.splice(client.into_std()?, early),
            Self::Gateway(door) => {
                let (ours, theirs) = StdUnixStream::pair()?;
                ours.set_nonblocking(true)?;
                theirs.set_nonblocking(true)?;
                let accepted = Accepted {
                    stream: theirs,
                    from: door.own.into(),
                };
                let sent = door.gateway.try_send(accepted);
                sent.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                carry(client, UnixStream::from_std(ours)?, &early).await
            }
        }
    }
}

/// Moves bytes between a client and the gateway until both halves ended.
async fn carry(mut client: TcpStream, mut gateway: UnixStream, early: &[u8]) -> io::Result<()> {
    gateway.write_all(early).await?;
    tokio::io::copy_bidirectional(&mut client, &mut gateway).await?;
    Ok(())
}
