//! Asks a model server what it is and what it has.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use mesh_proto::share::{BackendApi, Offer, Protocol};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::gateway::{DOOR_HEADER, is_cloud_name};

/// How long one question may take. Lists stay quick when a server works.
const TIMEOUT: Duration = Duration::from_millis(900);
/// The longest list that is read.
const LIST_MAX: usize = 8 << 20;
/// Header of every answer of a coordinator.
const COORDINATOR_HEADER: &str = "proxima-nonce";

/// How [`fetch`] tells that there is no such call.
const NOT_FOUND: &str = " answered 404";

/// A model server that answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Probe {
    pub(crate) authority: String,
    pub(crate) api: BackendApi,
    pub(crate) models: Vec<Offer>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Nothing listens there, or no model server.
    Gone(String),
    /// Something listens and says nothing in time.
    Silent(String),
}

/// Asks one server.
pub(crate) async fn probe(url: &str) -> Result<Probe, Miss> {
    let authority = authority_of(url)?;
    if let Ok(version) = fetch(&authority, "/api/version").await?
        && version.get("version").is_some_and(Value::is_string)
        && let Some(tags) = tags(&authority).await?
    {
        let loaded = fetch(&authority, "/api/ps").await?.unwrap_or_default();
        return Ok(Probe {
            authority,
            api: BackendApi::Ollama,
            models: ollama_models(tags, loaded),
        });
    }
    let models = fetch(&authority, "/v1/models")
        .await?
        .map_err(|what| Miss::Gone(format!("no model server answers at {url}: {what}")))?;
    if !models.get("data").is_some_and(Value::is_array) {
        return Err(Miss::Gone(format!(
            "what answers at {url} is neither Ollama nor an OpenAI-compatible server"
        )));
    }
    // Of llama-server alone.
    let props = fetch(&authority, "/props").await?.unwrap_or_default();
    Ok(Probe {
        authority,
        api: BackendApi::OpenAi,
        models: openai_models(&models, &props),
    })
}

/// Asks what a server speaks beside what its lists tell; `None` when it does not answer.
pub(crate) async fn spoken(authority: &str, api: BackendApi) -> Option<Vec<Protocol>> {
    let mut speaks = match api {
        BackendApi::Ollama => vec![Protocol::Ollama, Protocol::OpenAi],
        BackendApi::OpenAi => vec![Protocol::OpenAi],
    };
    for (protocol, path) in [
        (Protocol::Responses, "/v1/responses"),
        (Protocol::Messages, "/v1/messages"),
    ] {
        if has_call(authority, api, path).await? {
            speaks.push(protocol);
        }
    }
    Some(speaks)
}

/// Whether there is such a call. Most servers say that the method is a wrong one; llama-server only complains of a request that
/// names no model and says nothing, and runs nothing for it.
async fn has_call(authority: &str, api: BackendApi, path: &'static str) -> Option<bool> {
    match status(authority, Method::GET, path).await? {
        StatusCode::METHOD_NOT_ALLOWED => return Some(true),
        _ if api == BackendApi::Ollama => return Some(false),
        _ => {}
    }
    let told = status(authority, Method::POST, path).await?;
    Some(matches!(
        told,
        StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::INTERNAL_SERVER_ERROR
    ))
}

async fn status(authority: &str, method: Method, path: &'static str) -> Option<StatusCode> {
    let asked = async {
        let stream = TcpStream::connect(authority).await.ok()?;
        let answer = ask(stream, authority, method, path).await.ok()?;
        Some(answer.0)
    };
    tokio::time::timeout(TIMEOUT, asked).await.ok()?
}

/// Ollama's list; `None` where there is no such call. A list that fails for now is not made up for by OpenAI's, which does
/// not tell models of the vendor's cloud from others.
async fn tags(authority: &str) -> Result<Option<Value>, Miss> {
    match fetch(authority, "/api/tags").await? {
        Ok(tags) if tags.get("models").is_some_and(Value::is_array) => Ok(Some(tags)),
        Ok(_) => Ok(None),
        Err(what) if what.ends_with(NOT_FOUND) => Ok(None),
        Err(what) => Err(Miss::Silent(what)),
    }
}

/// `host:port` of a URL.
fn authority_of(url: &str) -> Result<String, Miss> {
    let wrong = |why: &str| Miss::Gone(format!("{url} cannot be used as a backend: {why}"));
    let url = url.trim_end_matches('/');
    let uri: http::Uri = url
        .parse()
        .map_err(|_| wrong("write it as http://127.0.0.1:11434"))?;
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err(wrong(
            "only http:// is supported; put it on this machine's loopback",
        ));
    }
    if uri.path().len() > 1 {
        return Err(wrong("leave out the path"));
    }
    let authority = uri
        .authority()
        .ok_or_else(|| wrong("write it as http://127.0.0.1:11434"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("leave out the user name"));
    }
    let port = authority.port_u16().unwrap_or(80);
    Ok(format!("{}:{port}", authority.host()))
}

/// One question. The outer error means that the server is not there; the inner one that it has no such answer.
async fn fetch(authority: &str, path: &'static str) -> Result<Result<Value, String>, Miss> {
    let silent = || {
        Miss::Silent(format!(
            "{authority} did not answer within {} ms",
            TIMEOUT.as_millis()
        ))
    };
    let connecting = TcpStream::connect(authority);
    let stream = match tokio::time::timeout(TIMEOUT, connecting).await {
        Err(_) => return Err(silent()),
        Ok(Err(err)) => return Err(Miss::Gone(format!("nothing listens at {authority}: {err}"))),
        Ok(Ok(stream)) => stream,
    };
    match tokio::time::timeout(TIMEOUT, ask(stream, authority, Method::GET, path)).await {
        Err(_) => Err(silent()),
        Ok(Err(err)) => Ok(Err(err.to_string())),
        Ok(Ok((status, headers, body))) => {
            if headers.contains_key(DOOR_HEADER) || headers.contains_key(COORDINATOR_HEADER) {
                return Err(Miss::Gone(format!(
                    "{authority} is a part of Proxima itself, not a model server"
                )));
            }
            if status != StatusCode::OK {
                return Ok(Err(format!("{path} answered {}", status.as_u16())));
            }
            Ok(serde_json::from_slice(&body)
                .map_err(|_| format!("{path} answered something that is not JSON")))
        }
    }
}

/// Sends a request; one with a body has an empty object.
async fn ask(
    stream: TcpStream,
    authority: &str,
    method: Method,
    path: &'static str,
) -> Result<(StatusCode, HeaderMap, Bytes), crate::gateway::BoxError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let body = if method == Method::POST { "{}" } else { "" };
    let mut request = Request::new(Full::new(Bytes::from_static(body.as_bytes())));
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_static(path);
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_str(authority)?);
    request
        .headers_mut()
        .insert(ACCEPT, HeaderValue::from_static("application/json"));
    if !body.is_empty() {
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
    }
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, LIST_MAX).collect().await?.to_bytes();
    Ok((head.status, head.headers, body))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OllamaModel {
    name: String,
    model: String,
    modified_at: String,
    size: u64,
    digest: String,
    details: Option<OllamaDetails>,
    capabilities: Option<Vec<String>>,
    remote_host: String,
    remote_model: String,
    context_length: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OllamaDetails {
    family: String,
    parameter_size: String,
    quantization_level: String,
    context_length: u64,
}

/// Reads a list of Ollama; an entry that does not look like one is skipped.
fn ollama_list(mut list: Value) -> Vec<OllamaModel> {
    let models = list.get_mut("models").map(Value::take).unwrap_or_default();
    let models = match models {
        Value::Array(models) => models,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Vec::new()
        }
    };
    models
        .into_iter()
        .filter_map(|model| serde_json::from_value(model).ok())
        .collect()
}

fn ollama_models(tags: Value, loaded: Value) -> Vec<Offer> {
    let loaded: BTreeMap<String, u64> = ollama_list(loaded)
        .into_iter()
        .map(|model| (model.name, model.context_length))
        .collect();
    let mut offers: Vec<Offer> = ollama_list(tags)
        .into_iter()
        .filter_map(|model| {
            let name = if model.name.is_empty() {
                model.model
            } else {
                model.name
            };
            let is_remote = !model.remote_host.is_empty() || !model.remote_model.is_empty();
            if is_remote || !is_sane(&name) || is_cloud_name(&name) {
                return None;
            }
            let details = model.details.unwrap_or_default();
            let in_memory = loaded.get(&name);
            Some(Offer {
                digest: model.digest.parse().ok(),
                size_bytes: model.size,
                family: details.family,
                parameter_size: details.parameter_size,
                quantization: details.quantization_level,
                // What is loaded counts: Ollama gives a model less than it could take.
                context_length: in_memory
                    .copied()
                    .filter(|n| *n > 0)
                    .unwrap_or(details.context_length),
                capabilities: model.capabilities.unwrap_or_default(),
                is_loaded: in_memory.is_some(),
                modified_at: model.modified_at,
                ..Offer::new(name, BackendApi::Ollama)
            })
        })
        .collect();
    // The server's order changes from call to call.
    offers.sort_by(|a, b| a.model.cmp(&b.model));
    offers
}

fn openai_models(list: &Value, props: &Value) -> Vec<Offer> {
    let entries = |key: &str| {
        list.get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let n_ctx = props.pointer("/default_generation_settings/n_ctx");
    let n_ctx = n_ctx.and_then(Value::as_u64);
    let mut offers: Vec<Offer> = entries("data")
        .filter_map(|entry| {
            let name = entry.get("id")?.as_str()?;
            if !is_sane(name) || is_cloud_name(name) {
                return None;
            }
            let twin = entries("models")
                .find(|twin| twin.get("name").and_then(Value::as_str) == Some(name));
            let meta = |key: &str| entry.get("meta").and_then(|meta| meta.get(key)?.as_u64());
            let quantization = entry.pointer("/meta/ftype").and_then(Value::as_str);
            Some(Offer {
                size_bytes: meta("size").unwrap_or(0),
                parameter_size: meta("n_params").map(parameter_size).unwrap_or_default(),
                quantization: quantization
                    .filter(|text| is_sane(text) && text.len() <= 32)
                    .unwrap_or_default()
                    .to_owned(),
                context_length: n_ctx
                    .or_else(|| entry.get("max_model_len")?.as_u64())
                    .or_else(|| meta("n_ctx_train"))
                    .unwrap_or(0),
                capabilities: capabilities(twin, props),
                is_loaded: true,
                ..Offer::new(name, BackendApi::OpenAi)
            })
        })
        .collect();
    offers.sort_by(|a, b| a.model.cmp(&b.model));
    offers
}

/// What a model can, in Ollama's words. llama-server tells some with its list, some with its properties.
fn capabilities(twin: Option<&Value>, props: &Value) -> Vec<String> {
    let told = twin.and_then(|twin| twin.get("capabilities")?.as_array());
    let mut known: Vec<String> = told
        .into_iter()
        .flatten()
        .filter_map(|text| Some(text.as_str()?.to_owned()))
        .filter(|text| is_sane(text) && text.len() <= 32)
        .take(16)
        .collect();
    if known.is_empty() {
        known.push("completion".to_owned());
    }
    for (place, name) in [
        ("/chat_template_caps/supports_tools", "tools"),
        ("/modalities/vision", "vision"),
        ("/modalities/audio", "audio"),
    ] {
        if props.pointer(place) == Some(&Value::Bool(true)) && !known.iter().any(|it| it == name) {
            known.push(name.to_owned());
        }
    }
    known
}

/// A count of parameters as Ollama writes it.
fn parameter_size(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{}K", n / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.1}B", n as f64 / 1e9),
    }
}

/// Whether a name can go into headers, messages and DNS without surprise.
fn is_sane(name: &str) -> bool {
    (1..=512).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
