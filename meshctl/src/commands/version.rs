//! `version`: of both programs, so that a mismatch is seen.

use mesh_proto::local::{PATH_STATUS, Status};
use serde::Serialize;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

#[derive(Debug, Serialize)]
struct Versions {
    meshctl: &'static str,
    meshd: Option<String>,
}

pub(super) async fn run(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let meshd = client
        .get::<Status>(PATH_STATUS)
        .await
        .ok()
        .map(|status| status.version);
    let versions = Versions {
        meshctl: env!("CARGO_PKG_VERSION"),
        meshd,
    };
    output.answer(&versions, |versions| {
        format!(
            "meshctl {}\nmeshd   {}\n",
            versions.meshctl,
            versions.meshd.as_deref().unwrap_or("(does not answer)")
        )
    })?;
    Ok(Exit::Done)
}
