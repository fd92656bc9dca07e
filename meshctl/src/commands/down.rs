//! `down` and `logout`: two depths of leaving.

use mesh_proto::local::{PATH_DOWN, PATH_LOGOUT, PATH_STATUS, RunState, Status};

use super::DONE;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(super) async fn run(client: &Client, output: &Output) -> Result<Exit, Failure> {
    output
        .during("switching off", client.post_empty(PATH_DOWN))
        .await?;
    let status = client.get::<Status>(PATH_STATUS).await;
    if status.is_ok_and(|status| status.state == RunState::NeedsLogin) {
        output.answer(&DONE, |_| {
            "This machine is in no mesh; there was nothing to switch off.\n".to_owned()
        })?;
        return Ok(Exit::Done);
    }
    output.answer(&DONE, |_| {
        "The node is off; it stays a member of its mesh.\n".to_owned()
    })?;
    output.hint("meshctl up switches it on again");
    Ok(Exit::Done)
}

pub(super) async fn logout(client: &Client, output: &Output) -> Result<Exit, Failure> {
    output
        .during("leaving the mesh", client.post_empty(PATH_LOGOUT))
        .await?;
    output.answer(&DONE, |_| {
        "The node has left its mesh and forgotten its identity. It shares nothing.\n".to_owned()
    })?;
    output.hint("meshctl up --auth-key pxk_… joins one again, and meshctl share on shares there");
    Ok(Exit::Done)
}
