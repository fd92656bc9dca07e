//! Questions in closed loops over kept connections, each of which is let to its end.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use crate::client::{Connection, Target, ask};
use crate::percentile;

/// Milliseconds, one a request or chunk.
#[derive(Debug, Default)]
struct Samples {
    total: Vec<f64>,
    first_byte: Vec<f64>,
    delay: Vec<f64>,
    n_bad: usize,
}

/// Measures with so many clients; none begins a request after the time.
pub(crate) async fn measure(
    url: &str,
    n_clients: usize,
    time: Duration,
    is_stream: bool,
) -> Result<Value> {
    let target = Rc::new(Target::parse(url)?);
    let start = Instant::now();
    let local = LocalSet::new();
    let mut all = Samples::default();
    local
        .run_until(async {
            let mut clients = JoinSet::new();
            for _ in 0..n_clients {
                let target = Rc::clone(&target);
                clients.spawn_local(async move { client(&target, start, time, is_stream).await });
            }
            while let Some(samples) = clients.join_next().await {
                let samples = samples?;
                all.total.extend(samples.total);
                all.first_byte.extend(samples.first_byte);
                all.delay.extend(samples.delay);
                all.n_bad += samples.n_bad;
            }
            anyhow::Ok(())
        })
        .await?;
    Ok(json!({
        "n": all.total.len(), "seconds": start.elapsed().as_secs_f64(), "n_bad": all.n_bad, "n_chunks": all.delay.len(),
        "p50": percentile(&mut all.total, 50), "p99": percentile(&mut all.total, 99),
        "first_p50": percentile(&mut all.first_byte, 50), "first_p99": percentile(&mut all.first_byte, 99),
        "delay_p50": percentile(&mut all.delay, 50), "delay_p99": percentile(&mut all.delay, 99),
    }))
}

async fn client(target: &Target, start: Instant, time: Duration, is_stream: bool) -> Samples {
    let mut samples = Samples::default();
    let mut connection = None;
    while start.elapsed() < time {
        if once(target, &mut connection, is_stream, &mut samples)
            .await
            .is_err()
        {
            samples.n_bad += 1;
            connection = None;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    samples
}

async fn once(
    target: &Target,
    connection: &mut Option<Connection>,
    is_stream: bool,
    samples: &mut Samples,
) -> Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(target).await?),
    };
    let heard = ask(connection, target.question(is_stream)?).await?;
    ensure!(
        heard.status == 200 && heard.is_whole,
        "status {}",
        heard.status
    );
    ensure!(
        !is_stream || heard.tail.trim_ascii_end().ends_with(b"[DONE]"),
        "a broken stream"
    );
    samples.first_byte.push(heard.first_byte);
    samples.total.push(heard.total);
    samples.delay.extend(heard.delays);
    Ok(())
}
