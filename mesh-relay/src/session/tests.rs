//! Sessions over pipes, with a clock that moves only when everybody waits for it.

use mesh_proto::relay::{Datagrams, Pin};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{Members, RelayConfig};

const N_DATAGRAMS: usize = 30;
const LEN: usize = 1_400;

/// Counts nothing.
#[derive(Debug)]
struct Blind;

impl Meter for Blind {
    fn entered(&self) {}
    fn left(&self) {}
    fn refused(&self, _: Denial) {}
    fn queued(&self, _: usize) {}
    fn forwarded(&self, _: usize, _: usize) {}
    fn forwarded_by_udp(&self, _: usize) {}
    fn dropped(&self, _: &'static str, _: usize) {}
    fn stun_answered(&self) {}
}

fn relay() -> Arc<Relay> {
    Relay::new(RelayConfig {
        pin: Pin::from_bytes([1; 32]),
        bytes_per_second: 0,
        members: watch::channel(Arc::new(Members::default())).1,
        meter: Arc::new(Blind),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    })
}

/// A node that was let in, by its end of a connection that holds so many bytes.
fn connect(relay: &Arc<Relay>, node: NodeKey, n_bytes: usize) -> DuplexStream {
    let (near, far) = tokio::io::duplex(n_bytes);
    let wakers = Arc::new(Wakers::default());
    let enter = |hub: &mut crate::hub::Hub<_>, wake: &mut Vec<_>| {
        hub.enter(node, Arc::clone(&wakers), Instant::now(), wake)
    };
    let id = relay.with_hub(enter).expect("there is room");
    let relay = Arc::clone(relay);
    tokio::spawn(async move { serve(&relay, id, &wakers, (far, BytesMut::new()), &[]).await });
    near
}

#[tokio::test(start_paused = true)]
async fn a_sender_waits_for_its_receiver_and_not_for_the_clock() {
    let relay = relay();
    let to = NodeKey::from_bytes([2; 32]);
    // More is there to be read than may wait for the receiver.
    let mut sender = connect(&relay, NodeKey::from_bytes([1; 32]), 2 << 20);
    let mut receiver = connect(&relay, to, 64 << 10);
    let contents = vec![4; N_DATAGRAMS * LEN];
    let datagrams = Datagrams::new(&contents, LEN).unwrap();
    let frame = Frame::Send { to, datagrams }.to_vec();
    let reading = tokio::spawn(async move {
        let mut read = vec![0; 64 << 10];
        while receiver.read(&mut read).await.unwrap() > 0 {}
    });
    let began = tokio::time::Instant::now();
    for _ in 0..(16 << 20) / frame.len() {
        sender.write_all(&frame).await.unwrap();
    }
    assert_eq!(
        began.elapsed(),
        Duration::ZERO,
        "somebody waited for the clock"
    );
    reading.abort();
}
