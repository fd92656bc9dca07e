//! The overlay without an interface: the stack, the proxies and the loopback gateway of userspace mode.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use mesh_io::tun::{Tun, TunQueue};
use mesh_proto::local::{Problem, Settings, UserspaceMode, UserspaceStatus};
use mesh_proto::netmap::Netmap;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::overlay::Serving;
use crate::config::Config;
use crate::dataplane::open_tun;
use crate::dns::server::Names;
use crate::gateway::{Reach, STACK_PORTS};
use crate::netstack::{Netstack, StackConfig, StackDialer};
use crate::proxy::{self, Protocol};
use crate::view::ViewReceiver;

/// Connections that wait for the door or the gateway.
const N_ACCEPTED: usize = 128;

/// This machine's side of the overlay, as settings and machine have it.
pub(super) enum Face {
    /// The kernel's, by an interface.
    Interface(Tun),
    /// The stack in this process; with the reason when an interface was wanted and not to be had.
    Userspace(Option<String>),
}

/// Opens the interface, or finds that the node does without.
///
/// # Errors
/// When there must be an interface and is none.
pub(super) fn face(
    mode: UserspaceMode,
    config: &Config,
    mtu: u16,
    n_workers: usize,
) -> anyhow::Result<Face> {
    let open = || open_tun(&config.interface, mtu, n_workers).map(Face::Interface);
    match mode {
        UserspaceMode::On => Ok(Face::Userspace(None)),
        UserspaceMode::Off => open(),
        UserspaceMode::Auto => open().or_else(|err| match denial(&err) {
            Some(why) => Ok(Face::Userspace(Some(why))),
            None => Err(err),
        }),
    }
}

/// Why this machine gives this user no interface at all, if it is that: no such device, or no right to it.
fn denial(err: &anyhow::Error) -> Option<String> {
    let cause = err.root_cause().downcast_ref::<std::io::Error>()?;
    let kinds = [
        std::io::ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied,
    ];
    let has_no_driver =
        [Some(NO_SUCH_DEVICE), Some(NO_SUCH_ADDRESS)].contains(&cause.raw_os_error());
    (kinds.contains(&cause.kind()) || has_no_driver).then(|| cause.to_string())
}

/// ENODEV and ENXIO: a device file with no driver behind it.
const NO_SUCH_DEVICE: i32 = 19;
const NO_SUCH_ADDRESS: i32 = 6;

/// The stack's MTU: by itself what any path takes, for the stack does not learn of a narrower one.
pub(super) fn mtu(config: &Config) -> u16 {
    match config.mtu {
        0 => MTU_ANYWHERE,
        mtu => mtu,
    }
}

/// The least that IPv6 has (RFC 8200 section 5).
const MTU_ANYWHERE: u16 = 1280;

/// The parts of userspace mode, while it lasts.
pub(super) struct Userspace {
    /// The last part to go: others reach peers through it.
    stack: Netstack,
    proxies: Vec<Serving>,
    status: UserspaceStatus,
    why: Option<String>,
}

/// What userspace mode is started with.
pub(super) struct Ports {
    socks5: Option<TcpListener>,
    http_proxy: Option<TcpListener>,
    gateway: TcpListener,
    status: UserspaceStatus,
}

impl Ports {
    /// Listens at all loopback ports.
    ///
    /// # Errors
    /// When one is taken; the text names the setting.
    pub(super) async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let socks5 = bind(settings.socks5, "socks5", "the SOCKS5 proxy").await?;
        let http_proxy = bind(settings.http_proxy, "http-proxy", "the HTTP proxy").await?;
        let gateway = listen(settings.gateway, "gateway", "the gateway").await?;
        Ok(Self {
            socks5,
            http_proxy,
            gateway,
            status: UserspaceStatus {
                socks5: settings.socks5,
                http_proxy: settings.http_proxy,
                gateway: settings.gateway,
            },
        })
    }
}

async fn bind(
    addr: Option<SocketAddr>,
    key: &str,
    what: &str,
) -> anyhow::Result<Option<TcpListener>> {
    match addr {
        Some(addr) => listen(addr, key, what).await.map(Some),
        None => Ok(None),
    }
}

async fn listen(addr: SocketAddr, key: &str, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("{what} cannot listen at {addr}: choose another port with `meshctl set {key}=PORT`")
    })
}

impl Userspace {
    /// Starts the stack; gives it, the data plane's ends of its queues, and how the gateway reaches and is reached.
    ///
    /// # Errors
    /// When the process may have no more threads or descriptors.
    pub(super) fn start(
        netmap: &Netmap,
        mtu: u16,
        n_queues: usize,
        why: Option<String>,
        ports: Ports,
    ) -> anyhow::Result<Started> {
        let (door_tx, door) = mpsc::channel(N_ACCEPTED);
        let (gateway, proxied) = mpsc::channel(N_ACCEPTED);
        let own = netmap.node.ipv4;
        let (stack, queues) = Netstack::start(
            StackConfig {
                ipv4: own,
                ipv6: netmap.node.ipv6,
                mtu,
                doors: vec![
                    (STACK_PORTS.model, door_tx.clone()),
                    (STACK_PORTS.web, door_tx),
                ],
            },
            n_queues,
        )?;
        let dialer = stack.dialer();
        let reach = Reach::Stack {
            own,
            door,
            proxied,
            loopback: ports.gateway,
            dialer: dialer.clone(),
        };
        let parts = ProxyParts {
            listeners: [
                (Protocol::Socks5, ports.socks5),
                (Protocol::Http, ports.http_proxy),
            ],
            dialer,
            door: proxy::Door { gateway, own },
        };
        if let Some(why) = &why {
            tracing::warn!(
                why,
                "no overlay interface is to be had: the node is in userspace mode"
            );
        }
        let userspace = Self {
            stack,
            proxies: Vec::new(),
            status: ports.status,
            why,
        };
        Ok(Started {
            userspace,
            queues,
            reach,
            parts,
        })
    }

    /// Serves the proxies.
    pub(super) fn serve(&mut self, parts: ProxyParts, view: ViewReceiver, names: Names) {
        let reach = Arc::new(proxy::Reach {
            view,
            names,
            dialer: parts.dialer,
            door: parts.door,
        });
        for (protocol, listener) in parts.listeners {
            if let Some(listener) = listener {
                let reach = Arc::clone(&reach);
                self.proxies.push(Serving::start(|cancel| {
                    proxy::serve(listener, protocol, reach, cancel)
                }));
            }
        }
    }

    /// Ends the proxies; connections that came about go on.
    pub(super) async fn stop_proxies(&mut self) {
        for proxy in self.proxies.drain(..) {
            proxy.stop().await;
        }
    }

    /// Cuts all connections. The data plane must be gone.
    pub(super) fn stop(self) {
        drop(self.stack);
    }

    pub(super) fn status(&self) -> &UserspaceStatus {
        &self.status
    }

    /// What the owner should know when nobody asked for this mode.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.why.as_ref().map(|why| Problem {
            code: "no_interface".to_owned(),
            message: format!(
                "this machine gives meshd no network interface ({why}), so the node is in userspace mode: programs reach the \
                 mesh by its proxies and its gateway alone"
            ),
            fix: Some("meshctl up --userspace, to have it so; or run meshd as root, with /dev/net/tun".to_owned()),
        })
    }
}

/// Userspace mode, begun.
pub(super) struct Started {
    pub(super) userspace: Userspace,
    pub(super) queues: Vec<TunQueue>,
    pub(super) reach: Reach,
    pub(super) parts: ProxyParts,
}

/// What the proxies are made of, until there are names.
pub(super) struct ProxyParts {
    listeners: [(Protocol, Option<TcpListener>); 2],
    dialer: StackDialer,
    door: proxy::Door,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_gives_no_interface_is_one() {
        let error = |err: std::io::Error| anyhow::Error::new(err).context("the TUN");
        for code in [NO_SUCH_DEVICE, NO_SUCH_ADDRESS, 1, 2, 13] {
            let err = error(std::io::Error::from_raw_os_error(code));
            assert!(denial(&err).is_some(), "{code}");
        }
        // The name is taken: that is somebody's to mend.
        assert_eq!(denial(&error(std::io::Error::from_raw_os_error(16))), None);
        assert_eq!(denial(&anyhow::anyhow!("something else")), None);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_setting() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings {
            socks5: None,
            http_proxy: Some(taken.local_addr().unwrap()),
            ..Settings::default()
        };
        let err = Ports::bind(&settings).await.err().unwrap();
        assert!(
            err.to_string().contains("meshctl set http-proxy=PORT"),
            "{err}"
        );
    }
}
