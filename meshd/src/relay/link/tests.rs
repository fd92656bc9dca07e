//! Tests of an open link: frames both ways, and how it notices that the relay is gone. Time is virtual.

use mesh_proto::id::RelayId;
use mesh_proto::key::{NodeKey, NodePrivateKey};
use mesh_proto::relay::{Datagrams, Pin};
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::control;
use crate::dial::Dialer;
use crate::relay::{Delivery, intake};

struct Rig {
    outbox: Arc<Outbox>,
    delivery: Delivery,
    _events: mpsc::Receiver<RelayEvent>,
    wish: watch::Sender<Wish>,
    cancel: CancellationToken,
    far: DuplexStream,
    task: tokio::task::JoinHandle<Ended>,
    id: RelayId,
}

/// A link whose connection stands, and the relay's end of it.
fn rig(is_home: bool) -> Rig {
    let pin = Pin::from_bytes([9; 32]);
    let id = RelayId::of(pin.as_bytes(), "");
    let (near, far) = duplex(256 << 10);
    let (intake, delivery) = intake().unwrap();
    let (events_tx, events) = mpsc::channel(4);
    let (wish_tx, wish) = watch::channel(Wish {
        is_home,
        wanted_at: Instant::now(),
        n_redials: 0,
    });
    let outbox = Arc::new(Outbox::default());
    outbox.set_open(true);
    let cancel = CancellationToken::new();
    let mut link = Link {
        relay: RelayEntry {
            id,
            name: String::new(),
            urls: vec![],
            pin,
            udp: vec![],
            stun: vec![],
        },
        credentials: Credentials {
            node_key: NodePrivateKey::from_bytes([1; 32]),
            tls: control::tls_config(*pin.as_bytes()).unwrap(),
            dialer: Dialer::default(),
        },
        outbox: Arc::clone(&outbox),
        sender: Arc::default(),
        socket: None,
        intake,
        events: events_tx,
        wish,
        cancel: cancel.clone(),
    };
    let task = tokio::spawn(async move { link.serve(near, BytesMut::new()).await });
    Rig {
        outbox,
        delivery,
        _events: events,
        wish: wish_tx,
        cancel,
        far,
        task,
        id,
    }
}

fn peer() -> NodeKey {
    NodeKey::from_bytes([5; 32])
}

impl Rig {
    async fn says(&mut self, frame: &Frame<'_>) {
        self.far.write_all(&frame.to_vec()).await.unwrap();
    }

    /// The next frame that the relay gets.
    async fn gets(&mut self) -> Vec<u8> {
        next_frame(&mut self.far).await
    }
}

async fn next_frame(far: &mut DuplexStream) -> Vec<u8> {
    let mut read = Vec::new();
    loop {
        if frame_len(&read, FRAME_MAX).unwrap().is_some() {
            return read;
        }
        match far.read_u8().await {
            Ok(byte) => read.push(byte),
            // The link's end is seen by its task.
            Err(_) => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_go_both_ways_and_the_rest_stays_with_the_link() {
    let mut rig = rig(true);
    assert_eq!(rig.outbox.push(&peer(), &[4; 1_300], 1_300), 1);
    let contents = [4; 1_300];
    let datagrams = Datagrams::new(&contents, 1_300).unwrap();
    let expected = Frame::Send {
        to: peer(),
        datagrams,
    };
    assert_eq!(rig.gets().await, expected.to_vec());
    let received = Frame::Received {
        from: peer(),
        datagrams,
    };
    rig.says(&received).await;
    let chunk = loop {
        if let Some(chunk) = rig.delivery.next() {
            break chunk;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (chunk.relay, &chunk.frames[..]),
        (rig.id, &received.to_vec()[..])
    );
    rig.says(&Frame::Ping([8; 8])).await;
    assert_eq!(rig.gets().await, Frame::Pong([8; 8]).to_vec());
    rig.says(&Frame::PeerGone { node: peer() }).await;
    rig.says(&Frame::Ping([9; 8])).await;
    assert_eq!(rig.gets().await, Frame::Pong([9; 8]).to_vec());
    rig.cancel.cancel();
    assert!(matches!(rig.task.await.unwrap(), Ended::Stopped));
}

#[tokio::test(start_paused = true)]
async fn small_packets_are_written_before_bulk() {
    let mut rig = rig(true);
    rig.outbox.push(&peer(), &[4; 1_300], 1_300);
    rig.outbox.push(&peer(), &[4; 100], 100);
    let mut read = BytesMut::new();
    while read.len() < 1_400 {
        rig.far.read_buf(&mut read).await.unwrap();
    }
    let first = frame_len(&read, FRAME_MAX).unwrap().unwrap();
    assert!(first < 200, "{first}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_answers_pings_stays_and_one_that_does_not_is_dead() {
    let mut rig = rig(true);
    for _ in 0..3 {
        let Frame::Ping(bytes) = Frame::parse(&rig.gets().await).unwrap() else {
            panic!("a ping was due")
        };
        rig.says(&Frame::Pong(bytes)).await;
    }
    let since = Instant::now();
    for _ in 0..N_MISSED_MAX {
        let ping = rig.gets().await;
        assert!(matches!(Frame::parse(&ping), Ok(Frame::Ping(_))));
    }
    assert!(matches!(rig.task.await.unwrap(), Ended::Dead));
    let silent = Duration::from_millis(PING_EVERY_MS + 2 * PONG_DEADLINE_MS);
    assert!(
        since.elapsed() <= silent + 4 * TICK,
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_leaves_traffic_unanswered_is_asked_soon() {
    let mut rig = rig(true);
    let since = Instant::now();
    rig.outbox.push(&peer(), &[4; 1_300], 1_300);
    rig.gets().await;
    let ping = rig.gets().await;
    assert!(matches!(Frame::parse(&ping), Ok(Frame::Ping(_))));
    assert!(
        since.elapsed() <= UNANSWERED_MAX + 2 * TICK,
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_that_is_not_home_ends() {
    let mut rig = rig(false);
    let since = Instant::now();
    let ended = loop {
        let frame = tokio::select! {
            ended = &mut rig.task => break ended.unwrap(),
            frame = next_frame(&mut rig.far) => frame,
        };
        let Frame::Ping(bytes) = Frame::parse(&frame).unwrap() else {
            panic!("only pings are due")
        };
        rig.says(&Frame::Pong(bytes)).await;
    };
    assert!(matches!(ended, Ended::Idle), "{ended}");
    let lasted = since.elapsed();
    assert!(
        lasted >= IDLE_MAX && lasted <= IDLE_MAX + 3 * TICK,
        "{lasted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_changed_network_a_restart_and_a_removal_end_a_link() {
    let redialled = rig(true);
    tokio::task::yield_now().await;
    redialled.wish.send_modify(|wish| wish.n_redials += 1);
    assert!(matches!(redialled.task.await.unwrap(), Ended::Redial));

    let mut restarting = rig(true);
    restarting
        .says(&Frame::Restarting {
            reconnect_in_ms: 500,
            try_for_ms: 30_000,
        })
        .await;
    assert!(matches!(
        restarting.task.await.unwrap(),
        Ended::Restarting { reconnect_in } if reconnect_in == Duration::from_millis(500)
    ));

    let mut removed = rig(true);
    removed.says(&Frame::Health(Health::Removed)).await;
    assert!(matches!(removed.task.await.unwrap(), Ended::Removed));

    let gone = rig(true);
    drop(gone.far);
    assert!(matches!(
        gone.task.await.unwrap(),
        Ended::HungUp | Ended::Io(_)
    ));

    let mut nonsense = rig(true);
    nonsense.far.write_all(&[5, 255, 255, 255]).await.unwrap();
    assert!(matches!(nonsense.task.await.unwrap(), Ended::Frame(_)));
}
