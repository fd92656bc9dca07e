//! A stand-in model server and the clients that measure a gateway in front of it, and do to it what clients and servers do.
//!
//! Results are one line of JSON. `BACKEND` is the stand-in's own address, `URL` a chat route behind the gateway.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

#[path = "gwbench/backend.rs"]
mod backend;
#[path = "gwbench/client.rs"]
mod client;
#[path = "gwbench/faults.rs"]
mod faults;
#[path = "gwbench/load.rs"]
mod load;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// The one model that there is.
const MODEL: &str = "m";

const USAGE: &str = "usage: gwbench backend ADDR NAME | load URL N SECONDS | stream URL N SECONDS | cancel URL BACKEND \
    | leave URL BACKEND N SECONDS | die URL BACKEND | steady URL RATE SECONDS | body URL MIB told|chunked | slow URL N SECONDS";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let report = match words.as_slice() {
        ["backend", listen, name] => return backend::serve(listen.parse()?, name).await,
        [what @ ("load" | "stream"), url, n, time] => {
            load::measure(url, n.parse()?, seconds(time)?, *what == "stream").await?
        }
        ["cancel", url, backend] => faults::cancel(url, backend).await?,
        ["leave", url, backend, n, time] => {
            faults::leave(url, backend, n.parse()?, seconds(time)?).await?
        }
        ["die", url, backend] => faults::die(url, backend).await?,
        ["steady", url, rate, time] => faults::steady(url, rate.parse()?, seconds(time)?).await?,
        ["body", url, mib, how @ ("told" | "chunked")] => {
            faults::body(url, mib.parse()?, *how == "told").await?
        }
        ["slow", url, n, time] => faults::slow(url, n.parse()?, seconds(time)?).await?,
        _ => bail!("{USAGE}"),
    };
    println!("{report}");
    Ok(())
}

fn seconds(word: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(word.parse()?)?)
}

fn now_ns() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

fn percentile(values: &mut [f64], percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let index = values.len().checked_sub(1)? * percent / 100;
    values.get(index).copied()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
