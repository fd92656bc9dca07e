//! Whether the relay that a node offers is reached: the coordinator comes to it as other nodes will.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::relay::Pin;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::tls::pin::client_config;

const CONNECT_DEADLINE: Duration = Duration::from_secs(4);

/// Comes to a relay by TCP and TLS, which must be that of the pin; else why not, in words.
pub(crate) async fn reach(ip: IpAddr, port: u16, pin: Pin) -> Result<(), String> {
    let tls = client_config(*pin.as_bytes()).map_err(|err| err.to_string())?;
    let connect = async {
        let stream = TcpStream::connect(SocketAddr::new(ip, port)).await?;
        TlsConnector::from(Arc::new(tls))
            .connect(ServerName::from(ip), stream)
            .await
    };
    match timeout(CONNECT_DEADLINE, connect).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::auth_key::pin_of;
    use mesh_proto::key::CoordinatorPrivateKey;
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn only_the_relay_of_the_pin_is_reached() {
        let keys = [1, 2].map(|n| CoordinatorPrivateKey::from_bytes(&[n; 32]));
        let [own, other] = keys
            .each_ref()
            .map(|key| Pin::from_bytes(pin_of(&key.public())));
        let (chain, leaf_key) =
            mesh_relay::chain::own_chain(&keys[0], &[], 1_800_000_000_000).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, leaf_key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(acceptor.accept(stream).await);
            }
        });
        assert_eq!(reach(at.ip(), at.port(), own).await, Ok(()));
        assert!(reach(at.ip(), at.port(), other).await.is_err());
        serving.abort();
        drop(serving.await);
        let refused = reach(at.ip(), at.port(), own).await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }
}
