//! Addresses, routes and changes in a network namespace; what clashes, as a table.

use std::time::Duration;

use rtnetlink::LinkVeth;

use super::*;
use crate::os::linux::changes::Changes;
use crate::os::linux::namespace;

#[test]
fn clashes_are_told_from_neighbours() {
    for (mesh, route, expected) in [
        ("10.77.0.0/16", "10.77.0.0/16", true),
        ("10.77.0.0/16", "10.77.3.0/24", true),
        ("10.77.0.0/16", "10.77.3.7/32", true),
        ("10.77.0.0/16", "10.0.0.0/8", true),
        ("10.77.0.0/16", "10.78.0.0/16", false),
        ("10.77.0.0/16", "0.0.0.0/1", false),
        ("10.77.0.0/16", "0.0.0.0/0", false),
        ("fdab:abab:abab::/48", "fdab:abab:abab:7::/64", true),
        ("fdab:abab:abab::/48", "fd00::/8", true),
        ("fdab:abab:abab::/48", "2000::/3", false),
    ] {
        assert_eq!(
            is_clash(mesh.parse().unwrap(), route.parse().unwrap()),
            expected,
            "{mesh} {route}"
        );
    }
}

#[test]
fn the_overlay_gets_its_addresses_and_routes() {
    namespace::run("os::linux::links::tests::inner_configure");
}

#[test]
fn a_pool_that_clashes_is_refused_by_name() {
    namespace::run("os::linux::links::tests::inner_clash");
}

#[test]
fn local_addresses_and_their_changes_are_told() {
    namespace::run("os::linux::links::tests::inner_changes");
}

#[test]
fn the_gateway_is_found_where_it_may_map_a_port() {
    namespace::run("os::linux::links::tests::inner_gateway");
}

const OVERLAY: Overlay = Overlay {
    ipv4: Ipv4Addr::new(10, 77, 1, 9),
    ipv6: Ipv6Addr::new(0xfdab, 0xabab, 0xabab, 0, 0, 0, 0, 9),
    pool: Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 16),
    prefix: Ipv6Net::new_assert(Ipv6Addr::new(0xfdab, 0xabab, 0xabab, 0, 0, 0, 0, 0), 48),
    mtu: 1280,
};

/// A veth pair: dummy links are a module that a kernel may lack.
async fn link(links: &Links, name: &str, addrs: &[(&str, u8)]) -> u32 {
    links
        .handle
        .link()
        .add(LinkVeth::new(name, &format!("{name}-x")).up().build())
        .execute()
        .await
        .unwrap();
    let index = links.index_of(name).await.unwrap();
    for (ip, len) in addrs {
        let mut request = links.handle.address().add(index, ip.parse().unwrap(), *len);
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.unwrap();
    }
    index
}

async fn routes_of(links: &Links, index: u32) -> Vec<String> {
    let mut all = Vec::new();
    for mesh in [IpNet::V4(OVERLAY.pool), IpNet::V6(OVERLAY.prefix)] {
        let routes = links.routes(mesh).await.unwrap();
        all.extend(
            routes
                .iter()
                .filter_map(unicast_route)
                .filter(|(_, at)| *at == index)
                .map(|(to, _)| to.to_string()),
        );
    }
    all
}

#[tokio::test]
#[ignore = "runs in a namespace"]
async fn inner_configure() {
    let links = Links::open().unwrap();
    assert!(matches!(
        links.index_of("nothing").await,
        Err(LinksError::NoInterface(_))
    ));
    let index = link(&links, "proxima0", &[]).await;
    for _ in 0..2 {
        let configured = links.configure("proxima0", &OVERLAY).await.unwrap();
        assert_eq!(
            configured,
            Configured {
                index,
                has_ipv6: true
            }
        );
    }
    let routes = routes_of(&links, index).await;
    for route in ["10.77.0.0/16", "fdab:abab:abab::/48"] {
        assert!(
            routes.iter().any(|to| to == route),
            "{route} is not in {routes:?}"
        );
    }
    let link = links
        .links()
        .await
        .unwrap()
        .into_iter()
        .find(|link| link.header.index == index)
        .unwrap();
    assert!(link.attributes.contains(&LinkAttribute::Mtu(1280)));
    // An address that can be bound is there and past its duplicate detection.
    for ip in [IpAddr::V4(OVERLAY.ipv4), IpAddr::V6(OVERLAY.ipv6)] {
        std::net::UdpSocket::bind((ip, 0)).unwrap();
    }
}

#[tokio::test]
#[ignore = "runs in a namespace"]
async fn inner_clash() {
    let links = Links::open().unwrap();
    let index = link(&links, "proxima0", &[]).await;
    link(&links, "office0", &[("10.77.5.1", 24)]).await;
    let err = links
        .configure("proxima0", &OVERLAY)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        err.contains("10.77.5.0/24") && err.contains("office0"),
        "{err}"
    );
    assert!(
        !routes_of(&links, index)
            .await
            .contains(&"10.77.0.0/16".to_owned())
    );
}

#[tokio::test]
#[ignore = "runs in a namespace"]
async fn inner_changes() {
    let links = Links::open().unwrap();
    let overlay = link(&links, "proxima0", &[]).await;
    links.configure("proxima0", &OVERLAY).await.unwrap();
    link(&links, "docker0", &[("172.17.0.1", 16)]).await;
    let mut changes = Changes::listen(Some(overlay)).unwrap();
    link(
        &links,
        "lan0",
        &[
            ("192.168.5.2", 24),
            ("169.254.7.7", 16),
            ("2001:db8::5", 64),
        ],
    )
    .await;
    tokio::time::timeout(Duration::from_secs(5), changes.next())
        .await
        .unwrap()
        .unwrap();
    inner_reroute(&links, &mut changes, overlay).await;
    let addrs = links.local_addrs(Some(overlay)).await.unwrap();
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["192.168.5.2", "2001:db8::5", "172.17.0.1"]);
}

#[tokio::test]
#[ignore = "runs in a namespace"]
async fn inner_gateway() {
    let links = Links::open().unwrap();
    assert_eq!(links.gateway().await.unwrap(), None);
    link(&links, "wan0", &[("203.0.113.2", 24)]).await;
    link(&links, "lan0", &[("192.168.5.2", 24)]).await;
    let default = |gateway: [u8; 4], metric| {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new();
        builder.gateway(gateway.into()).priority(metric).build()
    };
    links
        .add_route(default([192, 168, 5, 1], 100))
        .await
        .unwrap();
    let lan = (
        "192.168.5.1".parse().unwrap(),
        "192.168.5.2".parse().unwrap(),
    );
    assert_eq!(links.gateway().await.unwrap(), Some(lan));
    links
        .add_route(default([203, 0, 113, 1], 50))
        .await
        .unwrap();
    assert_eq!(
        links.gateway().await.unwrap(),
        None,
        "a public address needs no mapping"
    );
}

/// A default route that moves is told, and seen as another; one in a table of its own too, and one by the overlay not.
async fn inner_reroute(links: &Links, changes: &mut Changes, overlay: u32) {
    let told = async |changes: &mut Changes| {
        let told = async { while !changes.next().await.unwrap().has_routes {} };
        tokio::time::timeout(Duration::from_secs(5), told)
            .await
            .expect("a change of routes is told");
    };
    let way = |gateway: &str| {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway.parse().unwrap())
            .build()
    };
    let seen = async || links.default_routes(Some(overlay)).await.unwrap();
    let none = seen().await;
    links.add_route(way("192.168.5.1")).await.unwrap();
    told(changes).await;
    let first = seen().await;
    assert_eq!(first.len(), none.len() + 1);
    assert_eq!(seen().await, first, "the same way looks the same");
    links.add_route(way("192.168.5.254")).await.unwrap();
    told(changes).await;
    let second = seen().await;
    assert_ne!(second, first);

    let tunnel = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(Ipv4Addr::new(192, 168, 5, 7))
        .table_id(51_820)
        .build();
    links.add_route(tunnel).await.unwrap();
    told(changes).await;
    assert_eq!(seen().await.len(), none.len() + 2);

    // Neither the overlay's own routes nor those to one network are ways out.
    let own = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(overlay)
        .table_id(7)
        .build();
    links.add_route(own).await.unwrap();
    let network = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::new(198, 51, 100, 0), 24)
        .gateway(Ipv4Addr::new(192, 168, 5, 1))
        .build();
    links.add_route(network).await.unwrap();
    assert_eq!(seen().await.len(), none.len() + 2);
}
