//! What only root may change in the system's resolver, as an order: carried out here, or by the unit `meshd-names` for a
//! `meshd` that is not root.
//!
//! The order names no file and no program: whoever may give orders can put the mesh's names in and take them out, and
//! nothing else.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::names::{Plan, System};
use super::{network_manager, resolvconf};

/// Where systemd listens for orders.
pub(super) const SOCKET: &str = "/run/meshd-names.sock";
const LEN_MAX: u64 = 64 << 10;
const N_SERVERS_MAX: usize = 4;
const N_DOMAINS_MAX: usize = 1024;
const DOMAIN_LEN_MAX: usize = 253;
/// Longer than a program may take that is run for an order.
const LIMIT: Duration = Duration::from_secs(15);

/// One change of the system's resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order", deny_unknown_fields)]
pub(super) enum Order {
    /// Puts a record among resolvconf's.
    AddRecord { servers: Vec<IpAddr> },
    /// Takes it out.
    DeleteRecord {},
    /// Puts a file among those of NetworkManager's dnsmasq.
    WriteRules {
        servers: Vec<IpAddr>,
        domains: Vec<String>,
    },
    /// Takes it out.
    DeleteRules {},
}

/// What comes back for an order; no error when it was carried out.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    error: Option<String>,
}

impl Order {
    pub(super) fn add_record(plan: &Plan) -> Self {
        Self::AddRecord {
            servers: plan.servers.clone(),
        }
    }

    pub(super) fn write_rules(plan: &Plan) -> Self {
        Self::WriteRules {
            servers: plan.servers.clone(),
            domains: plan.domains.clone(),
        }
    }

    /// Has the order carried out, by whoever may.
    pub(super) async fn give(&self, system: &System) -> io::Result<()> {
        match &system.root_side {
            None => self.carry_out(system).await,
            Some(socket) => self.hand_over(socket).await,
        }
    }

    async fn carry_out(&self, system: &System) -> io::Result<()> {
        match self {
            Self::AddRecord { servers } => resolvconf::add(&system.root, servers).await,
            Self::DeleteRecord {} => resolvconf::delete(&system.root).await,
            Self::WriteRules { servers, domains } => {
                network_manager::write(system, servers, domains).await
            }
            Self::DeleteRules {} => network_manager::delete(system).await,
        }
    }

    async fn hand_over(&self, socket: &Path) -> io::Result<()> {
        let talk = async {
            let mut stream = UnixStream::connect(socket).await.map_err(|err| {
                io::Error::new(
                    err.kind(),
                    format!(
                        "only root may change it, and the unit that does so for meshd does not answer ({}: {err}; \
                         systemctl start meshd-names.socket)",
                        socket.display()
                    ),
                )
            })?;
            stream.write_all(&serde_json::to_vec(self)?).await?;
            stream.shutdown().await?;
            let mut bytes = Vec::new();
            stream.take(LEN_MAX).read_to_end(&mut bytes).await?;
            let reply: Reply = serde_json::from_slice(&bytes).map_err(|_| {
                io::Error::other("its unit broke off: journalctl -u 'meshd-names@*'")
            })?;
            reply
                .error
                .map_or(Ok(()), |error| Err(io::Error::other(error)))
        };
        tokio::time::timeout(LIMIT, talk).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its unit does not end: journalctl -u 'meshd-names@*'",
            ))
        })
    }

    /// Refuses what no map leads to: the domains are written into a configuration that root's programs read.
    fn check(&self) -> Result<(), String> {
        let (servers, domains): (&[IpAddr], &[String]) = match self {
            Self::AddRecord { servers } => (servers, &[]),
            Self::WriteRules { servers, domains } => (servers, domains),
            Self::DeleteRecord {} | Self::DeleteRules {} => return Ok(()),
        };
        if servers.is_empty() || servers.len() > N_SERVERS_MAX {
            return Err(format!(
                "{} servers are not 1 to {N_SERVERS_MAX}",
                servers.len()
            ));
        }
        if domains.len() > N_DOMAINS_MAX {
            return Err(format!(
                "{} domains are more than {N_DOMAINS_MAX}",
                domains.len()
            ));
        }
        match domains.iter().find(|domain| !is_domain(domain)) {
            None => Ok(()),
            Some(domain) => Err(format!("{domain:?} is no domain")),
        }
    }
}

fn is_domain(text: &str) -> bool {
    text.len() <= DOMAIN_LEN_MAX
        && text.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

/// Reads one order, carries it out and says how that went.
///
/// # Errors
/// When the order cannot be read or the answer not be given; an order that fails is an answer.
pub async fn answer(
    system: &System,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut input = input.take(LEN_MAX);
    tokio::time::timeout(LIMIT, input.read_to_end(&mut bytes)).await??;
    let result = match serde_json::from_slice::<Order>(&bytes) {
        Err(err) => Err(format!("the order is not understood: {err}")),
        Ok(order) => match order.check() {
            Err(reason) => Err(reason),
            Ok(()) => order.carry_out(system).await.map_err(|err| err.to_string()),
        },
    };
    let reply = Reply {
        error: result.err(),
    };
    output.write_all(&serde_json::to_vec(&reply)?).await?;
    output.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_no_map_leads_to_are_refused() {
        let server: IpAddr = "10.77.0.53".parse().unwrap();
        let rules = |servers: Vec<IpAddr>, domain: &str| Order::WriteRules {
            servers,
            domains: vec!["proxima".to_owned(), domain.to_owned()],
        };
        assert_eq!(rules(vec![server], "77.10.in-addr.arpa").check(), Ok(()));
        for domain in [
            "",
            ".",
            "a..b",
            "proxima/10.0.0.1\naddn-hosts=/etc/shadow",
            "a b",
            "ü",
        ] {
            assert!(rules(vec![server], domain).check().is_err(), "{domain:?}");
        }
        assert!(rules(vec![], "proxima.internal").check().is_err());
        assert!(rules(vec![server; 5], "proxima.internal").check().is_err());
        let many = Order::WriteRules {
            servers: vec![server],
            domains: vec!["proxima".to_owned(); N_DOMAINS_MAX + 1],
        };
        assert!(many.check().is_err());
    }

    #[tokio::test]
    async fn what_is_no_order_gets_an_answer_too() {
        let folder = tempfile::tempdir().unwrap();
        let system = System {
            root: folder.path().to_owned(),
            bus: Some("unix:path=/nonexistent".to_owned()),
            journal: folder.path().join("names.json"),
            root_side: None,
        };
        for text in [
            "",
            "{}",
            "{\"order\":\"reboot\"}",
            "{\"order\":\"delete_record\",\"record\":\"eth0\"}",
            "\u{0}",
        ] {
            let mut output = Vec::new();
            answer(&system, text.as_bytes(), &mut output).await.unwrap();
            let reply: Reply = serde_json::from_slice(&output).unwrap();
            assert!(reply.error.unwrap().contains("not understood"), "{text}");
        }
    }
}
