//! Joining a mesh, leaving it, and changing the tunnel key.

use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::control::{
    PATH_LOGOUT, PATH_REGISTER, PATH_ROTATE, RegisterRequest, RegisterResponse, RotateRequest,
};
use mesh_proto::id::{NetworkId, NodeId};
use mesh_proto::key::{MachinePrivateKey, NodePrivateKey, Purpose};

use super::{ControlError, Link};
use crate::dial::Dialer;
use crate::state_dir::Membership;

/// What joining needs.
#[derive(Debug)]
pub struct Join<'a> {
    /// What the owner pasted.
    pub auth_key: &'a AuthKey,
    /// The node's identity.
    pub machine_key: &'a MachinePrivateKey,
    /// Its tunnel key.
    pub node_key: &'a NodePrivateKey,
    /// The name to ask for.
    pub hostname: String,
    /// How to reach coordinators.
    pub dialer: Dialer,
    /// Whether the node takes itself for a member: then the auth key is used only if the coordinator does not.
    pub is_member: bool,
}

/// The node is in.
#[derive(Debug)]
pub struct Joined {
    /// To what it belongs.
    pub membership: Membership,
    /// Whether it was not in before: it has another address then, and an older map is not of it.
    pub is_new: bool,
}

/// Joins the mesh that an auth key names.
///
/// # Errors
/// [`ControlError`] when no coordinator of the key answers, is an impostor, or refuses.
pub async fn join(ask: Join<'_>) -> Result<Joined, ControlError> {
    let tls =
        super::tls_config(*ask.auth_key.pin()).map_err(|reason| ControlError::Unreachable {
            url: String::new(),
            reason,
        })?;
    let mut link =
        Link::new(ask.auth_key.urls().to_vec(), tls, ask.machine_key.clone()).through(ask.dialer);
    let identity = link.identity().await?;
    if pin_of(&identity.coordinator_key) != *ask.auth_key.pin() {
        let reason = "it has another key than the auth key names".to_owned();
        return Err(ControlError::Impostor {
            url: link.url().to_owned(),
            reason,
        });
    }
    let node_key = ask.node_key.public();
    let without_key = RegisterRequest {
        auth_secret: None,
        node_key,
        node_key_signature: ask.machine_key.sign(Purpose::NodeKey, node_key.as_bytes()),
        hostname: ask.hostname,
        os: std::env::consts::OS.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let with_key = RegisterRequest {
        auth_secret: Some(ask.auth_key.secret_text()),
        ..without_key.clone()
    };
    let known: Option<RegisterResponse> = if ask.is_member {
        let asked = link.call(PATH_REGISTER, &without_key).await;
        match asked {
            Ok(response) => Some(response),
            Err(err) if err.needs_person() => None,
            Err(err) => return Err(err),
        }
    } else {
        None
    };
    // Whoever expired keeps its address; that it joins anew here only costs the time until its next map.
    let is_new = known.is_none();
    let response = match known {
        Some(response) => response,
        None => link.call(PATH_REGISTER, &with_key).await?,
    };
    let is_ours = response.node_id == NodeId::of(&ask.machine_key.public())
        && response.coordinator_key == identity.coordinator_key
        && response.network_id == NetworkId::of(&identity.coordinator_key);
    if !is_ours {
        let reason = "it answers for another node or mesh".to_owned();
        return Err(ControlError::Impostor {
            url: link.url().to_owned(),
            reason,
        });
    }
    let membership = Membership {
        node_id: response.node_id,
        name: response.name,
        network_id: response.network_id,
        coordinator_key: response.coordinator_key,
        urls: ask.auth_key.urls().to_vec(),
    };
    Ok(Joined { membership, is_new })
}

/// Leaves the mesh for good.
///
/// # Errors
/// [`ControlError`] when no coordinator answers.
pub async fn logout(link: &mut Link) -> Result<(), ControlError> {
    link.post(PATH_LOGOUT, &serde_json::json!({})).await
}

/// Tells the coordinator of a new tunnel key.
///
/// # Errors
/// [`ControlError`] when no coordinator answers, or it refuses.
pub async fn rotate(
    link: &mut Link,
    machine_key: &MachinePrivateKey,
    node_key: &NodePrivateKey,
) -> Result<(), ControlError> {
    let node_key = node_key.public();
    let node_key_signature = machine_key.sign(Purpose::NodeKey, node_key.as_bytes());
    link.post(
        PATH_ROTATE,
        &RotateRequest {
            node_key,
            node_key_signature,
        },
    )
    .await
}

#[cfg(test)]
mod tests;
