//! `rotate`: a new tunnel key.

use mesh_proto::local::PATH_ROTATE;

use super::DONE;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(super) async fn run(client: &Client, output: &Output) -> Result<Exit, Failure> {
    output
        .during("making a new tunnel key", client.post_empty(PATH_ROTATE))
        .await?;
    output.answer(&DONE, |_| {
        "The node has a new tunnel key; its name and addresses are the same.\n".to_owned()
    })?;
    Ok(Exit::Done)
}
