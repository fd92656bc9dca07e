//! Addresses and routes, by rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// Routes shorter than this are a default route in pieces (VPNs add 0.0.0.0/1), not somebody's network.
const CLASH_PREFIX_LEN_MIN: u8 = 8;
/// More candidates make pairs of nodes probe for nothing.
const N_ENDPOINTS_MAX: usize = 16;
/// What a link carries where nothing says otherwise.
const ETHERNET_MTU: u32 = 1500;
/// Bridges of containers and virtual machines: their addresses are the same on many machines.
const INNER_LINKS: [&str; 6] = ["docker", "br-", "virbr", "cni", "podman", "lxcbr"];

/// Why the overlay cannot have its addresses.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// Another network of this machine has addresses of the mesh's pool.
    #[error(
        "the mesh's addresses {pool} clash with the route {route} of {interface}; \
         remove that route, or start the mesh's coordinator with another pool"
    )]
    Clash {
        /// The mesh's pool.
        pool: IpNet,
        /// The route that was there before.
        route: IpNet,
        /// Whose it is.
        interface: String,
    },
    /// There is no such interface.
    #[error("there is no network interface {0}")]
    NoInterface(String),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: rtnetlink::Error,
    },
    /// No netlink socket.
    #[error("cannot talk to the kernel about networks: {0}")]
    Socket(#[from] io::Error),
}

/// What the overlay interface should be.
#[derive(Debug, Clone, Copy)]
pub struct Overlay {
    /// This node's IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// This node's IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// The mesh's IPv4 pool.
    pub pool: Ipv4Net,
    /// The mesh's IPv6 prefix.
    pub prefix: Ipv6Net,
    /// Bytes.
    pub mtu: u32,
}

/// What the overlay interface became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configured {
    /// Its index.
    pub index: u32,
    /// Whether this machine has IPv6 at all.
    pub has_ipv6: bool,
}

/// A way out of this machine's own networks: a default route, or a piece of one such as 0.0.0.0/1. Two are equal when
/// packets go the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    prefix_len: u8,
    kind: RouteType,
    attributes: Vec<RouteAttribute>,
}

impl DefaultRoute {
    /// The link that it leads out by, if it names one.
    #[must_use]
    pub fn link_index(&self) -> Option<u32> {
        let mut links = self.attributes.iter().filter_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute {
                return Some(*index);
            }
            None
        });
        links.next()
    }
}

/// The kernel's links. Its netlink connection ends with it.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens a netlink socket; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn open() -> Result<Self, LinksError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// [`LinksError::NoInterface`] when there is none of that name.
    pub async fn index_of(&self, interface: &str) -> Result<u32, LinksError> {
        let links = self.links().await?;
        let found = links.iter().find(|link| name_of(link) == Some(interface));
        found
            .map(|link| link.header.index)
            .ok_or_else(|| LinksError::NoInterface(interface.to_owned()))
    }

    /// Gives the interface its addresses and routes and switches it on. Does nothing when the pool clashes. Whatever
    /// is there already stays as it is, so it can be repeated.
    ///
    /// # Errors
    /// [`LinksError::Clash`] when another interface has routes within the mesh; others when the kernel refuses.
    pub async fn configure(
        &self,
        interface: &str,
        overlay: &Overlay,
    ) -> Result<Configured, LinksError> {
        let index = self.index_of(interface).await?;
        self.check_clash(index, overlay).await?;
        let up = LinkUnspec::new_with_index(index)
            .mtu(overlay.mtu)
            .up()
            .build();
        self.handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(kernel("switch the overlay interface on"))?;

        self.add_addr(index, overlay.ipv4.into())
            .await
            .map_err(kernel("set the overlay's IPv4 address"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(overlay.pool.network(), overlay.pool.prefix_len())
            .output_interface(index)
            .pref_source(overlay.ipv4)
            .build();
        self.add_route(route)
            .await
            .map_err(kernel("set the overlay's IPv4 route"))?;

        // A machine may have IPv6 switched off; the overlay then works by IPv4 alone.
        let has_ipv6 = match self.add_addr(index, overlay.ipv6.into()).await {
            Ok(()) => true,
            Err(err) if is_ipv6_off(&err) => false,
            Err(err) => return Err(kernel("set the overlay's IPv6 address")(err)),
        };
        if has_ipv6 {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(overlay.prefix.network(), overlay.prefix.prefix_len())
                .output_interface(index)
                .pref_source(overlay.ipv6)
                .build();
            self.add_route(route)
                .await
                .map_err(kernel("set the overlay's IPv6 route"))?;
        }
        Ok(Configured { index, has_ipv6 })
    }

    /// Where peers may reach this machine on the underlay, the likeliest first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn local_addrs(&self, overlay_index: Option<u32>) -> Result<Vec<IpAddr>, LinksError> {
        let mut usable: Vec<(u32, bool)> = Vec::new();
        for link in self.links().await? {
            let flags = link.header.flags;
            let is_usable = flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback);
            if is_usable && Some(link.header.index) != overlay_index {
                let is_inner = name_of(&link)
                    .is_some_and(|name| INNER_LINKS.iter().any(|inner| name.starts_with(inner)));
                usable.push((link.header.index, is_inner));
            }
        }
        let mut addrs: Vec<(bool, IpAddr)> = Vec::new();
        let dump = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        for message in dump.map_err(kernel("list addresses"))? {
            let link = usable
                .iter()
                .find(|(index, _)| *index == message.header.index);
            if let (Some((_, is_inner)), Some(ip)) = (link, candidate(&message)) {
                addrs.push((*is_inner, ip));
            }
        }
        addrs.sort_by_key(|(is_inner, _)| *is_inner);
        Ok(addrs
            .into_iter()
            .map(|(_, ip)| ip)
            .take(N_ENDPOINTS_MAX)
            .collect())
    }

    /// The largest MTU among the machine's links that may lead to peers, in bytes; 1,500 when there is none yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn underlay_mtu(&self, overlay_index: Option<u32>) -> Result<u32, LinksError> {
        let links = self.links().await?;
        let usable = links.iter().filter(|link| {
            let flags = link.header.flags;
            let is_inner = name_of(link)
                .is_some_and(|name| INNER_LINKS.iter().any(|inner| name.starts_with(inner)));
            flags.contains(LinkFlags::Up)
                && !flags.contains(LinkFlags::Loopback)
                && !is_inner
                && Some(link.header.index) != overlay_index
        });
        Ok(usable.filter_map(mtu_of).max().unwrap_or(ETHERNET_MTU))
    }

    /// Sets the MTU of an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinksError> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu).build();
        let set = self.handle.link().set(link).execute().await;
        set.map_err(kernel("set the overlay's MTU"))
    }

    /// The IPv4 gateway towards the internet and this machine's address on its network, where that is a private one: who
    /// has a public address needs no port mapping.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn gateway(&self) -> Result<Option<(IpAddr, IpAddr)>, LinksError> {
        let routes = self.routes(IpNet::V4(Ipv4Net::default())).await?;
        let gateway = routes.iter().filter_map(default_gateway).min();
        Ok(gateway.and_then(|(_, gateway)| {
            let own = own_address_towards(gateway).ok()?;
            is_private(own).then_some((IpAddr::V4(gateway), IpAddr::V4(own)))
        }))
    }

    /// The ways out of this machine, without those by the overlay.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_routes(
        &self,
        overlay_index: Option<u32>,
    ) -> Result<Vec<DefaultRoute>, LinksError> {
        let mut routes = Vec::new();
        for family in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            for message in self.routes(family).await? {
                if is_default(&message) && route_index(&message) != overlay_index {
                    routes.push(DefaultRoute {
                        prefix_len: message.header.destination_prefix_length,
                        kind: message.header.kind,
                        attributes: message.attributes.into_iter().filter(leads).collect(),
                    });
                }
            }
        }
        Ok(routes)
    }

    async fn check_clash(&self, own_index: u32, overlay: &Overlay) -> Result<(), LinksError> {
        for mesh in [IpNet::V4(overlay.pool), IpNet::V6(overlay.prefix)] {
            for message in self.routes(mesh).await? {
                let Some((route, index)) = unicast_route(&message) else {
                    continue;
                };
                if index != own_index && is_clash(mesh, route) {
                    let links = self.links().await?;
                    let link = links.iter().find(|link| link.header.index == index);
                    let interface = link
                        .and_then(name_of)
                        .unwrap_or("an interface that just went away")
                        .to_owned();
                    return Err(LinksError::Clash {
                        pool: mesh,
                        route,
                        interface,
                    });
                }
            }
        }
        Ok(())
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, LinksError> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(kernel("list interfaces"))
    }

    async fn routes(&self, family: IpNet) -> Result<Vec<RouteMessage>, LinksError> {
        let all = match family {
            IpNet::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpNet::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        self.handle
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(kernel("list routes"))
    }

    async fn add_addr(&self, index: u32, ip: IpAddr) -> Result<(), rtnetlink::Error> {
        let len = if ip.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, ip, len).replace();
        // Nobody else can have the address: waiting for duplicates would only delay the first packet.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await
    }

    async fn add_route(&self, route: RouteMessage) -> Result<(), rtnetlink::Error> {
        self.handle.route().add(route).replace().execute().await
    }
}

fn kernel(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> LinksError {
    move |source| LinksError::Kernel { what, source }
}

fn is_ipv6_off(err: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = err else {
        return false;
    };
    let kind = message.to_io().kind();
    // disable_ipv6 gives EACCES, a kernel without IPv6 EOPNOTSUPP. A lack of privilege is EPERM and shows at IPv4 first.
    matches!(
        kind,
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
    )
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Mtu(mtu) = attribute {
            Some(*mtu)
        } else {
            None
        }
    })
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name.as_str())
        } else {
            None
        }
    })
}

fn unicast_route(message: &RouteMessage) -> Option<(IpNet, u32)> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut to = None;
    let mut index = None;
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(RouteAddress::Inet(ip)) = attribute {
            to = Some(IpAddr::V4(*ip));
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(ip)) = attribute {
            to = Some(IpAddr::V6(*ip));
        } else if let RouteAttribute::Oif(oif) = attribute {
            index = Some(*oif);
        }
    }
    Some((
        IpNet::new(to?, message.header.destination_prefix_length).ok()?,
        index?,
    ))
}

/// The metric and the gateway of a default route.
fn default_gateway(message: &RouteMessage) -> Option<(u32, Ipv4Addr)> {
    let header = &message.header;
    if header.kind != RouteType::Unicast
        || header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let (mut metric, mut gateway) = (0, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Gateway(RouteAddress::Inet(ip)) = attribute {
            gateway = Some(*ip);
        } else if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        }
    }
    Some((metric, gateway?))
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing.
fn own_address_towards(gateway: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((gateway, 9))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// Private (RFC 1918) or a carrier's (RFC 6598).
const fn is_private(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || (a == 100 && b & 0xc0 == 64)
}

/// Whether a route is a default route or a piece of one.
pub(super) fn is_default(message: &RouteMessage) -> bool {
    message.header.destination_prefix_length < CLASH_PREFIX_LEN_MIN
}

/// The interface that a route leads to, when it is one.
pub(super) fn route_index(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

/// Whether an attribute says where packets go; ages and counters say something else at each look.
fn leads(attribute: &RouteAttribute) -> bool {
    matches!(
        attribute,
        RouteAttribute::Destination(_)
            | RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Oif(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::Table(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::MultiPath(_)
    )
}

fn is_clash(mesh: IpNet, route: IpNet) -> bool {
    route.prefix_len() >= CLASH_PREFIX_LEN_MIN && (mesh.contains(&route) || route.contains(&mesh))
}

/// The address of a message, when peers could use it.
fn candidate(message: &AddressMessage) -> Option<IpAddr> {
    let mut ip = None;
    let mut flags = AddressFlags::from_bits_truncate(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            ip = Some(*local);
        } else if let AddressAttribute::Address(addr) = attribute {
            ip = ip.or(Some(*addr));
        } else if let AddressAttribute::Flags(all) = attribute {
            flags |= *all;
        }
    }
    let is_passing = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    ip.filter(|ip| !flags.intersects(is_passing) && is_reachable(*ip))
}

fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
