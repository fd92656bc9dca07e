//! Tests of the way to a model server: what is waited for, and for how long.

use super::*;
use crate::gateway::tests::Backend;

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
