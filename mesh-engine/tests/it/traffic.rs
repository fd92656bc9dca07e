//! What may pass: the default policy, answers, and the service ports.

use std::net::IpAddr;
use std::time::Duration;

use mesh_engine::{
    Admit, ChecksumState, DropReason, Outbound, ServicePort, ServicePorts, Transport, Update,
};
use mesh_proto::filter::Filter;
use proptest::prelude::*;

use crate::ip;
use crate::session::one_user;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn services() -> ServicePorts {
    let entry = |transport, port, hidden| ServicePort {
        transport,
        port,
        hidden,
    };
    ServicePorts {
        local: vec![
            entry(Transport::Udp, 53, 40_053),
            entry(Transport::Tcp, 53, 40_054),
            entry(Transport::Tcp, 11434, 40_434),
            entry(Transport::Tcp, 80, 40_080),
        ],
        door: vec![
            entry(Transport::Tcp, 11434, 41_434),
            entry(Transport::Tcp, 80, 41_080),
        ],
    }
}

/// Two nodes of two users, with doors.
fn strangers() -> World {
    let mut world = World::new(2, 1);
    world.tell_all();
    for idx in 0..2 {
        world.control(idx, Update::Services(services()));
    }
    world
}

/// Whether node 1's filter lets a packet of node 0 in.
fn passes(world: &mut World, packet: &[u8]) -> bool {
    let before = world.n_received(1);
    assert!(world.send(0, packet).is_none());
    world.run(SECOND);
    world.n_received(1) > before
}

fn tcp(world: &World, from: usize, to: usize, ports: (u16, u16)) -> Vec<u8> {
    let (from, to) = (&world.nodes[from], &world.nodes[to]);
    let (src, dst) = ((from.ipv4.into(), ports.0), (to.ipv4.into(), ports.1));
    ip::transport(ip::TCP, src, dst, b"x")
}

fn echo(world: &World, is_request: bool) -> Vec<u8> {
    let (src, dst) = (world.nodes[0].ipv4.into(), world.nodes[1].ipv4.into());
    ip::echo(src, dst, is_request, 7, b"x")
}

#[test]
fn the_default_policy() {
    for (is_one_user, expected) in [
        (true, [true, true, true, true, true, true, true]),
        (false, [true, true, true, false, false, false, true]),
    ] {
        let mut world = strangers();
        if is_one_user {
            one_user(&mut world);
            world.tell_all();
        }
        let packets = [
            echo(&world, true),
            tcp(&world, 0, 1, (5000, 11434)),
            tcp(&world, 0, 1, (5000, 80)),
            tcp(&world, 0, 1, (5000, 22)),
            world.udp(0, 1, (5000, 53), b"x"),
            world.udp(0, 1, (5000, 11434), b"x"),
            world.tcp6(0, 1, (5000, 11434), b"x"),
        ];
        let found = packets.map(|packet| passes(&mut world, &packet));
        assert_eq!(found, expected);
    }
}

#[test]
fn tagged_nodes_are_their_tags_and_not_their_user() {
    let mut world = strangers();
    one_user(&mut world);
    world.nodes[0].tags = vec!["tag:lab".parse().unwrap()];
    world.tell_all();
    let packet = tcp(&world, 0, 1, (5000, 22));
    assert!(!passes(&mut world, &packet));
}

#[test]
fn answers_pass_and_new_flows_do_not() {
    let mut world = strangers();
    for (own, peer) in [(5000, 9000), (5001, 9001)] {
        let opening = tcp(&world, 1, 0, (own, peer));
        let back = tcp(&world, 0, 1, (peer, own));
        assert!(!passes(&mut world, &back));
        world.send(1, &opening);
        world.run(SECOND);
        assert!(passes(&mut world, &back));
        let [other_port, other_own] = [(peer + 100, own), (peer, own + 100)];
        for ports in [other_port, other_own] {
            let packet = tcp(&world, 0, 1, ports);
            assert!(!passes(&mut world, &packet));
        }
    }
    let opening = world.udp(1, 0, (7000, 53), b"q");
    world.send(1, &opening);
    world.run(SECOND);
    let [answer, other] = [(53, 7000), (54, 7000)].map(|ports| world.udp(0, 1, ports, b"a"));
    assert!(passes(&mut world, &answer) && !passes(&mut world, &other));
    world.run(200 * SECOND);
    assert!(!passes(&mut world, &answer), "an idle flow ends");
}

#[test]
fn echo_replies_pass_only_when_asked_for() {
    let mut world = strangers();
    let reply = echo(&world, false);
    assert!(!passes(&mut world, &reply));
    let (src, dst) = (world.nodes[1].ipv4.into(), world.nodes[0].ipv4.into());
    world.send(1, &ip::echo(src, dst, true, 7, b"x"));
    world.run(SECOND);
    assert_eq!(world.n_received(1), 1, "the kernel of node 0 answered");
}

#[test]
fn icmp_errors_pass_when_they_quote_an_own_flow() {
    let mut world = strangers();
    let opening = world.udp(1, 0, (7000, 53), b"q");
    let (src, dst) = (world.nodes[0].ipv4.into(), world.nodes[1].ipv4.into());
    let error = |quoted: &[u8]| {
        let segment = [&[3, 3, 0, 0, 0, 0, 0, 0], &quoted[..28]].concat();
        ip::ip(src, dst, 1, &segment)
    };
    assert!(!passes(&mut world, &error(&opening)));
    world.send(1, &opening);
    world.run(SECOND);
    assert!(passes(&mut world, &error(&opening)));
    let other = world.udp(1, 0, (7001, 53), b"q");
    assert!(!passes(&mut world, &error(&other)));
    let not_ours = world.udp(0, 1, (7000, 53), b"q");
    assert!(!passes(&mut world, &error(&not_ours)));
}

#[test]
fn a_rule_that_goes_ends_the_flows_it_allowed() {
    let mut world = strangers();
    let there = tcp(&world, 0, 1, (5000, 11434));
    assert!(passes(&mut world, &there));
    world.send(1, &tcp(&world, 1, 0, (41_434, 5000)));
    world.run(SECOND);
    world.nodes[1].filter = Filter::default();
    world.set_netmap(1, world.netmap_of(1));
    assert!(!passes(&mut world, &there));
}

#[test]
fn fragments_follow_their_first() {
    let mut world = strangers();
    let fragment = |world: &World, protocol: u8, id: u16, offset: u16, body: &[u8]| {
        let (src, dst) = (world.nodes[0].ipv4.into(), world.nodes[1].ipv4.into());
        let mut packet = ip::ip(src, dst, protocol, body);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&(offset | 0x2000).to_be_bytes());
        packet
    };
    world.send(1, &world.udp(1, 0, (7000, 53), b"q"));
    world.run(SECOND);
    let answer = world.udp(0, 1, (53, 7000), &[1; 64]);
    let later = fragment(&world, ip::UDP, 1, 9, &[2; 64]);
    // The own side is node 0, which does not mind sending them.
    assert!(!passes(&mut world, &later));
    let first = fragment(&world, ip::UDP, 1, 0, &answer[20..]);
    assert!(passes(&mut world, &first));
    assert!(passes(&mut world, &later));
    let other = fragment(&world, ip::UDP, 2, 9, &[2; 64]);
    assert!(!passes(&mut world, &other));
    let tcp = tcp(&world, 0, 1, (5000, 11434));
    let hidden = fragment(&world, ip::TCP, 3, 0, &tcp[20..]);
    assert!(matches!(
        world.send(0, &hidden),
        Some(Outbound::Drop(DropReason::Malformed))
    ));
}

#[test]
fn protocol_255_and_fragments_open_no_way_for_each_other() {
    let mut world = strangers();
    let packet = |world: &World, (from, to): (usize, usize), protocol, place: u16, body: &[u8]| {
        let (src, dst) = (world.nodes[from].ipv4.into(), world.nodes[to].ipv4.into());
        let mut packet = ip::ip(src, dst, protocol, body);
        packet[4..8].copy_from_slice(&u32::from(place).to_be_bytes());
        packet
    };
    world.send(1, &packet(&world, (1, 0), 255, 0, &[3; 64]));
    world.run(SECOND);
    let later = packet(&world, (0, 1), ip::UDP, 0x2009, &[2; 64]);
    assert!(!passes(&mut world, &later));
    world.send(1, &world.udp(1, 0, (7000, 53), b"q"));
    world.run(SECOND);
    let answer = world.udp(0, 1, (53, 7000), &[1; 64]);
    let first = packet(&world, (0, 1), ip::UDP, 0x2000, &answer[20..]);
    assert!(passes(&mut world, &first));
    assert!(passes(&mut world, &later));
    let alike = packet(&world, (0, 1), 255, 0, &[3; 64]);
    assert!(!passes(&mut world, &alike));
}

#[test]
fn the_door_stands_before_the_machines_own_servers() {
    let mut world = strangers();
    one_user(&mut world);
    world.tell_all();
    for (port, hidden) in [(11434, 41_434), (80, 41_080)] {
        for is_v6 in [false, true] {
            let knock = if is_v6 {
                world.tcp6(0, 1, (5000, port), b"x")
            } else {
                tcp(&world, 0, 1, (5000, port))
            };
            assert!(passes(&mut world, &knock));
            let arrived = world.nodes[1].received.last().unwrap();
            assert_eq!(ip::parts(arrived).ports(), (5000, hidden));
            assert!(ip::is_valid(arrived));
            let answer = if is_v6 {
                world.tcp6(1, 0, (hidden, 5000), b"y")
            } else {
                tcp(&world, 1, 0, (hidden, 5000))
            };
            world.send(1, &answer);
            world.run(SECOND);
            let arrived = world.nodes[0].received.last().unwrap();
            assert_eq!(ip::parts(arrived).ports(), (port, 5000));
            assert!(ip::is_valid(arrived));
        }
    }
    for hidden in [41_434, 41_080, 40_434, 40_080, 40_054] {
        let packet = tcp(&world, 0, 1, (5000, hidden));
        assert!(!passes(&mut world, &packet), "nobody gets at a hidden port");
    }
    let packet = world.udp(0, 1, (5000, 40_053), b"x");
    assert!(!passes(&mut world, &packet));
    world.control(1, Update::Services(ServicePorts::default()));
    for port in [11434, 80] {
        let packet = tcp(&world, 0, 1, (5000, port));
        assert!(!passes(&mut world, &packet), "no door, no way in");
    }
}

#[test]
fn only_own_packets_leave_and_only_true_sources_arrive() {
    let mut world = strangers();
    one_user(&mut world);
    world.tell_all();
    let ips = world
        .nodes
        .iter()
        .map(|node| IpAddr::V4(node.ipv4))
        .collect::<Vec<_>>();
    let stranger: IpAddr = "192.168.1.1".parse().unwrap();
    let service = IpAddr::V4(world.network.service_ipv4);
    let packet = ip::transport(ip::UDP, (stranger, 1), (ips[1], 2), b"x");
    assert!(matches!(
        world.send(0, &packet),
        Some(Outbound::Drop(DropReason::WrongSource))
    ));
    let packet = ip::transport(ip::UDP, (ips[0], 1), (stranger, 2), b"x");
    assert!(matches!(
        world.send(0, &packet),
        Some(Outbound::Drop(DropReason::NoRoute))
    ));

    let mut ping = echo(&world, true);
    assert!(passes(&mut world, &ping.clone()));
    let now = world.instant();
    let Outbound::Peer(peer) = world.nodes[1].plane.outbound(
        now,
        &mut world.udp(1, 0, (1, 2), b"x"),
        ChecksumState::Complete,
    ) else {
        panic!("there is a peer");
    };
    assert!(matches!(
        world.nodes[1].plane.admit(now, &peer, &mut ping),
        Admit::Deliver
    ));
    for (src, dst, reason) in [
        (stranger, ips[1], DropReason::WrongSource),
        (ips[1], ips[1], DropReason::WrongSource),
        (service, ips[1], DropReason::WrongSource),
        (ips[0], service, DropReason::WrongDestination),
        (ips[0], ips[0], DropReason::WrongDestination),
        (ips[0], stranger, DropReason::WrongDestination),
    ] {
        let mut packet = ip::transport(ip::UDP, (src, 1), (dst, 2), b"x");
        let admit = world.nodes[1].plane.admit(now, &peer, &mut packet);
        assert!(
            matches!(admit, Admit::Drop(found) if found == reason),
            "{src} {dst} {admit:?}"
        );
    }
}

/// What the own node's kernel gets when a program talks to the service address, there and back.
fn reflects(
    protocol: u8,
    is_v6: bool,
    client_port: u16,
    payload: &[u8],
    state: ChecksumState,
) -> Result<(), TestCaseError> {
    let world = strangers();
    let node = &world.nodes[0];
    let (own, service): (IpAddr, IpAddr) = if is_v6 {
        (node.ipv6.into(), world.network.service_ipv6.into())
    } else {
        (node.ipv4.into(), world.network.service_ipv4.into())
    };
    let hidden = if protocol == ip::UDP { 40_053 } else { 40_054 };
    let mut request = ip::transport(protocol, (own, client_port), (service, 53), payload);
    let mut answer = ip::transport(protocol, (own, hidden), (service, client_port), payload);
    for (packet, src, dst) in [
        (&mut request, (service, client_port), (own, hidden)),
        (&mut answer, (service, 53), (own, client_port)),
    ] {
        if state == ChecksumState::Partial {
            ip::make_partial(packet);
        }
        let outbound = node.plane.outbound(world.instant(), packet, state);
        prop_assert!(matches!(outbound, Outbound::Reflect), "{:?}", outbound);
        if state == ChecksumState::Partial {
            ip::complete(packet);
        }
        let expected = ip::transport(protocol, src, dst, payload);
        prop_assert!(ip::is_valid(packet));
        prop_assert_eq!(&*packet, &expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reflected_packets_are_as_if_the_service_had_sent_them(
        is_udp: bool,
        is_v6: bool,
        is_partial: bool,
        client_port in 32_768..40_000u16,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let protocol = if is_udp { ip::UDP } else { ip::TCP };
        let state = if is_partial { ChecksumState::Partial } else { ChecksumState::Complete };
        reflects(protocol, is_v6, client_port, &payload, state)?;
    }
}

#[test]
fn the_service_address_answers_pings_and_nothing_unknown() {
    let mut world = strangers();
    let (own, service) = (
        IpAddr::V4(world.nodes[0].ipv4),
        IpAddr::V4(world.network.service_ipv4),
    );
    for is_request in [true, false] {
        world.nodes[0].received.clear();
        assert!(
            world
                .send(0, &ip::echo(own, service, is_request, 9, b"x"))
                .is_none()
        );
        let arrived = &world.nodes[0].received[0];
        assert_eq!(
            (ip::parts(arrived).src, ip::parts(arrived).dst),
            (service, own)
        );
        assert!(ip::is_valid(arrived));
    }
    let unknown = ip::transport(ip::TCP, (own, 5), (service, 22), b"x");
    assert!(matches!(
        world.send(0, &unknown),
        Some(Outbound::Drop(DropReason::NoService))
    ));
}
