//! Tests of the way to a model server: what is waited for, and for how long.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::gateway::tests::{Backend, soon};

const SOON: Patience = Patience {
    head: Duration::from_millis(200),
    idle: Duration::from_millis(200),
};

#[tokio::test]
async fn a_frozen_server_is_given_up_before_and_within_its_reply() {
    let backend = Backend::start().await;
    let pool = Arc::default();
    let target = Target::Backend(backend.addr.to_string());
    let (reply, mut seen) = tokio::join!(
        post(&pool, &target, "/api/chat", Bytes::from_static(b"{}"), SOON),
        backend.accept()
    );
    assert!(matches!(reply, Err(UpstreamError::Silent)));
    seen.gone().await;
    let (reply, mut seen) = tokio::join!(
        post(&pool, &target, "/api/chat", Bytes::from_static(b"{}"), SOON),
        async {
            let mut seen = backend.accept().await;
            seen.begin("application/x-ndjson").await;
            seen.chunk("{}").await;
            seen
        }
    );
    let whole = reply.unwrap().into_body().collect(100).await;
    assert!(matches!(whole, Err(UpstreamError::Silent)));
    seen.gone().await;
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_whole_reply_alone() {
    let backend = Backend::start().await;
    let pool = Arc::default();
    let target = Target::Backend(backend.addr.to_string());
    let ask = || post(&pool, &target, "/api/chat", Bytes::from_static(b"{}"), SOON);
    let (reply, mut seen) = tokio::join!(ask(), async {
        let mut seen = backend.accept().await;
        seen.begin("application/x-ndjson").await;
        seen.chunk("{}").await;
        seen.end().await;
        seen
    });
    assert_eq!(
        reply.unwrap().into_body().collect(100).await.unwrap(),
        b"{}"
    );
    let (reply, ()) = tokio::join!(ask(), async {
        seen.read().await;
        seen.begin("application/x-ndjson").await;
        seen.chunk("{}").await;
    });
    assert!(backend.is_untouched().await);
    // This one is left in the middle.
    drop(reply.unwrap());
    seen.gone().await;
    let (reply, seen) = tokio::join!(ask(), async {
        let seen = backend.accept().await;
        seen.reply("200 OK", "application/json", "{}").await;
    });
    assert_eq!(
        reply.unwrap().into_body().collect(100).await.unwrap(),
        b"{}"
    );
    let () = seen;
    // This one was closed by the server.
    let (reply, ()) = tokio::join!(ask(), async {
        let seen = backend.accept().await;
        seen.reply("200 OK", "application/json", "{}").await;
    });
    assert!(reply.is_ok());
}

/// Connections that are opened for three requests at once, and for three more when those are answered.
async fn n_opened(server: &str) -> usize {
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: {server}\r\n\r\n{{}}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = Target::Backend(listener.local_addr().unwrap().to_string());
    let n_opened = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_opened);
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        // None is answered before all three are there.
        let all = Arc::new(Barrier::new(3));
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let (all, reply) = (Arc::clone(&all), reply.clone());
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                    all.wait().await;
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    }));
    let pool = Arc::default();
    let patience = Patience::SHORT;
    let ask = || async {
        let body = Bytes::from_static(b"{}");
        let reply = post(&pool, &target, "/api/chat", body, patience).await;
        reply.unwrap().into_body().collect(100).await.unwrap()
    };
    for _ in 0..2 {
        soon(async { tokio::join!(ask(), ask(), ask()) }).await;
    }
    n_opened.load(Ordering::Relaxed)
}

#[tokio::test]
async fn as_many_connections_are_kept_as_were_needed() {
    assert_eq!(n_opened("hypercorn").await, 3);
}

#[tokio::test]
async fn few_are_kept_where_each_occupies_a_thread() {
    assert_eq!(n_opened("llama.cpp").await, 4);
}

#[tokio::test]
async fn a_reply_that_comes_before_the_body_is_sent_is_heard() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = Target::Backend(listener.local_addr().unwrap().to_string());
    let pool = Arc::default();
    // More than the socket's buffers hold.
    let body = Bytes::from(vec![b' '; 32 << 20]);
    let asked = post(&pool, &target, "/api/chat", body, Patience::SHORT);
    let (reply, _open) = soon(async {
        tokio::join!(asked, async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let reply = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\n{}";
            stream.write_all(reply).await.unwrap();
            stream
        })
    })
    .await;
    let (head, body) = reply.unwrap().into_parts();
    assert_eq!(head.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(soon(body.collect(100)).await.unwrap(), b"{}");
    assert!(
        pool.take(&listener.local_addr().unwrap().to_string())
            .is_none(),
        "the rest of the body would be taken for a request"
    );
}
