//! `coordinator node`.

use coordinator::serve::now_ms;
use hyper::Method;
use mesh_proto::admin::{NodeInfo, NodePatch};
use mesh_proto::id::Tag;

use super::segment;
use crate::args::{Access, NodeCommand};
use crate::client::{Client, Failure};
use crate::output::{done, json, json_list, line, note, table, when};

pub(crate) async fn run(command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List(access) => list(&access).await,
        NodeCommand::Show { node, access } => {
            let node: NodeInfo = Client::new(&access)?.get(&path(&node)).await?;
            print(&access, &node)
        }
        NodeCommand::Rename {
            node,
            new_name,
            access,
        } => {
            let patch = NodePatch {
                name: Some(new_name),
                expire_now: false,
            };
            let node: NodeInfo = Client::new(&access)?
                .send(Method::PATCH, &path(&node), &patch)
                .await?;
            print(&access, &node)
        }
        NodeCommand::Expire { node, access } => {
            let patch = NodePatch {
                name: None,
                expire_now: true,
            };
            let node: NodeInfo = Client::new(&access)?
                .send(Method::PATCH, &path(&node), &patch)
                .await?;
            if access.json {
                return json(&node);
            }
            note(&format!(
                "{} expired. To come back it needs an auth key: coordinator key create",
                node.name
            ));
            Ok(())
        }
        NodeCommand::Delete { node, access } => {
            Client::new(&access)?.delete(&path(&node)).await?;
            done(access.json, "Deleted.")
        }
    }
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{}", segment(node))
}

async fn list(access: &Access) -> Result<(), Failure> {
    let nodes: Vec<NodeInfo> = Client::new(access)?.get("/api/v1/nodes").await?;
    if access.json {
        return json_list(&nodes);
    }
    let now_ms = now_ms();
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.to_string(),
            node.user.to_string(),
            tags(node),
            node.ipv4.to_string(),
            status(node, now_ms),
            node.offers.models.len().to_string(),
            node.version.clone(),
            node.id.to_string(),
        ]
    });
    table(
        &[
            "NAME", "USER", "TAGS", "IPV4", "STATUS", "MODELS", "VERSION", "ID",
        ],
        rows,
    );
    Ok(())
}

fn print(access: &Access, node: &NodeInfo) -> Result<(), Failure> {
    if access.json {
        return json(node);
    }
    let now_ms = now_ms();
    let list = |words: Vec<String>| {
        if words.is_empty() {
            "-".to_owned()
        } else {
            words.join(" ")
        }
    };
    let expires = node
        .expires_at_ms
        .map_or_else(|| "never".to_owned(), |at| when(at, now_ms));
    for (what, value) in [
        ("name", node.name.to_string()),
        ("id", node.id.to_string()),
        ("user", node.user.to_string()),
        ("tags", list(node.tags.iter().map(Tag::to_string).collect())),
        ("status", status(node, now_ms)),
        ("ipv4", node.ipv4.to_string()),
        ("ipv6", node.ipv6.to_string()),
        (
            "endpoints",
            list(node.endpoints.iter().map(ToString::to_string).collect()),
        ),
        (
            "models",
            list(
                node.offers
                    .models
                    .iter()
                    .map(|offer| offer.model.clone())
                    .collect(),
            ),
        ),
        ("joined", when(node.created_at_ms, now_ms)),
        ("expires", expires),
        (
            "ephemeral",
            if node.is_ephemeral { "yes" } else { "no" }.to_owned(),
        ),
        ("system", format!("{} {}", node.os, node.version)),
        ("machine key", node.machine_key.to_string()),
        ("node key", node.node_key.to_string()),
    ] {
        line(&format!("{what:<12} {value}"));
    }
    Ok(())
}

fn tags(node: &NodeInfo) -> String {
    node.tags
        .iter()
        .map(Tag::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn status(node: &NodeInfo, now_ms: u64) -> String {
    if node.expires_at_ms.is_some_and(|at| at <= now_ms) {
        return "expired".to_owned();
    }
    match (node.is_online, node.last_seen_ms) {
        (true, _) => "online".to_owned(),
        (false, Some(at)) => format!("offline, seen {}", when(at, now_ms)),
        (false, None) => "offline".to_owned(),
    }
}
