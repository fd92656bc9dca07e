//! A stand-in for Ollama: its routes, shapes, errors and quirks as they were measured, in front of real llama-servers.
//!
//! It is as careless as the real one: keys match in any case and the last one wins, paths are percent-decoded, a web
//! page's `Origin` and a foreign `Host` are refused, and whoever reaches it may pull and delete. Each request is noted in
//! a log, so that a test can tell what a gateway let through.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::body::{Loose, decode};
use self::reply::{Reply, json_reply, text_reply};

pub mod body;
pub mod chat;
pub mod name;
pub mod openai;
pub mod reply;
mod tools;

const VERSION: &str = "0.33.0-rc2";

/// What the stand-in serves.
#[derive(Debug)]
pub struct Shop {
    models: Mutex<BTreeMap<String, SocketAddr>>,
    library: BTreeMap<String, SocketAddr>,
    is_loopback: bool,
    log: Mutex<File>,
    n_lists: Mutex<usize>,
}

impl Shop {
    /// Models by name, each with its llama-server; `library` is what a pull finds.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn new(
        models: BTreeMap<String, SocketAddr>,
        library: BTreeMap<String, SocketAddr>,
        listen: SocketAddr,
        log: &Path,
    ) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log);
        Ok(Self {
            models: Mutex::new(models),
            library,
            is_loopback: listen.ip().is_loopback(),
            log: Mutex::new(log.context("the request log")?),
            n_lists: Mutex::new(0),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backend(&self, model: &str) -> Option<SocketAddr> {
        self.lock().get(&name::canonical(model)?).copied()
    }

    fn note(&self, entry: &Value) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // A test that misses a line fails by itself.
        drop(writeln!(log, "{entry}"));
    }

    /// The models, in an order that changes from call to call as Ollama's does.
    fn list(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().keys().cloned().collect();
        let mut n_lists = self.n_lists.lock().unwrap_or_else(PoisonError::into_inner);
        *n_lists += 1;
        let by = *n_lists % names.len().max(1);
        names.rotate_left(by);
        names
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address is taken.
pub async fn serve(listen: SocketAddr, shop: Shop) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let shop = Arc::new(shop);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let shop = Arc::clone(&shop);
        // Each ends with its client.
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&shop), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.await);
        });
    }
}

async fn answer(
    shop: Arc<Shop>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let header = |key: &str| {
        let value = head.headers.get(key).map(|value| value.as_bytes());
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let model = decode(&body).ok().and_then(|body| body.text("model"));
    shop.note(&json!({
        "method": head.method.as_str(),
        "path": head.uri.to_string(),
        "host": header("host"),
        "origin": header("origin"),
        "authorization": header("authorization"),
        "n_bytes": body.len(),
        "body": String::from_utf8_lossy(body.get(..body.len().min(2_000)).unwrap_or_default()),
        "model": model.and_then(|model| name::canonical(&model)),
    }));
    if shop.is_loopback && !name::is_host_allowed(&header("host").unwrap_or_default()) {
        return Ok(text_reply(StatusCode::FORBIDDEN, ""));
    }
    if header("origin").is_some_and(|origin| !name::is_origin_allowed(&origin)) {
        return Ok(text_reply(StatusCode::FORBIDDEN, ""));
    }
    let raw_path = head.uri.path();
    let path = name::percent_decode(raw_path);
    let clean = name::clean(&path);
    if clean != path {
        let is_slash_only = format!("{clean}/") == path;
        let status = if is_slash_only && head.method == Method::GET {
            StatusCode::MOVED_PERMANENTLY
        } else {
            StatusCode::TEMPORARY_REDIRECT
        };
        let mut reply = text_reply(status, "");
        if let Ok(location) = clean.parse() {
            reply.headers_mut().insert("location", location);
        }
        return Ok(reply);
    }
    let is_zstd = header("content-encoding").as_deref() == Some("zstd");
    let body = if is_zstd && path.starts_with("/v1/") {
        zstd::stream::decode_all(body.as_ref()).map_or(body, Bytes::from)
    } else {
        body
    };
    Ok(route(&shop, &head.method, &path, &body).await)
}

/// Method, path and what answers; the complete list of the real one.
async fn route(shop: &Arc<Shop>, method: &Method, path: &str, body: &[u8]) -> Response<Reply> {
    let allowed = match path {
        "/" | "/api/version" | "/api/tags" => "GET, HEAD",
        "/api/ps" | "/v1/models" | "/api/status" | "/api/experimental/model-recommendations" => {
            "GET"
        }
        "/api/show"
        | "/api/generate"
        | "/api/chat"
        | "/api/embed"
        | "/api/embeddings"
        | "/api/pull"
        | "/api/push"
        | "/api/create"
        | "/api/copy"
        | "/api/me"
        | "/api/signout"
        | "/api/experimental/web_search"
        | "/api/experimental/web_fetch"
        | "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/embeddings"
        | "/v1/responses"
        | "/v1/messages"
        | "/v1/audio/transcriptions" => "POST",
        "/api/delete" => "DELETE",
        _ if one_segment(path, "/v1/models/").is_some() => "GET",
        _ if one_segment(path, "/api/blobs/").is_some() => "POST, HEAD",
        _ if one_segment(path, "/api/user/keys/").is_some() => "DELETE",
        _ => return text_reply(StatusCode::NOT_FOUND, "404 page not found"),
    };
    if !allowed.split(", ").any(|one| one == method.as_str()) {
        let mut reply = text_reply(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        if let Ok(value) = allowed.parse() {
            reply.headers_mut().insert("allow", value);
        }
        return reply;
    }
    match path {
        "/" => text_reply(StatusCode::OK, "Ollama is running"),
        "/api/version" => json_reply(StatusCode::OK, &json!({ "version": VERSION })),
        "/api/tags" => tags(shop),
        "/api/ps" => ps(shop),
        "/v1/models" => openai::models(&shop.list()),
        "/api/status" => json_reply(StatusCode::OK, &json!({ "cloud": { "disabled": true } })),
        "/api/pull" | "/api/delete" | "/api/copy" => manage(shop, path, body),
        "/api/push" | "/api/create" | "/api/signout" => {
            json_reply(StatusCode::OK, &json!({ "status": "success" }))
        }
        "/api/me" => json_reply(
            StatusCode::OK,
            &json!({ "name": "owner", "email": "owner@example.com" }),
        ),
        "/api/experimental/web_search"
        | "/api/experimental/web_fetch"
        | "/api/experimental/model-recommendations" => {
            json_reply(StatusCode::OK, &json!({ "results": [] }))
        }
        _ if path.starts_with("/api/blobs/") || path.starts_with("/api/user/keys/") => {
            text_reply(StatusCode::OK, "")
        }
        _ if let Some(model) = one_segment(path, "/v1/models/") => {
            openai::model(shop.backend(model).is_some(), model)
        }
        _ => infer(shop, path, body).await,
    }
}

/// The rest of a path below a prefix, when it is exactly one segment.
fn one_segment<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (!rest.is_empty() && !rest.contains('/')).then_some(rest)
}

async fn infer(shop: &Arc<Shop>, path: &str, body: &[u8]) -> Response<Reply> {
    let is_openai = path.starts_with("/v1/");
    let error = |status, text: &str, kind: &str| {
        if is_openai {
            openai::error(status, text, kind)
        } else {
            json_reply(status, &json!({ "error": text }))
        }
    };
    let request = match decode(body) {
        Ok(request) => request,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text, "invalid_request_error"),
    };
    let asked = asked_model(path, &request);
    let Some(canonical) = name::canonical(&asked) else {
        return error(
            StatusCode::BAD_REQUEST,
            "invalid model name",
            "invalid_request_error",
        );
    };
    let Some(backend) = shop.backend(&asked) else {
        let text = match path {
            "/api/embed" | "/api/embeddings" => {
                format!("model \"{asked}\" not found, try pulling it first")
            }
            _ => format!("model '{asked}' not found"),
        };
        return error(StatusCode::NOT_FOUND, &text, "not_found_error");
    };
    let asked = asked.trim();
    match path {
        "/api/show" => json_reply(StatusCode::OK, &name::show(&canonical)),
        "/api/chat" => chat::chat(backend, asked, &request, false).await,
        "/api/generate" => chat::chat(backend, asked, &request, true).await,
        "/api/embed" | "/api/embeddings" => {
            chat::embed(backend, asked, &request, path == "/api/embed").await
        }
        "/v1/chat/completions" => openai::chat(backend, asked, &request).await,
        _ => openai::pass(backend, path, asked, &request).await,
    }
}

/// `/api/show` takes `name` where `model` is empty.
fn asked_model(path: &str, request: &Loose) -> String {
    let model = request.text("model").unwrap_or_default();
    if model.is_empty() && path == "/api/show" {
        return request.text("name").unwrap_or_default();
    }
    model
}

fn tags(shop: &Shop) -> Response<Reply> {
    let models: Vec<Value> = shop.list().iter().map(|model| name::entry(model)).collect();
    json_reply(StatusCode::OK, &json!({ "models": models }))
}

fn ps(shop: &Shop) -> Response<Reply> {
    let models = shop.list().into_iter().map(|model| {
        let mut entry = name::entry(&model);
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("capabilities");
            entry.remove("modified_at");
            entry.insert("size".to_owned(), json!(0));
            entry.insert("size_vram".to_owned(), json!(0));
            entry.insert("context_length".to_owned(), json!(4096));
            entry.insert("expires_at".to_owned(), json!("2036-11-23T13:27:50.88Z"));
        }
        entry
    });
    json_reply(
        StatusCode::OK,
        &json!({ "models": models.collect::<Vec<_>>() }),
    )
}

fn manage(shop: &Shop, path: &str, body: &[u8]) -> Response<Reply> {
    let Ok(request) = decode(body) else {
        return json_reply(
            StatusCode::BAD_REQUEST,
            &json!({ "error": "missing request body" }),
        );
    };
    let first = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| request.text(key).filter(|text| !text.is_empty()))
    };
    let asked = first(&["model", "name", "source"]).unwrap_or_default();
    let Some(model) = name::canonical(&asked) else {
        return json_reply(
            StatusCode::BAD_REQUEST,
            &json!({ "error": "invalid model name" }),
        );
    };
    match path {
        "/api/pull" => {
            let Some(backend) = shop.library.get(&model) else {
                let text = "pull model manifest: file does not exist";
                return json_reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": text }));
            };
            shop.lock().insert(model, *backend);
            if request.value("stream") == Some(&json!(false)) {
                return json_reply(StatusCode::OK, &json!({ "status": "success" }));
            }
            let digest = format!("sha256:{}", name::digest(&asked));
            let layer = |completed: u64| {
                json!({ "status": format!("pulling {}", &digest[7..19]), "digest": digest,
                        "total": 1_057_622, "completed": completed })
            };
            let mut steps = vec![
                json!({ "status": "pulling manifest" }),
                layer(0),
                layer(1_057_622),
            ];
            let last = ["verifying sha256 digest", "writing manifest", "success"];
            steps.extend(last.iter().map(|status| json!({ "status": status })));
            reply::ndjson(steps.into_iter())
        }
        "/api/delete" => {
            if shop.lock().remove(&model).is_none() {
                let text = format!("model '{asked}' not found");
                return json_reply(StatusCode::NOT_FOUND, &json!({ "error": text }));
            }
            text_reply(StatusCode::OK, "")
        }
        _ => {
            let target = first(&["destination"]).and_then(|target| name::canonical(&target));
            let source = shop.lock().get(&model).copied();
            if let (Some(target), Some(source)) = (target, source) {
                shop.lock().insert(target, source);
            }
            text_reply(StatusCode::OK, "")
        }
    }
}
