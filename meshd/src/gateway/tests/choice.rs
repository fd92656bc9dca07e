//! How the gateway chooses between real doors: by speed, by what it prefers, and away from what is frozen.

use std::time::Instant;

use tokio::task::JoinSet;

use super::streams::Wire;
use super::*;

/// A host whose model server takes so long for each request, one at a time.
struct Slow {
    _door: Node,
    _wire: Wire,
    _server: AbortOnDropHandle<()>,
}

async fn slow_host(n: u8, port: u16, takes: Duration) -> Slow {
    let backend = Backend::start().await;
    let (addr, listener) = (backend.addr, backend.listener);
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut seen = Vec::new();
                while streams::next_request(&mut stream, &mut seen).await.is_some() {
                    tokio::time::sleep(takes).await;
                    let body = r#"{"done":true,"eval_count":9}"#;
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(head.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let config = ShareConfig { n_slots: 1, ..on() };
    let kept = Backend {
        listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        addr,
    };
    let door = Node::start(Vec::new(), config, vec![(ollama("tiny"), &kept)], None);
    Slow {
        _wire: Wire::new(n, port, door.gateway.door_ports().model),
        _door: door,
        _server: AbortOnDropHandle::new(server),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn work_is_split_by_speed_where_one_host_is_four_times_slower() {
    const N_REQUESTS: usize = 130;
    let unit = Duration::from_millis(100);
    let (listeners, port) = guest::hosts(&[4, 5, 6, 7]).await;
    drop(listeners);
    let mut hosts = Vec::new();
    for (n, takes) in [(4, unit), (5, unit), (6, unit), (7, unit * 4)] {
        hosts.push(slow_host(n, port, takes).await);
    }
    let peers = (4..=7).map(|n| peer(n, vec![ollama("tiny")])).collect();
    let guest = Node::start(peers, ShareConfig::default(), Vec::new(), Some(port));
    let at = guest.gateway.guest_ports().unwrap().model;
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(N_REQUESTS));
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..12 {
        let left = Arc::clone(&left);
        clients.spawn(async move {
            let ordering = Ordering::Relaxed;
            while left
                .fetch_update(ordering, ordering, |n| n.checked_sub(1))
                .is_ok()
            {
                let ask = r#"{"model":"tiny","prompt":"hi","stream":false}"#;
                let reply = Client::send(1, at, &post("/api/generate", ask)).await;
                assert_eq!(reply.reply().await.status, 200);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let took = started.elapsed();
    // Three of them do one each in a unit, the fourth a quarter.
    let best = unit.mul_f64(N_REQUESTS as f64 / 3.25);
    println!(
        "{took:?}, at best {best:?}: {:.2}",
        took.as_secs_f64() / best.as_secs_f64()
    );
    assert!(took < best.mul_f64(1.15), "{took:?} for {best:?}");
}

#[tokio::test]
async fn a_client_is_told_who_answered_and_may_prefer_a_host() {
    let (listeners, port) = guest::hosts(&[4, 5, 6]).await;
    drop(listeners);
    let mut hosts = Vec::new();
    for n in 4..=6 {
        hosts.push(slow_host(n, port, Duration::ZERO).await);
    }
    let peers = (4..=6).map(|n| peer(n, vec![ollama("tiny")])).collect();
    let guest = Node::start(peers, ShareConfig::default(), Vec::new(), Some(port));
    let ask = |prefer: &str| {
        let body = r#"{"model":"TINY","prompt":"hi","stream":false}"#;
        post("/api/generate", body).replace(
            "\r\n\r\n",
            &format!("\r\nX-Proxima-Prefer: {prefer}\r\n\r\n"),
        )
    };
    for n in [4, 5, 6, 4] {
        let reply = guest.guest(&ask(&format!("peer{n}"))).await.reply().await;
        assert_eq!(reply.status, 200);
        for line in [
            &format!("x-proxima-host: peer{n}"),
            "x-proxima-model: tiny",
            "x-proxima-attempts: 1",
            "x-proxima-queue-ms: 0",
        ] {
            assert!(reply.head.contains(line), "{line}: {}", reply.head);
        }
    }
    for prefer in ["fastest", "nearest", "peer99"] {
        assert_eq!(guest.guest(&ask(prefer)).await.reply().await.status, 200);
    }
    let reply = guest.guest(&ask("the best one")).await.reply().await;
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("fastest"), "{}", reply.body);
    drop(hosts);
}

#[tokio::test]
async fn a_frozen_host_is_out_of_use_in_three_seconds_and_a_slow_one_is_not() {
    let (mut hosts, port) = guest::hosts(&[4, 5]).await;
    // One takes connections and says nothing, as a machine does for a program that is stopped; the other lives and is slow.
    let frozen = hosts.remove(0);
    drop(hosts);
    let _slow = slow_host(5, port, Duration::from_secs(6)).await;
    let peers = vec![peer(4, vec![ollama("tiny")]), peer(5, vec![ollama("tiny")])];
    let guest = Node::start(peers, ShareConfig::default(), Vec::new(), Some(port));
    let ask = post(
        "/api/generate",
        r#"{"model":"tiny","prompt":"hi","stream":false}"#,
    )
    .replace("\r\n\r\n", "\r\nX-Proxima-Prefer: peer4\r\n\r\n");
    let started = Instant::now();
    let mut down = guest.hosts.subscribe();
    let client = guest.guest(&ask).await;
    soon(down.changed()).await.unwrap();
    let took = started.elapsed();
    assert!(guest.hosts.is_down(&node_id(4), Instant::now()));
    assert!(took < Duration::from_secs(3), "{took:?}");
    let reply = client.reply().await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.head.contains("x-proxima-host: peer5"));
    assert!(reply.head.contains("x-proxima-attempts: 2"));
    assert!(
        started.elapsed() > Duration::from_secs(6),
        "the slow one was not waited for"
    );
    assert!(!guest.hosts.is_down(&node_id(5), Instant::now()));
    drop(frozen);
}

#[tokio::test]
async fn a_host_that_leaves_finishes_what_it_began_and_begins_nothing() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let ask = post("/api/generate", r#"{"model":"tiny","prompt":"hi"}"#);
    let client = node.door(2, &ask).await;
    let mut seen = backend.accept().await;
    seen.begin("application/x-ndjson").await;
    let gateway = Arc::clone(&node.gateway);
    let mut leaving = tokio::spawn(async move { gateway.drain(PATIENCE).await });
    let late = soon(async {
        loop {
            let late = node.door(3, &ask).await;
            tokio::select! {
                reply = late.reply() => return reply,
                // It came before the word to leave did: it is dropped, and the next one asks.
                _ = backend.accept() => {}
            }
        }
    })
    .await;
    assert_eq!(late.status, 503);
    assert!(late.body.contains("leaves the mesh"), "{}", late.body);
    let told = node.door(3, &get("/")).await.reply().await;
    assert!(told.head.contains("leaving"), "{}", told.head);
    assert!(!leaving.is_finished(), "a stream is still in work");
    seen.chunk("{\"response\":\"\",\"done\":true}\n").await;
    seen.end().await;
    assert!(client.reply().await.is_whole);
    soon(&mut leaving).await.unwrap();
}

#[tokio::test]
async fn a_host_that_leaves_cuts_off_what_takes_too_long() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let ask = post("/api/generate", r#"{"model":"tiny","prompt":"hi"}"#);
    let _client = node.door(2, &ask).await;
    let _seen = backend.accept().await;
    soon(node.gateway.drain(Duration::from_millis(200))).await;
    assert_eq!(node.gateway.load().0, 1);
}
