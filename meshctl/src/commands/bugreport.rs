//! `bugreport`: all that helps to find a fault, in one file that can be read before it is sent.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_proto::local::PATH_BUGREPORT;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::anonymous::anonymise;
use crate::args::BugreportArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

#[derive(Debug, Serialize)]
struct Report {
    meshctl_version: &'static str,
    meshd: Map<String, Value>,
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    path: &'a Path,
}

pub(super) async fn run(
    args: BugreportArgs,
    client: &Client,
    output: &Output,
) -> Result<Exit, Failure> {
    let meshd = output
        .during("collecting", client.get(PATH_BUGREPORT))
        .await?;
    let report = Report {
        meshctl_version: env!("CARGO_PKG_VERSION"),
        meshd,
    };
    let mut report =
        serde_json::to_value(&report).map_err(|err| Failure::failed(err.to_string()))?;
    if args.anonymous {
        anonymise(&mut report);
    }
    let path = match args.output {
        Some(path) if path.as_os_str() == "-" => {
            output.json(&report)?;
            return Ok(Exit::Done);
        }
        None if output.is_json() => {
            output.json(&report)?;
            return Ok(Exit::Done);
        }
        Some(path) => path,
        None => default_path(),
    };
    let mut text =
        serde_json::to_vec_pretty(&report).map_err(|err| Failure::failed(err.to_string()))?;
    text.push(b'\n');
    let write = || -> std::io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        // The mode is only that of a new file.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(&text)
    };
    write().map_err(|err| {
        Failure::failed(format!("cannot write {}: {err}", path.display()))
            .with_fix("meshctl bugreport -o /tmp/proxima-bugreport.json")
    })?;
    output.answer(&Written { path: &path }, |written| {
        format!("{}\n", written.path.display())
    })?;
    output.hint(if args.anonymous {
        "it holds tokens for names and addresses of your mesh, and the names of its models; read it before you send it"
    } else {
        "it holds names and addresses of your mesh, and no keys; read it before you send it, or leave them out with -a"
    });
    Ok(Exit::Done)
}

fn default_path() -> PathBuf {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    PathBuf::from(format!("proxima-bugreport-{now}.json"))
}
