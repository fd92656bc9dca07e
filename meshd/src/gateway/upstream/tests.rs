use super::*;
use crate::gateway::tests::Backend;

const SOON: Patience = Patience {
    head: Duration::from_millis(200),
    idle: Duration::from_millis(200),
};

#[tokio::test]
async fn a_frozen_server_is_given_up_before_and_within_its_reply() {
    let backend = Backend::start().await;
    let target = Target::Backend(backend.addr.to_string());
    let (reply, mut seen) = tokio::join!(
        post(&target, "/api/chat", Bytes::from_static(b"{}"), SOON),
        backend.accept()
    );
    assert!(matches!(reply, Err(UpstreamError::Silent)));
    seen.gone().await;
    let (reply, mut seen) = tokio::join!(
        post(&target, "/api/chat", Bytes::from_static(b"{}"), SOON),
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
