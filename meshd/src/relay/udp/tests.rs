//! A relay's UDP from the node's side. Sockets are real, time is virtual; the test is the packet thread and the relay.

use std::cell::Cell;
use std::net::UdpSocket as Far;

use mesh_io::udp::UdpConfig;
use mesh_proto::relay::{bound, cookie};

use super::*;

const MADE: Cookie = [3; 16];

struct Rig {
    far: Far,
    relay: RelayEntry,
    routes: Routes,
    socket: UdpSocket,
    token: Token,
}

fn rig() -> Rig {
    let far = Far::bind("127.0.0.1:0").unwrap();
    far.set_nonblocking(true).unwrap();
    let pin = Pin::from_bytes([9; 32]);
    let relay = RelayEntry {
        id: RelayId::of(pin.as_bytes(), ""),
        name: String::new(),
        urls: vec![],
        pin,
        udp: vec![],
        stun: vec![far.local_addr().unwrap()],
    };
    Rig {
        far,
        relay,
        routes: Routes::default(),
        socket: UdpSocket::bind(UdpConfig::default()).unwrap(),
        token: Token::from_bytes([7; 16]),
    }
}

impl Rig {
    /// The cookie of the next bind.
    async fn asked(&self) -> Cookie {
        let mut datagram = [0; 2048];
        loop {
            if let Ok(len) = self.far.recv(&mut datagram) {
                let read = UdpMessage::parse(&datagram[..len]);
                let Some(UdpMessage::Bind { token, cookie }) = read else {
                    panic!("{read:?}");
                };
                assert!(self.token.is_same(token));
                return *cookie;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn says(&self, datagram: &[u8]) -> Option<(RelayId, Alias, Vec<u8>)> {
        let from = self.far.local_addr().unwrap();
        let (relay, alias, datagram) = self.routes.take(from, datagram)?;
        Some((relay, alias, datagram.to_vec()))
    }

    fn way(&self, contents: &[u8]) -> Option<(SocketAddr, [u8; UDP_HEADER_LEN])> {
        self.routes
            .to(&self.relay.id, &node(), contents, contents.len())
    }

    async fn bind(&self) {
        let tag = self.token.tag();
        assert_eq!(self.asked().await, Cookie::default());
        assert!(self.way(&[4, 0]).is_none(), "not proven yet");
        assert_eq!(self.says(&cookie(tag, &MADE)), None);
        assert_eq!(self.asked().await, MADE);
        assert_eq!(self.says(&bound(tag)), None);
        self.wait(true).await;
    }

    async fn wait(&self, is_bound: bool) {
        let changed = async {
            while self.way(&[4, 0]).is_some() != is_bound {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), changed).await.unwrap();
    }
}

fn node() -> NodeKey {
    NodeKey::from_bytes([5; 32])
}

/// Runs `test` beside a keeper that was offered UDP; gives how often it was used and lost.
async fn kept(rig: &Rig, test: impl Future<Output = ()>) -> (u32, u32) {
    let offer = Offer {
        port: rig.far.local_addr().unwrap().port(),
        token: rig.token,
    };
    let (_offer_tx, offers) = watch::channel(Some(offer));
    let keeper = Keeper {
        relay: &rig.relay,
        routes: &rig.routes,
        socket: &rig.socket,
    };
    let (n_used, n_lost) = (Cell::new(0), Cell::new(0));
    tokio::select! {
        () = keeper.keep(offers, || n_used.set(n_used.get() + 1), || n_lost.set(n_lost.get() + 1)) => {
            panic!("it ended before its link")
        }
        () = test => {}
    }
    (n_used.get(), n_lost.get())
}

#[tokio::test(start_paused = true)]
async fn what_is_bound_carries_data_and_nothing_else() {
    let rig = rig();
    kept(&rig, async {
        rig.bind().await;
        let (endpoint, header) = rig.way(&[4, 0]).unwrap();
        assert_eq!(endpoint, rig.far.local_addr().unwrap());
        let alias = Alias::of(&rig.relay.pin, &node());
        assert_eq!(header, data_header(rig.token.tag(), alias));
        assert!(rig.way(&[1, 0]).is_none(), "handshakes go by the link");
        let long = vec![4; UDP_DATAGRAM_MAX + 1];
        assert!(rig.way(&long).is_none());
        assert!(rig.way(&long[1..]).is_some());

        let data = [&header[..], &[4, 0, 9]].concat();
        assert_eq!(rig.says(&data), Some((rig.relay.id, alias, vec![4, 0, 9])));
        let other = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(rig.routes.take(other, &data).is_none());
        let handshake = [&header[..], &[1, 0, 9]].concat();
        assert_eq!(rig.says(&handshake), None);
        let stranger = data_header(Token::from_bytes([8; 16]).tag(), alias);
        assert_eq!(rig.says(&[&stranger[..], &[4, 0]].concat()), None);

        let peers = [NodeKey::from_bytes([1; 32]), node()];
        assert_eq!(
            rig.routes.node_of(&rig.relay.id, alias, &peers),
            Some(node())
        );
        assert_eq!(rig.routes.node_of(&rig.relay.id, alias, &peers[..1]), None);
    })
    .await;
    assert!(rig.way(&[4, 0]).is_none(), "the link ended");
}

#[tokio::test(start_paused = true)]
async fn a_way_in_use_that_dies_is_left_within_two_seconds_and_tried_again() {
    let rig = rig();
    let (n_used, n_lost) = kept(&rig, async {
        rig.bind().await;
        // `wait` used it: the relay is asked again soon, and stays silent.
        let since = Instant::now();
        rig.wait_unused(false).await;
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "{:?}",
            since.elapsed()
        );
        let again = async { while rig.asked().await != Cookie::default() {} };
        timeout(RETRY_AFTER * 2, again).await.unwrap();
    })
    .await;
    assert_eq!((n_used, n_lost), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_way_is_bound_again_now_and_then() {
    let rig = rig();
    kept(&rig, async {
        rig.bind().await;
        let _ = rig.asked().await;
        let mut since = Instant::now();
        for _ in 0..3 {
            rig.says(&bound(rig.token.tag()));
            let _ = rig.asked().await;
            let elapsed = since.elapsed();
            // It is read here a moment after it was asked.
            assert!(
                elapsed + TICK >= BIND_EVERY && elapsed < BIND_EVERY + TICK * 2,
                "{elapsed:?}"
            );
            since = Instant::now();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_the_link_carries_until_the_relay_answers_anew() {
    let rig = rig();
    let (_, n_lost) = kept(&rig, async {
        rig.bind().await;
        let _ = rig.asked().await;
        rig.says(&bound(rig.token.tag()));
        rig.wait_unused(false).await;
        let since = Instant::now();
        assert!(rig.way(&[4, 0]).is_none());
        let _ = rig.asked().await;
        assert!(since.elapsed() < Duration::from_millis(50));
        assert!(rig.way(&[4, 0]).is_none());
        rig.says(&bound(rig.token.tag()));
        sleep(Duration::from_millis(10)).await;
        assert!(rig.way(&[4, 0]).is_some());
    })
    .await;
    assert_eq!(n_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_mapping_of_the_nat_is_bound_without_a_pause() {
    let rig = rig();
    let (_, n_lost) = kept(&rig, async {
        rig.bind().await;
        let _ = rig.asked().await;
        let since = Instant::now();
        rig.says(&cookie(rig.token.tag(), &[4; 16]));
        assert_eq!(rig.asked().await, [4; 16]);
        assert!(since.elapsed() < Duration::from_millis(50));
        rig.says(&bound(rig.token.tag()));
        sleep(Duration::from_millis(10)).await;
        assert!(rig.way(&[4, 0]).is_some());
    })
    .await;
    assert_eq!(n_lost, 0);
}

impl Rig {
    /// As [`Rig::wait`], without using the way.
    async fn wait_unused(&self, is_bound: bool) {
        let changed = async {
            let is_as_wanted = || {
                let routes = self.routes.0.load();
                let any = routes
                    .iter()
                    .any(|route| route.is_live.load(Ordering::Relaxed));
                any == is_bound
            };
            while !is_as_wanted() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), changed).await.unwrap();
    }
}
