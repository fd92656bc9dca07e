//! A model server that speaks OpenAI's first calls and no others, in front of a real llama-server:
//! `openai-only --listen IP:PORT --server http://IP:PORT`.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

type Body = BoxBody<Bytes, hyper::Error>;

/// What it has; as of vLLM and others before they took up more.
const CALLS: [(&str, &str); 5] = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
];

fn main() -> Result<()> {
    let (mut listen, mut server) = (None, None);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        let addr: SocketAddr = value.trim_start_matches("http://").parse()?;
        match flag.as_str() {
            "--listen" => listen = Some(addr),
            "--server" => server = Some(addr),
            other => bail!("unknown argument {other}"),
        }
    }
    let listen = listen.context("--listen is needed")?;
    let server = server.context("--server is needed")?;
    tokio::runtime::Runtime::new()?.block_on(serve(listen, server))
}

async fn serve(listen: SocketAddr, server: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each ends with its client.
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(server, request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.await);
        });
    }
}

async fn answer(
    server: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    let Some((method, _)) = CALLS.iter().find(|(_, known)| *known == path) else {
        return Ok(refusal(StatusCode::NOT_FOUND, "Not Found"));
    };
    if *method != request.method().as_str() {
        return Ok(refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method Not Allowed",
        ));
    }
    let passed = pass(server, request).await;
    Ok(passed.unwrap_or_else(|err| refusal(StatusCode::BAD_GATEWAY, &err.to_string())))
}

/// Dropping the answer hangs up, which ends the generation.
async fn pass(server: SocketAddr, request: Request<Incoming>) -> Result<Response<Body>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the answer's body is read or dropped.
    tokio::spawn(connection);
    let (head, body) = request.into_parts();
    let mut asked = Request::new(body);
    *asked.method_mut() = head.method;
    *asked.uri_mut() = head.uri.path().parse()?;
    let is_post = asked.method() == Method::POST;
    let headers = asked.headers_mut();
    headers.insert("host", server.to_string().parse()?);
    if is_post {
        headers.insert("content-type", "application/json".parse()?);
    }
    let answer = sender.send_request(asked).await?;
    Ok(answer.map(|body| body.boxed()))
}

/// As FastAPI puts it.
fn refusal(status: StatusCode, detail: &str) -> Response<Body> {
    let body = serde_json::json!({ "detail": detail }).to_string();
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    let mut reply = Response::new(body.boxed());
    *reply.status_mut() = status;
    reply
}
