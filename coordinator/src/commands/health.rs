//! `coordinator health`.

use mesh_proto::admin::Health;

use crate::args::Access;
use crate::client::{Client, Failure};
use crate::output::{json, line};

pub(crate) async fn run(access: Access) -> Result<(), Failure> {
    let health: Health = Client::new(&access)?.get("/api/v1/health").await?;
    if access.json {
        json(&health)?;
    } else {
        line(&format!(
            "{}: {} of {} nodes online, up {} s, version {}",
            health.status, health.n_online, health.n_nodes, health.uptime_seconds, health.version
        ));
    }
    if health.is_store_writable {
        Ok(())
    } else {
        Err(Failure::other(
            "the store takes no writes; free disk space or mend the disk, no restart is needed",
        ))
    }
}
