//! A gateway of each kind, a silent one, and a hostile one.

use super::*;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 4));
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));

fn gateway() -> Gateway {
    Gateway {
        ip: ROUTER,
        client: CLIENT,
        port: 41_820,
    }
}

fn router() -> SocketAddr {
    SocketAddr::new(ROUTER, GATEWAY_PORT)
}

fn begun(start: Instant) -> PortMap {
    let mut map = PortMap::default();
    let mut seed = Seed::new([1; 32]);
    assert!(map.set_gateway(start, Some(gateway()), &mut seed).is_none());
    map
}

/// Runs the timers until a request of this version goes out.
fn asked(map: &mut PortMap, mut now: Instant, version: u8) -> (Instant, Vec<u8>) {
    for _ in 0..50 {
        now = now.max(map.poll_timeout().unwrap());
        let sent = map.handle_timeout(now);
        if let Some(request) = sent.iter().find(|transmit| transmit.bytes[0] == version) {
            assert_eq!(request.dst, Destination::Udp(router()));
            return (now, sent.last().unwrap().bytes.clone());
        }
    }
    panic!("never asked");
}

fn pcp_answer(request: &[u8], ip: [u8; 4], port: u16, lifetime_s: u32, epoch_s: u32) -> Vec<u8> {
    let mut answer = request.to_vec();
    answer[1] |= 0x80;
    answer[4..8].copy_from_slice(&lifetime_s.to_be_bytes());
    answer[8..12].copy_from_slice(&epoch_s.to_be_bytes());
    answer[42..44].copy_from_slice(&port.to_be_bytes());
    answer[56..60].copy_from_slice(&ip);
    answer
}

#[test]
fn a_pcp_gateway_maps_and_is_asked_again_at_half_time() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, request) = asked(&mut map, start, 2);
    let answer = pcp_answer(&request, [198, 51, 100, 7], 99, 600, 1000);
    assert!(map.handle_udp(now, router(), &answer));
    assert_eq!(map.outer(), Some("198.51.100.7:99".parse().unwrap()));
    assert_eq!(map.poll_timeout(), Some(now + Duration::from_secs(300)));
    let (later, request) = asked(&mut map, now, 2);
    let answer = pcp_answer(&request, [198, 51, 100, 7], 99, 600, 1300);
    assert!(!map.handle_udp(later, router(), &answer), "nothing changed");
    let mut seed = Seed::new([2; 32]);
    let farewell = map.set_gateway(later, None, &mut seed).unwrap();
    assert_eq!(farewell.bytes[4..8], [0; 4], "no lifetime");
    assert_eq!(map.poll_timeout(), None);
}

#[test]
fn a_gateway_that_speaks_nat_pmp_alone_is_asked_so() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, _) = asked(&mut map, start, 2);
    map.handle_udp(now, router(), &[0, 0x81, 0, 1, 0, 0, 0, 9]);
    let (now, _) = asked(&mut map, now, 0);
    let mapped = [
        0, 0x81, 0, 0, 0, 0, 0, 9, 0xa3, 0x5c, 0, 99, 0, 0, 0x1c, 0x20,
    ];
    assert!(
        !map.handle_udp(now, router(), &mapped),
        "the address is not known"
    );
    map.handle_udp(now, router(), &[0, 0x80, 0, 0, 0, 0, 0, 9, 198, 51, 100, 7]);
    assert!(map.handle_udp(now, router(), &mapped));
    assert_eq!(map.outer(), Some("198.51.100.7:99".parse().unwrap()));
    assert_eq!(map.protocol(), Some("NAT-PMP"));
}

#[test]
fn a_silent_gateway_is_left_in_peace() {
    let start = Instant::now();
    let mut map = begun(start);
    let (mut n_sent, mut now) = (0, start);
    while now < start + Duration::from_secs(300) {
        now = map.poll_timeout().unwrap();
        n_sent += map.handle_timeout(now).len();
    }
    assert!(n_sent <= 13, "{n_sent}");
    assert_eq!(map.outer(), None);
}

#[test]
fn what_is_not_the_gateways_answer_changes_nothing() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, request) = asked(&mut map, start, 2);
    let good = pcp_answer(&request, [198, 51, 100, 7], 99, 600, 1);
    let elsewhere = "192.168.1.66:5351".parse().unwrap();
    assert!(!map.handle_udp(now, elsewhere, &good));
    let mut forged = good.clone();
    forged[24] ^= 1;
    assert!(!map.handle_udp(now, router(), &forged), "another nonce");
    for bad in [
        pcp_answer(&request, [0, 0, 0, 0], 99, 600, 1),
        pcp_answer(&request, [127, 0, 0, 1], 99, 600, 1),
        pcp_answer(&request, [198, 51, 100, 7], 0, 600, 1),
        pcp_answer(&request, [198, 51, 100, 7], 99, 0, 1),
    ] {
        let mut map = begun(start);
        map.handle_timeout(start);
        assert!(!map.handle_udp(now, router(), &bad));
        assert_eq!(map.outer(), None);
    }
    assert!(map.handle_udp(now, router(), &good));
    assert!(!map.handle_udp(now, router(), &good), "not asked");
}

#[test]
fn a_gateway_that_lost_its_memory_is_asked_again_but_not_in_a_storm() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, request) = asked(&mut map, start, 2);
    let answer = |epoch_s| pcp_answer(&request, [198, 51, 100, 7], 99, 7200, epoch_s);
    map.handle_udp(now, router(), &answer(100_000));
    let (mut n_asked, mut later) = (0, now);
    for n in 0..100 {
        later += Duration::from_millis(100);
        map.handle_udp(later, router(), &answer(1000 - n));
        n_asked += map.handle_timeout(later).len();
    }
    assert!((1..=3).contains(&n_asked), "{n_asked}");
}

/// Runs the timers until there is an order.
fn ordered(map: &mut PortMap, mut now: Instant) -> (Instant, UpnpOrder) {
    for _ in 0..50 {
        now = now.max(map.poll_timeout().unwrap());
        map.handle_timeout(now);
        if let Some(order) = map.take_order() {
            return (now, order);
        }
    }
    panic!("never ordered");
}

#[test]
fn a_gateway_that_speaks_upnp_alone_is_asked_last_and_told_of_the_end() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, order) = ordered(&mut map, start);
    assert!(now - start < Duration::from_secs(10), "{:?}", now - start);
    let Gateway { ip, client, port } = gateway();
    assert_eq!(
        (IpAddr::V4(order.gateway), IpAddr::V4(order.client)),
        (ip, client)
    );
    assert_eq!((order.port, order.lifetime_s), (port, MAP_LIFETIME_S));
    let outer = "198.51.100.7:99".parse().unwrap();
    let other = UpnpOrder { port: 1, ..order };
    assert!(
        !map.handle_upnp(now, &other, Some((outer, 600))),
        "another order"
    );
    assert!(map.handle_upnp(now, &order, Some((outer, 600))));
    assert!(
        !map.handle_upnp(now, &order, None),
        "nothing is ordered any more"
    );
    assert_eq!((map.outer(), map.protocol()), (Some(outer), Some("UPnP")));
    // Half its life later it is asked for again, by UPnP at once.
    let (later, again) = ordered(&mut map, now);
    assert_eq!((later, again), (now + Duration::from_secs(300), order));
    assert!(
        !map.handle_upnp(later, &order, Some((outer, 600))),
        "nothing changed"
    );
    assert!(
        map.set_gateway(later, None, &mut Seed::new([2; 32]))
            .is_none()
    );
    let end = UpnpOrder {
        lifetime_s: 0,
        ..order
    };
    assert_eq!((map.take_order(), map.outer()), (Some(end), None));
}

#[test]
fn a_gateway_that_refuses_all_protocols_is_left_in_peace() {
    let start = Instant::now();
    let mut map = begun(start);
    let (now, _) = asked(&mut map, start, 2);
    map.handle_udp(now, router(), &[2, 0x81, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9]);
    let (now, _) = asked(&mut map, now, 0);
    map.handle_udp(now, router(), &[0, 0x81, 0, 2, 0, 0, 0, 9]);
    let (now, order) = ordered(&mut map, now);
    assert!(
        now - start < Duration::from_secs(1),
        "refusals are not waited out"
    );
    // A late word of another protocol is not the answer.
    map.handle_udp(now, router(), &[0, 0x81, 0, 2, 0, 0, 0, 9]);
    assert!(!map.handle_upnp(now, &order, None));
    assert_eq!(map.poll_timeout(), Some(now + MAP_RETRY_LATER));
    // Nor is silence waited for without end.
    let mut map = begun(start);
    let (now, _) = ordered(&mut map, start);
    let again = map.poll_timeout().unwrap();
    map.handle_timeout(again);
    assert_eq!((map.take_order(), map.outer()), (None, None));
    assert!(map.poll_timeout().unwrap() > now + MAP_RETRY_LATER);
}

#[test]
fn an_absurd_outer_endpoint_by_upnp_is_not_told() {
    let start = Instant::now();
    for bad in ["0.0.0.0:9", "127.0.0.1:9", "224.0.0.1:9", "198.51.100.7:0"] {
        let mut map = begun(start);
        let (now, order) = ordered(&mut map, start);
        assert!(
            !map.handle_upnp(now, &order, Some((bad.parse().unwrap(), 600))),
            "{bad}"
        );
        assert_eq!(map.outer(), None);
    }
}

#[test]
fn absurd_lifetimes_are_bounded() {
    let start = Instant::now();
    for (told, expected_s) in [
        (1, MAP_LIFETIMES_S.0 / 2),
        (u32::MAX, MAP_LIFETIMES_S.1 / 2),
    ] {
        let mut map = begun(start);
        let (now, request) = asked(&mut map, start, 2);
        map.handle_udp(
            now,
            router(),
            &pcp_answer(&request, [198, 51, 100, 7], 99, told, 1),
        );
        let expected = now + Duration::from_secs(u64::from(expected_s));
        assert_eq!(map.poll_timeout(), Some(expected));
    }
}
