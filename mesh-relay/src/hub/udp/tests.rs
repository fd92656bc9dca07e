//! Tests of the hub's UDP: who may send from where, whom it reaches, and by which way.

use std::sync::atomic::{AtomicU8, Ordering};

use mesh_proto::relay::{Pin, bind, is_relay_udp};
use proptest::prelude::*;

use super::*;

const PIN: Pin = Pin::from_bytes([6; 32]);

fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes([n; 32])
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 41_820))
}

/// A hub with connections of some nodes, and what each needs to know.
struct Rig {
    hub: Hub<u32>,
    now: Instant,
}

struct Node {
    id: ClientId,
    token: Token,
    alias: Alias,
}

impl Rig {
    fn new(bytes_per_second: u64) -> Self {
        let mut hub = Hub::new(100, bytes_per_second);
        hub.set_udp_secret([1; 32]);
        Self {
            hub,
            now: Instant::now(),
        }
    }

    fn enter(&mut self, n: u8) -> Node {
        static N_TOKENS: AtomicU8 = AtomicU8::new(0);
        let token = Token::from_bytes([N_TOKENS.fetch_add(1, Ordering::Relaxed); 16]);
        let alias = Alias::of(&PIN, &key(n));
        let waker = u32::from(n);
        let id = self.hub.enter(key(n), waker, self.now, &mut Vec::new());
        let id = id.unwrap();
        self.hub.offer_udp(id, token, alias, self.now);
        Node { id, token, alias }
    }

    fn hear(&mut self, from: SocketAddr, bytes: &mut [u8], stride: usize) -> Verdict {
        self.hub
            .on_udp(self.now, from, bytes, stride, &mut Vec::new())
    }

    /// What answers a bind.
    fn ask(&mut self, from: SocketAddr, token: &Token, cookie: &Cookie) -> Option<Vec<u8>> {
        let mut datagram = bind(token, cookie);
        let stride = datagram.len();
        self.hear(from, &mut datagram, stride).answer
    }

    /// Binds an endpoint as a node that receives there does.
    fn bind(&mut self, node: &Node, from: SocketAddr) {
        let answer = self.ask(from, &node.token, &Cookie::default()).unwrap();
        let cookie = cookie_in(&answer).unwrap();
        let answer = self.ask(from, &node.token, &cookie).unwrap();
        assert_eq!(answer, bound(node.token.tag()));
    }

    /// How many frames wait for a connection.
    fn n_waiting(&mut self, node: &Node) -> usize {
        let mut out = Vec::new();
        self.hub.take(node.id, 1 << 20, &mut out);
        out.len()
    }
}

fn cookie_in(answer: &[u8]) -> Option<Cookie> {
    match UdpMessage::parse(answer)? {
        UdpMessage::Cookie { cookie, .. } => Some(*cookie),
        UdpMessage::Bind { .. } | UdpMessage::Bound { .. } | UdpMessage::Data { .. } => None,
    }
}

/// Datagrams of this length, one after the other.
fn data(from: &Node, to: Alias, lens: &[usize]) -> Vec<u8> {
    let header = data_header(from.token.tag(), to);
    lens.iter()
        .flat_map(|len| [&header[..], &vec![WIREGUARD_DATA; *len][..]].concat())
        .collect()
}

#[test]
fn a_batch_goes_on_as_it_came_with_the_receivers_tag() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&a, at(1));
    rig.bind(&b, at(2));
    let mut bytes = data(&a, b.alias, &[100, 100, 40]);
    let verdict = rig.hear(at(1), &mut bytes, 120);
    let run = Run {
        to: at(2),
        range: 0..300,
        stride: 120,
    };
    assert_eq!((verdict.runs, verdict.answer), (vec![run], None));
    assert_eq!((verdict.n_datagrams, verdict.n_bytes), (3, 240));
    for datagram in bytes.chunks(120) {
        let header = data_header(b.token.tag(), a.alias);
        assert_eq!(datagram[..UDP_HEADER_LEN], header);
        assert!(datagram[UDP_HEADER_LEN..].iter().all(|byte| *byte == 4));
    }
}

#[test]
fn datagrams_for_several_receivers_go_each_its_way() {
    let mut rig = Rig::new(0);
    let (a, b, c) = (rig.enter(1), rig.enter(2), rig.enter(3));
    for (node, n) in [(&a, 1), (&b, 2), (&c, 3)] {
        rig.bind(node, at(n));
    }
    let mut bytes = data(&a, b.alias, &[50, 50]);
    bytes.extend(data(&a, c.alias, &[50]));
    bytes.extend(data(&a, b.alias, &[50]));
    let verdict = rig.hear(at(1), &mut bytes, 70);
    let to: Vec<_> = verdict
        .runs
        .iter()
        .map(|run| (run.to, run.range.clone()))
        .collect();
    assert_eq!(to, [(at(2), 0..140), (at(3), 140..210), (at(2), 210..280)]);
}

#[test]
fn nothing_goes_from_an_endpoint_that_was_not_proven() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&b, at(2));
    let mut bytes = data(&a, b.alias, &[100]);
    let forwards = |rig: &mut Rig, from, bytes: &mut [u8]| rig.hear(from, bytes, 120).n_datagrams;
    assert_eq!(
        forwards(&mut rig, at(1), &mut bytes.clone()),
        0,
        "not bound"
    );
    rig.bind(&a, at(1));
    assert_eq!(
        forwards(&mut rig, at(9), &mut bytes.clone()),
        0,
        "elsewhere"
    );
    // A cookie is for one endpoint: who knows the token cannot name a victim's.
    let cookie = rig.ask(at(1), &a.token, &Cookie::default()).unwrap();
    let cookie = cookie_in(&cookie).unwrap();
    let answer = rig.ask(at(9), &a.token, &cookie).unwrap();
    assert_ne!(cookie_in(&answer), Some(cookie));
    assert_eq!(
        forwards(&mut rig, at(9), &mut bytes.clone()),
        0,
        "a victim's"
    );
    assert_eq!(forwards(&mut rig, at(1), &mut bytes), 1);
}

#[test]
fn who_does_not_know_a_token_is_answered_by_nothing() {
    let mut rig = Rig::new(0);
    let a = rig.enter(1);
    assert_eq!(
        rig.ask(at(1), &Token::from_bytes([250; 16]), &[0; 16]),
        None
    );
    // The tag is in every datagram; it is not enough.
    let mut known = *a.token.as_bytes();
    known[15] ^= 1;
    assert_eq!(rig.ask(at(1), &Token::from_bytes(known), &[0; 16]), None);
    let mut short = bind(&a.token, &[0; 16]);
    short.pop();
    let stride = short.len();
    assert_eq!(rig.hear(at(1), &mut short, stride).answer, None);
}

#[test]
fn an_answer_is_shorter_than_what_it_answers() {
    let mut rig = Rig::new(0);
    let a = rig.enter(1);
    let answer = rig.ask(at(1), &a.token, &[0; 16]).unwrap();
    assert!(answer.len() < 64 && is_relay_udp(&answer));
}

#[test]
fn who_has_no_udp_receives_over_its_link() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&a, at(1));
    let send = |rig: &mut Rig| {
        let mut bytes = data(&a, b.alias, &[1_000, 1_000, 10]);
        let verdict = rig.hear(at(1), &mut bytes, 1_020);
        (verdict.runs.len(), rig.n_waiting(&b))
    };
    assert_eq!(send(&mut rig), (0, 1), "never bound");
    rig.bind(&b, at(2));
    assert_eq!(send(&mut rig), (1, 0));
    rig.hub.unbind(b.id);
    assert_eq!(send(&mut rig), (0, 1), "given up");
    rig.bind(&b, at(2));
    rig.now += BOUND_FOR;
    assert_eq!(send(&mut rig), (0, 1), "silent for too long");
}

#[test]
fn a_frame_over_the_link_holds_what_was_sealed() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&a, at(1));
    let mut bytes = data(&a, b.alias, &[300, 300, 10]);
    rig.hear(at(1), &mut bytes, 320);
    let mut out = Vec::new();
    rig.hub.take(b.id, 1 << 20, &mut out);
    let frame = Frame::parse(&out[0]).unwrap();
    let Frame::Received { from, datagrams } = frame else {
        panic!("{frame:?}");
    };
    let lens: Vec<_> = datagrams.iter().map(<[u8]>::len).collect();
    assert_eq!((from, lens), (key(1), vec![300, 300, 10]));
}

#[test]
fn handshakes_and_other_things_do_not_go_by_udp() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&a, at(1));
    rig.bind(&b, at(2));
    for first in [1, 2, 3, 0xd5, 0xd6] {
        let mut bytes = data(&a, b.alias, &[60]);
        bytes[UDP_HEADER_LEN] = first;
        let verdict = rig.hear(at(1), &mut bytes, 80);
        assert_eq!((verdict.n_datagrams, verdict.answer), (0, None));
    }
}

#[test]
fn who_left_receives_nothing_and_its_newer_connection_does() {
    let mut rig = Rig::new(0);
    let (a, b) = (rig.enter(1), rig.enter(2));
    rig.bind(&a, at(1));
    rig.bind(&b, at(2));
    let newer = rig.enter(2);
    rig.bind(&newer, at(3));
    let send = |rig: &mut Rig| {
        let mut bytes = data(&a, b.alias, &[100]);
        let verdict = rig.hear(at(1), &mut bytes, 120);
        (verdict.runs.first().map(|run| run.to), verdict.n_not_here)
    };
    assert_eq!(send(&mut rig), (Some(at(3)), 0));
    rig.hub.leave(newer.id, &mut Vec::new());
    assert_eq!(send(&mut rig), (Some(at(2)), 0));
    rig.hub.leave(b.id, &mut Vec::new());
    assert_eq!(send(&mut rig), (None, 1));
    assert_eq!(rig.ask(at(2), &b.token, &[0; 16]), None);
    assert_eq!(rig.hub.endpoints.of_tag.len(), 1);
    assert_eq!(rig.hub.endpoints.of_alias.len(), 1);
}

#[test]
fn who_sends_more_than_it_may_loses_that_and_harms_nobody() {
    let mut rig = Rig::new(1_000_000);
    let (a, b, c) = (rig.enter(1), rig.enter(2), rig.enter(3));
    for (node, n) in [(&a, 1), (&b, 2), (&c, 3)] {
        rig.bind(node, at(n));
    }
    let mut n_bytes = 0;
    for _ in 0..1_000 {
        rig.now += Duration::from_millis(10);
        let mut bytes = data(&a, b.alias, &[1_000; 40]);
        n_bytes += rig.hear(at(1), &mut bytes, 1_020).n_bytes;
        let mut bytes = data(&c, b.alias, &[500]);
        assert_eq!(rig.hear(at(3), &mut bytes, 520).n_datagrams, 1);
    }
    assert!((9_500_000..10_600_000).contains(&n_bytes), "{n_bytes}");
}

proptest! {
    #[test]
    fn any_bytes_are_taken(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        stride in 0_usize..120,
        kind in 0_u8..6,
    ) {
        let mut rig = Rig::new(0);
        let (a, b) = (rig.enter(1), rig.enter(2));
        rig.bind(&a, at(1));
        rig.bind(&b, at(2));
        let mut header = data_header(a.token.tag(), b.alias);
        header[3] = kind;
        for (byte, known) in bytes.iter_mut().zip(header.into_iter().chain([WIREGUARD_DATA])) {
            *byte = known;
        }
        let len = bytes.len();
        let verdict = rig.hear(at(1), &mut bytes, stride);
        let n_forwarded: usize = verdict.runs.iter().map(|run| run.range.len()).sum();
        prop_assert!(n_forwarded <= len);
        prop_assert!(verdict.answer.is_none_or(|answer| answer.len() <= len));
    }
}
