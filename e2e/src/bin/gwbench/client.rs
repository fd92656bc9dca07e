//! One client: a connection, a question, and its answer as it comes in.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::{MODEL, ms, now_ns};

/// Where questions go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) authority: String,
    pub(crate) path: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("an http URL")?;
        let (authority, path) = rest.split_once('/').context("a URL with a path")?;
        Ok(Self {
            authority: authority.to_owned(),
            path: format!("/{path}"),
        })
    }

    /// A question, as its bytes and as whole.
    pub(crate) fn question(&self, is_stream: bool) -> Result<Request<Full<Bytes>>> {
        let body = format!(
            "{{\"model\":\"{MODEL}\",\"stream\":{is_stream},\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
        );
        self.post(&self.path, body)
    }

    /// A question to another route of the same server.
    pub(crate) fn post(&self, path: &str, body: String) -> Result<Request<Full<Bytes>>> {
        let request = Request::post(path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        Ok(request)
    }
}

/// An open connection; dropping it closes it at once.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move { drop(driver.await) });
        Ok(Self { sender, driver })
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

/// What came of a question.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    /// Milliseconds.
    pub(crate) first_byte: f64,
    /// Milliseconds.
    pub(crate) total: f64,
    /// From the stand-in's sending to the arrival here, for each chunk, in milliseconds.
    pub(crate) delays: Vec<f64>,
    /// The last bytes.
    pub(crate) tail: Vec<u8>,
    /// Whether the body came to its proper end.
    pub(crate) is_whole: bool,
}

/// How much of an answer's end is kept.
const TAIL: usize = 600;

/// Asks and reads the answer to its end.
pub(crate) async fn ask(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Heard> {
    let start = Instant::now();
    let answer = connection.send(request).await?;
    let mut heard = Heard {
        status: answer.status().as_u16(),
        ..Heard::default()
    };
    let mut body = answer.into_body();
    let mut stamps = Stamps::default();
    heard.is_whole = true;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            heard.is_whole = false;
            break;
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if heard.first_byte == 0.0 {
            heard.first_byte = ms(start.elapsed());
        }
        let now = now_ns();
        stamps.scan(&data, |sent| {
            heard.delays.push(now.saturating_sub(sent) as f64 / 1e6);
        });
        heard.tail.extend_from_slice(&data);
        if heard.tail.len() > 4 * TAIL {
            heard.tail.drain(..heard.tail.len() - TAIL);
        }
    }
    heard.total = ms(start.elapsed());
    Ok(heard)
}

/// Finds the times of sending, `@nanoseconds@`, in text that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    open: Option<u128>,
}

impl Stamps {
    pub(crate) fn scan(&mut self, text: &[u8], mut found: impl FnMut(u128)) {
        for byte in text {
            match (self.open, byte) {
                (None, b'@') => self.open = Some(0),
                (Some(value), b'@') => {
                    found(value);
                    self.open = None;
                }
                (Some(value), b'0'..=b'9') => {
                    self.open = Some(value.wrapping_mul(10) + u128::from(byte - b'0'));
                }
                (Some(_), _) => self.open = None,
                (None, _) => {}
            }
        }
    }
}

/// Tells the stand-in what to do from now on.
pub(crate) async fn control(backend: &Target, behaviour: &Value) -> Result<()> {
    let mut connection = Connection::open(backend).await?;
    let request = backend.post("/ctl", behaviour.to_string())?;
    let heard = ask(&mut connection, request).await?;
    anyhow::ensure!(
        heard.tail == b"{}\n",
        "{}",
        String::from_utf8_lossy(&heard.tail)
    );
    Ok(())
}

/// What the stand-in saw since it was told.
pub(crate) async fn stats(backend: &Target) -> Result<Value> {
    let mut connection = Connection::open(backend).await?;
    let request = backend.post("/stats", String::new())?;
    let heard = ask(&mut connection, request).await?;
    Ok(serde_json::from_slice(&heard.tail)?)
}

/// Waits until the stand-in works on nothing any more.
pub(crate) async fn quiet(backend: &Target) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while stats(backend).await?["n_active"] != 0 {
        anyhow::ensure!(Instant::now() < deadline, "the stand-in is still at work");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
