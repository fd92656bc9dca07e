//! What clients and model servers do to a gateway: leave, die, come slowly, send too much.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{Connection, Stamps, Target, ask, control, quiet, stats};
use crate::{MODEL, ms, now_ns, percentile};

/// How long a stand-in may go on for nobody until that counts as never.
const NOTICE: Duration = Duration::from_secs(5);
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Leaves in the four ways that there are; milliseconds until the stand-in was told, or null.
pub(crate) async fn cancel(url: &str, backend: &str) -> Result<Value> {
    let (target, backend) = (Target::parse(url)?, Target::parse(backend)?);
    let late = json!({ "delay_ms": 8_000 });
    let slow = json!({ "pace_ms": 1_000, "n_chunks": 20, "in_pieces": true });
    let mut report = Map::new();
    for (name, behaviour, is_stream, n_chunks) in [
        ("stream_before", &late, true, 0),
        ("stream_after", &slow, true, 1),
        ("whole_before", &late, false, 0),
        ("whole_after", &slow, false, 1),
    ] {
        control(&backend, behaviour).await?;
        let left = leave_one(&target, is_stream, n_chunks).await?;
        let told = told_at(&backend).await?;
        let took = told.map(|told| told.saturating_sub(left) as f64 / 1e6);
        report.insert(name.to_owned(), json!(took));
        quiet(&backend).await?;
    }
    control(&backend, &json!({})).await?;
    Ok(Value::Object(report))
}

/// Asks, and leaves after some chunks, or half a second after the question; gives the time of leaving.
async fn leave_one(target: &Target, is_stream: bool, n_chunks: usize) -> Result<u128> {
    let mut connection = Connection::open(target).await?;
    let request = target.question(is_stream)?;
    if n_chunks == 0 {
        // What is measured begins when the request is at the stand-in.
        let answer = tokio::time::timeout(Duration::from_millis(500), connection.send(request));
        anyhow::ensure!(answer.await.is_err(), "an answer came before its time");
    } else {
        let mut body = connection.send(request).await?.into_body();
        let (mut stamps, mut n_seen) = (Stamps::default(), 0);
        while n_seen < n_chunks {
            let frame = http_body_util::BodyExt::frame(&mut body).await;
            let data = frame.context("the stream ended")??.into_data();
            stamps.scan(&data.unwrap_or_default(), |_| n_seen += 1);
        }
    }
    let left = now_ns();
    drop(connection);
    Ok(left)
}

/// When the stand-in learned that nobody waits any more.
async fn told_at(backend: &Target) -> Result<Option<u128>> {
    let deadline = Instant::now() + NOTICE;
    while Instant::now() < deadline {
        let told = stats(backend).await?;
        if let Some(at) = told["left_at_ns"][0].as_u64() {
            return Ok(Some(u128::from(at)));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(None)
}

/// Lets clients leave before their first byte, all at once, while others ask; what the others got then and afterwards.
pub(crate) async fn leave(url: &str, backend: &str, n: usize, time: Duration) -> Result<Value> {
    let (target, backend) = (Target::parse(url)?, Target::parse(backend)?);
    control(&backend, &json!({ "delay_ms": 8_000 })).await?;
    let mut leavers = JoinSet::new();
    for _ in 0..n {
        let target = target.clone();
        leavers.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            let question = target.question(true)?;
            let mut asked = Box::pin(async move { connection.send(question).await });
            // All of them are at the stand-in by then, and none has left: that would be to drop what was asked.
            drop(tokio::time::timeout(Duration::from_secs(1), &mut asked).await);
            anyhow::Ok(asked)
        });
    }
    let mut open = Vec::new();
    while let Some(asked) = leavers.join_next().await {
        open.push(asked??);
    }
    let n_at_work = stats(&backend).await?["n_active"].clone();
    control(&backend, &json!({})).await?;
    drop(open);
    let (mut samples, mut n_bad, mut sample, start) =
        (Vec::new(), 0, String::new(), Instant::now());
    while start.elapsed() < time {
        match fresh(&target).await {
            Ok(took) => samples.push(took),
            Err(err) => {
                n_bad += 1;
                sample = format!("{err:#}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    quiet(&backend).await?;
    Ok(
        json!({ "n_left": n, "n_at_work": n_at_work, "n_ok": samples.len(), "n_bad": n_bad, "sample": sample,
        "p99": percentile(&mut samples, 99), "max": percentile(&mut samples, 100) }),
    )
}

/// One whole answer over a connection of its own, in milliseconds.
async fn fresh(target: &Target) -> Result<f64> {
    let start = Instant::now();
    let asked = async {
        let mut connection = Connection::open(target).await?;
        ask(&mut connection, target.question(false)?).await
    };
    let heard = tokio::time::timeout(LIMIT, asked).await??;
    anyhow::ensure!(
        heard.status == 200 && heard.is_whole,
        "{} {}",
        heard.status,
        String::from_utf8_lossy(&heard.tail)
    );
    Ok(ms(start.elapsed()))
}

/// The stand-in breaks off in the middle of a stream; what the client is told.
pub(crate) async fn die(url: &str, backend: &str) -> Result<Value> {
    let (target, backend) = (Target::parse(url)?, Target::parse(backend)?);
    control(&backend, &json!({ "pace_ms": 5, "die_after": 10 })).await?;
    let mut connection = Connection::open(&target).await?;
    let asked = ask(&mut connection, target.question(true)?);
    let heard = tokio::time::timeout(LIMIT, asked).await??;
    control(&backend, &json!({})).await?;
    let tail = String::from_utf8_lossy(&heard.tail).into_owned();
    let last = tail.trim_end().rsplit("\n\n").next().unwrap_or_default();
    let event: Value =
        serde_json::from_str(last.strip_prefix("data: ").unwrap_or_default()).unwrap_or_default();
    Ok(
        json!({ "status": heard.status, "n_chunks": heard.delays.len(), "is_whole": heard.is_whole,
        "has_end_mark": tail.contains("[DONE]"), "has_error": event["error"].is_object(), "total": heard.total }),
    )
}

/// Questions at a steady rate, whatever comes of them; each with its time of sending.
pub(crate) async fn steady(url: &str, rate: u32, time: Duration) -> Result<Value> {
    let target = Target::parse(url)?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let (mut asking, start) = (JoinSet::new(), Instant::now());
    while start.elapsed() < time {
        tick.tick().await;
        let target = target.clone();
        asking.spawn(async move {
            let (at, start) = (now_ns(), Instant::now());
            let asked = async {
                let mut connection = Connection::open(&target).await?;
                ask(&mut connection, target.question(false)?).await
            };
            let heard = tokio::time::timeout(LIMIT, asked).await;
            let took = ms(start.elapsed());
            let heard = heard.ok().and_then(Result::ok).unwrap_or_default();
            let tail = String::from_utf8_lossy(&heard.tail).into_owned();
            let from = tail
                .split_once(" got ")
                .and_then(|(head, _)| head.rsplit('"').next());
            json!({ "at_ms": at / 1_000_000, "took": took, "status": heard.status, "from": from })
        });
    }
    let mut all = Vec::new();
    while let Some(one) = asking.join_next().await {
        all.push(one?);
    }
    Ok(Value::Array(all))
}

/// One large question, of text, with its length told or in chunks.
pub(crate) async fn body(url: &str, mib: usize, is_told: bool) -> Result<Value> {
    let target = Target::parse(url)?;
    let start = Instant::now();
    let mut stream = TcpStream::connect(&target.authority).await?;
    let head = format!(
        "{{\"model\":\"{MODEL}\",\"stream\":false,\"messages\":[{{\"role\":\"user\",\"content\":\""
    );
    let tail = "\"}]}";
    let length = head.len() + (mib << 20) + tail.len();
    let how = if is_told {
        format!("Content-Length: {length}")
    } else {
        "Transfer-Encoding: chunked".to_owned()
    };
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{how}\r\n\r\n",
        target.path, target.authority
    );
    let (mut reader, mut writer) = stream.split();
    let filling = "a".repeat(64 << 10);
    let piece = |text: &str| {
        if is_told {
            text.to_owned()
        } else {
            format!("{:x}\r\n{text}\r\n", text.len())
        }
    };
    let sending = async {
        writer.write_all(request.as_bytes()).await?;
        writer.write_all(piece(&head).as_bytes()).await?;
        let filling = piece(&filling);
        for _ in 0..mib * 16 {
            writer.write_all(filling.as_bytes()).await?;
        }
        writer.write_all(piece(tail).as_bytes()).await?;
        if !is_told {
            writer.write_all(b"0\r\n\r\n").await?;
        }
        std::io::Result::Ok(())
    };
    let mut answer = vec![0; 512];
    let reading = async {
        let n = reader.read(&mut answer).await?;
        std::io::Result::Ok(n)
    };
    tokio::pin!(sending, reading);
    let mut is_sending = true;
    let n = loop {
        tokio::select! {
            // A server that refuses the size stops reading; its answer counts.
            sent = &mut sending, if is_sending => {
                is_sending = false;
                drop(sent);
            }
            n = tokio::time::timeout(LIMIT, &mut reading) => break n?.unwrap_or(0),
        }
    };
    answer.truncate(n);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u16>().ok());
    Ok(json!({ "status": status, "total": ms(start.elapsed()) }))
}

/// Connections whose heads come by the byte, and ordinary clients beside them.
pub(crate) async fn slow(url: &str, n: usize, time: Duration) -> Result<Value> {
    let target = Target::parse(url)?;
    let start = Instant::now();
    let (mut crawlers, mut n_refused) = (JoinSet::new(), 0);
    for _ in 0..n {
        match TcpStream::connect(&target.authority).await {
            Ok(stream) => {
                crawlers.spawn(crawl(stream, start, time));
            }
            Err(_) => n_refused += 1,
        }
    }
    let n_open = crawlers.len();
    let (mut samples, mut n_bad) = (Vec::new(), 0);
    for _ in 0..200 {
        match fresh(&target).await {
            Ok(took) => samples.push(took),
            Err(_) => n_bad += 1,
        }
    }
    let mut closed = Vec::new();
    while let Some(after) = crawlers.join_next().await {
        closed.extend(after?);
    }
    Ok(
        json!({ "n_open": n_open, "n_refused": n_refused, "n_ok": samples.len(), "n_bad": n_bad,
        "p50": percentile(&mut samples, 50), "p99": percentile(&mut samples, 99),
        "n_closed": closed.len(), "last_closed": percentile(&mut closed, 100) }),
    )
}

/// Sends a byte a second; milliseconds until the gateway closed, if it did in time.
async fn crawl(mut stream: TcpStream, start: Instant, time: Duration) -> Option<f64> {
    let opened = Instant::now();
    let mut room = [0; 512];
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    let mut gone = stream.write_all(head).await.is_err();
    while !gone && start.elapsed() < time {
        match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut room)).await {
            Ok(Ok(0)) => gone = true,
            // Words before the end are none.
            Ok(Ok(_)) => {}
            Ok(Err(err)) => gone = err.kind() != ErrorKind::Interrupted,
            Err(_) => gone = stream.write_all(b"a").await.is_err(),
        }
    }
    gone.then(|| ms(opened.elapsed()))
}
