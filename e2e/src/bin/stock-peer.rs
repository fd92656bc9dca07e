//! Stands in the mesh for a stock WireGuard: `stock-peer AUTH_KEY HOSTNAME WG_PUBLIC_KEY ENDPOINT`.
//!
//! Registers a machine key of its own with the given tunnel key, stays connected, and prints what a stock WireGuard needs to
//! know as one line of JSON at each change of the map.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use anyhow::{Context as _, Result, bail};
use data_encoding::BASE64;
use e2e::control::{Client, Refusal, random_bytes};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::key::{MachinePrivateKey, NodeKey};
use mesh_proto::netmap::Netmap;
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let auth_key: AuthKey = next("an auth key")?.parse()?;
    let hostname = next("a host name")?;
    let node_key = BASE64.decode(next("a public key")?.as_bytes())?;
    let node_key = NodeKey::from_bytes(node_key.as_slice().try_into()?);
    let endpoint = next("an endpoint")?.parse()?;

    let machine_key = MachinePrivateKey::from_bytes(&random_bytes()?);
    let mut client = Client::connect(&auth_key, machine_key.clone()).await?;
    let registration = match client.register(&auth_key, node_key, &hostname).await {
        Ok(registration) => registration,
        Err(Refusal::Code(code)) => bail!("refused: {code}"),
        Err(Refusal::Other(err)) => return Err(err),
    };
    client.report_endpoint(endpoint).await?;
    let mut stream = client.map_stream(registration).await?;
    loop {
        println!("{}", describe(stream.next().await?));
    }
}

fn describe(map: &Netmap) -> Value {
    let peers = map.peers.values().map(|peer| {
        json!({
            "name": peer.name, "public_key": BASE64.encode(peer.node_key.as_bytes()),
            "ipv4": peer.ipv4, "ipv6": peer.ipv6, "endpoints": peer.endpoints, "is_online": peer.is_online,
        })
    });
    json!({
        "ipv4": map.node.ipv4, "ipv6": map.node.ipv6,
        "ipv4_pool": map.network.ipv4_pool, "ipv6_prefix": map.network.ipv6_prefix,
        "peers": peers.collect::<Vec<_>>(),
    })
}
