//! `metrics`: what a Prometheus server would be told.

use std::collections::BTreeMap;

use mesh_proto::local::PATH_METRICS;
use serde::Serialize;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

#[derive(Debug, Serialize)]
struct Metrics<'a> {
    metrics: BTreeMap<&'a str, f64>,
}

pub(super) async fn run(client: &Client, output: &Output) -> Result<Exit, Failure> {
    let text = client.get_text(PATH_METRICS).await?;
    if output.is_json() {
        output.json(&Metrics {
            metrics: samples(&text),
        })?;
    } else {
        output.print(&text)?;
    }
    Ok(Exit::Done)
}

/// The samples by name and labels; comments and what is no number are left out.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let value: f64 = value.parse().ok()?;
            value.is_finite().then_some((series, value))
        })
        .collect()
}
