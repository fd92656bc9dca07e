//! A stand-in model server and the clients that measure a gateway in front of it.
//!
//! `gwbench backend ADDR` answers at once, or streams 64 chunks, one each 2 ms. `gwbench load URL N SECONDS` asks whole
//! questions by N clients in closed loops; `gwbench stream URL N SECONDS` reads streams. Results are one line of JSON.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::standin::reply::Reply;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

const MODEL: &str = "m";
const N_CHUNKS: usize = 64;
const PACE: Duration = Duration::from_millis(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["backend", listen] => backend(listen.parse()?).await,
        [what @ ("load" | "stream"), url, n_clients, seconds] => {
            let time = Duration::from_secs_f64(seconds.parse()?);
            let is_stream = *what == "stream";
            let measured = measure(url, n_clients.parse()?, time, is_stream).await?;
            println!("{measured}");
            Ok(())
        }
        _ => bail!("usage: gwbench backend ADDR | load URL N SECONDS | stream URL N SECONDS"),
    }
}

async fn backend(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each ends with its client.
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            drop(connection.await);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Reply>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let details = json!({ "format": "gguf", "family": "llama", "parameter_size": "1K", "quantization_level": "F16" });
    let reply = match path.as_str() {
        "/" => {
            return Ok(Response::new(Reply::Whole(Some(Bytes::from_static(
                b"Ollama is running",
            )))));
        }
        "/api/version" => json!({ "version": "0.33.0" }),
        "/api/tags" | "/api/ps" => {
            json!({ "models": [{ "name": "m:latest", "model": "m:latest", "size": 1,
            "modified_at": "2026-01-01T00:00:00Z", "digest": "00".repeat(32), "details": details }] })
        }
        "/api/show" => {
            json!({ "details": details, "model_info": {}, "capabilities": ["completion"] })
        }
        "/v1/models" => {
            json!({ "object": "list", "data": [{ "id": "m:latest", "object": "model", "created": 1, "owned_by": "library" }] })
        }
        "/v1/chat/completions" if asked["stream"] == true => return Ok(stream_reply()),
        "/v1/chat/completions" => {
            json!({ "id": "c", "object": "chat.completion", "created": 1, "model": MODEL,
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": "yes" }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 } })
        }
        _ => json!({ "error": "no such route" }),
    };
    let mut reply = Response::new(Reply::Whole(Some(Bytes::from(format!("{reply}\n")))));
    let kind = hyper::header::HeaderValue::from_static("application/json");
    reply.headers_mut().insert("content-type", kind);
    Ok(reply)
}

fn now_ns() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

fn stream_reply() -> Response<Reply> {
    let (chunks, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for index in 0..=N_CHUNKS {
            tokio::time::sleep(PACE).await;
            // The time of sending travels inside the text, so a gateway that writes the JSON anew keeps it.
            let chunk = if index < N_CHUNKS {
                format!(
                    "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"@{}@\"}},\"finish_reason\":null}}]}}\n\n",
                    now_ns()
                )
            } else {
                format!(
                    "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
                )
            };
            if chunks.send(Bytes::from(chunk)).await.is_err() {
                return;
            }
        }
    });
    let mut reply = Response::new(Reply::Stream(receiver));
    let kind = hyper::header::HeaderValue::from_static("text/event-stream");
    reply.headers_mut().insert("content-type", kind);
    reply
}

/// Milliseconds, one a request or chunk.
#[derive(Debug, Default)]
struct Samples {
    total: Vec<f64>,
    first_byte: Vec<f64>,
    delay: Vec<f64>,
    n_bad: usize,
}

#[derive(Debug)]
struct Target {
    authority: String,
    path: String,
    is_stream: bool,
}

async fn measure(url: &str, n_clients: usize, time: Duration, is_stream: bool) -> Result<Value> {
    let rest = url.strip_prefix("http://").context("an http URL")?;
    let (authority, path) = rest.split_once('/').context("a URL with a path")?;
    let target = Rc::new(Target {
        authority: authority.to_owned(),
        path: format!("/{path}"),
        is_stream,
    });
    let start = Instant::now();
    let local = LocalSet::new();
    let mut all = Samples::default();
    local
        .run_until(async {
            let mut clients = JoinSet::new();
            for _ in 0..n_clients {
                let target = Rc::clone(&target);
                clients.spawn_local(async move { client(&target, start, time).await });
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
        "n": all.total.len(), "seconds": start.elapsed().as_secs_f64(), "n_bad": all.n_bad,
        "p50": percentile(&mut all.total, 50), "p99": percentile(&mut all.total, 99),
        "first_p50": percentile(&mut all.first_byte, 50), "first_p99": percentile(&mut all.first_byte, 99),
        "delay_p50": percentile(&mut all.delay, 50), "delay_p99": percentile(&mut all.delay, 99),
    }))
}

fn percentile(values: &mut [f64], percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let index = values.len().checked_sub(1)? * percent / 100;
    values.get(index).copied()
}

async fn client(target: &Target, start: Instant, time: Duration) -> Samples {
    let mut samples = Samples::default();
    let mut connection = None;
    while start.elapsed() < time {
        if ask(target, &mut connection, &mut samples).await.is_err() {
            samples.n_bad += 1;
            connection = None;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    samples
}

async fn ask(
    target: &Target,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    samples: &mut Samples,
) -> Result<()> {
    let sender = match connection {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(&target.authority).await?;
            stream.set_nodelay(true)?;
            let (sender, driver) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            connection.insert(sender)
        }
    };
    let body = format!(
        "{{\"model\":\"{MODEL}\",\"stream\":{},\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}",
        target.is_stream
    );
    let request = Request::post(&target.path)
        .header("host", &target.authority)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    sender.ready().await?;
    let start = Instant::now();
    let answer = sender.send_request(request).await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    let mut body = answer.into_body();
    let (mut text, mut first, mut n_seen) = (Vec::new(), None, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        first.get_or_insert_with(|| start.elapsed());
        text.extend_from_slice(&data);
        if target.is_stream {
            let now = now_ns();
            let stamps: Vec<u128> = stamps(&text).skip(n_seen).collect();
            n_seen += stamps.len();
            samples.delay.extend(
                stamps
                    .iter()
                    .map(|sent| now.saturating_sub(*sent) as f64 / 1e6),
            );
        }
    }
    if target.is_stream {
        ensure!(
            n_seen == N_CHUNKS && text.ends_with(b"[DONE]\n\n"),
            "a broken stream"
        );
    }
    samples
        .first_byte
        .extend(first.map(|first| first.as_secs_f64() * 1e3));
    samples.total.push(start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// The times of sending, `@nanoseconds@`, in what has come so far.
fn stamps(text: &[u8]) -> impl Iterator<Item = u128> {
    let text = String::from_utf8_lossy(text).into_owned();
    let parts: Vec<String> = text.split('@').map(str::to_owned).collect();
    // What stands behind the last sign may be cut.
    let n_whole = parts.len().saturating_sub(1);
    parts
        .into_iter()
        .take(n_whole)
        .skip(1)
        .step_by(2)
        .filter_map(|stamp| stamp.parse().ok())
}
