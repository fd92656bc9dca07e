//! The guest side: one catalogue of all hosts, and each request to a host that has the model.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;

use super::admit::{Infer, Route, admit};
use super::alias::Alias;
use super::caller::Request;
use super::clean;
use super::dialect::{Dialect, Refusal, json_reply};
use super::json::Object;
use super::listing::{self, Listed};
use super::relay::{Filter, Relay};
use super::server::Asked;
use super::tracked::Tracked;
use super::upstream::{Patience, Target, UpstreamError};
use super::wire::Fields;
use super::{Core, QUEUE_HEADER, ReplyBody, door, handles, probe, server, upstream};
use crate::catalog::{Catalog, Entry, HostOffer, Lookup};
use crate::choice::{Ask, Prefer, Prefix, Work};
use crate::view::{Caller, View};

/// How many hosts are tried for one request.
const N_ATTEMPTS_MAX: usize = 4;
/// The exact name, on its host, of the model that answered.
const MODEL: HeaderName = HeaderName::from_static("x-proxima-model");

/// A call that a host answers.
#[derive(Debug, Clone, Copy)]
enum Call {
    Show,
    Infer(Infer),
}

impl Call {
    fn path(self) -> &'static str {
        match self {
            Self::Show => "/api/show",
            Self::Infer(route) => route.path(),
        }
    }

    fn dialect(self) -> Dialect {
        match self {
            Self::Show => Dialect::Ollama,
            Self::Infer(route) => route.dialect(),
        }
    }

    fn route(self) -> Option<Infer> {
        match self {
            Self::Show => None,
            Self::Infer(route) => Some(route),
        }
    }

    fn filter(self, body: &Object) -> Result<Filter, Refusal> {
        match self {
            Self::Infer(route) if clean::is_stream(route, body)? => {
                Ok(Filter::stream(route, false))
            }
            Self::Infer(_) | Self::Show => Ok(Filter::whole()),
        }
    }
}

/// Answers one request of a program on this machine.
pub(crate) async fn answer(
    core: &Core,
    from: IpAddr,
    request: Request,
) -> Result<Response<ReplyBody>, Refusal> {
    let view = core.view().ok_or_else(|| {
        Refusal::busy("this node has no map of its mesh yet; see `meshctl status`")
    })?;
    if !matches!(view.caller(from), Some(Caller::Own)) {
        return Err(Refusal::forbidden(
            "this gateway serves its own machine alone",
        ));
    }
    server::check_browser(&request.head.fields, &view.netmap.network.suffix)?;
    let catalog = core.catalog(&view);
    let route = match admit(&request.head.method, &request.head.path) {
        Ok(route) => route,
        Err(refusal) => return Err(helpful(refusal, &request.head.path, &catalog)),
    };
    let models = || -> Vec<Listed<'_>> {
        let listed = catalog.entries().filter_map(|entry| {
            let best = usable(core, entry).next()?;
            Some(listed(entry, best))
        });
        listed.collect()
    };
    let call = match route {
        Route::Root | Route::Version | Route::Status | Route::Recommendations => {
            return server::fixed(&route).ok_or_else(|| Refusal::bad_request("no such call"));
        }
        Route::Tags => return Ok(ok(&listing::tags(&models()))),
        Route::Ps => return Ok(ok(&listing::ps(&models(), SystemTime::now()))),
        Route::Models => return Ok(ok(&listing::v1_models(&models()))),
        Route::Model(name) => {
            let entry = find(&catalog, None, &name, catalog.lookup_model(&name))?;
            let best = entry.offers.first().ok_or_else(nobody)?;
            return Ok(ok(&listing::v1_model(&listed(entry, best))));
        }
        // Between nodes: this one has `meshctl top` and `meshctl models pull`.
        Route::Live | Route::Pull => {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found"));
        }
        Route::Show => Call::Show,
        Route::Infer(route) => Call::Infer(route),
    };
    let alias = door::host_alias(&request, &view);
    let prefer = prefer(&request.head.fields)?;
    let asked = server::read(&core.own_bodies, None, request).await?;
    let entry = match (clean::model_of(&asked.body)?, &alias) {
        (Some(name), _) => {
            let found = catalog.lookup_model(name);
            // A name that the host name already settles is not ambiguous.
            match (&found, &alias) {
                (Lookup::Ambiguous(_), Some(alias)) => {
                    find(&catalog, call.route(), name, alias.lookup(&catalog))?
                }
                _ => find(&catalog, call.route(), name, found)?,
            }
        }
        (None, Some(alias)) => find(&catalog, call.route(), alias.text(), alias.lookup(&catalog))?,
        (None, None) => {
            return Err(Refusal::bad_request(
                "name a model: the key \"model\" is missing",
            ));
        }
    };
    let pinned = match &alias {
        Some(Alias::OnNode(node, _)) => Some(node),
        Some(Alias::Label(_) | Alias::Id(_)) | None => None,
    };
    let offers: Vec<&HostOffer> = entry
        .offers
        .iter()
        .filter(|o| pinned.is_none_or(|node| o.name == *node))
        .collect();
    let prefix = call
        .route()
        .filter(|route| route.has_prompt())
        .and_then(|_| Prefix::of(&asked.body));
    let ask = Ask {
        prefix: prefix.as_ref(),
        prefer: prefer.as_ref(),
        own: core.load(),
    };
    let hosts = core
        .hosts
        .choose(&offers, &ask, N_ATTEMPTS_MAX, Instant::now());
    send(core, &view, call, &hosts, prefix.as_ref(), asked).await
}

/// What the client prefers.
fn prefer(fields: &Fields) -> Result<Option<Prefer>, Refusal> {
    let prefer = fields.prefer.as_ref().map(|text| text.parse());
    prefer
        .transpose()
        .map_err(|err: crate::choice::PreferError| Refusal::bad_request(err.to_string()))
}

fn ok(value: &Value) -> Response<ReplyBody> {
    json_reply(StatusCode::OK, value.to_string())
}

fn usable<'a>(core: &'a Core, entry: &'a Entry) -> impl Iterator<Item = &'a HostOffer> {
    entry.online().filter(|offer| !core.is_down(&offer.node))
}

fn listed<'a>(entry: &'a Entry, best: &'a HostOffer) -> Listed<'a> {
    let loaded = entry.offers.iter().find(|offer| offer.offer.is_loaded);
    Listed {
        name: &best.offer.model,
        offer: &loaded.unwrap_or(best).offer,
        has_gpu: true,
    }
}

fn nobody() -> Refusal {
    Refusal::busy("no host that shares this model can be reached at the moment")
}

/// The `ollama` CLI pulls when it finds no model; the answer says what there is.
fn helpful(refusal: Refusal, path: &str, catalog: &Catalog) -> Refusal {
    if path != "/api/pull" {
        return refusal;
    }
    let names = names(catalog);
    let shared = if names.is_empty() {
        "no models are shared with you at the moment".to_owned()
    } else {
        format!("shared with you: {}", names.join(", "))
    };
    Refusal::forbidden(format!(
        "models cannot be pulled through the mesh; {shared}"
    ))
}

/// The first names of the catalogue.
fn names(catalog: &Catalog) -> Vec<&str> {
    let names = catalog.entries().map(|entry| entry.model.as_str());
    names.take(20).collect()
}

fn find<'a>(
    catalog: &Catalog,
    route: Option<Infer>,
    name: &str,
    found: Lookup<'a>,
) -> Result<&'a Entry, Refusal> {
    match found {
        Lookup::Found(entry) => Ok(entry),
        Lookup::Unknown => {
            let near = catalog.near(name);
            let known = if near.is_empty() {
                names(catalog)
            } else {
                near
            };
            Err(server::not_found(route, name, &known))
        }
        Lookup::Ambiguous(entries) => {
            let name: String = name.chars().take(200).collect();
            let candidates: Vec<String> = entries
                .iter()
                .take(8)
                .map(|entry| candidate(entry))
                .collect();
            Err(Refusal::new(
                StatusCode::CONFLICT,
                format!(
                    "{name:?} stands for several models: {}; ask for one by its full name, or by its id as http://<id>.id.proxima:11434",
                    candidates.join(", ")
                ),
            ))
        }
    }
}

fn candidate(entry: &Entry) -> String {
    let hosts: Vec<&str> = entry
        .offers
        .iter()
        .take(3)
        .map(|o| o.name.as_str())
        .collect();
    let id = entry
        .digest
        .map_or_else(|| "no id".to_owned(), |digest| digest.short());
    format!("{} ({id}, on {})", entry.model, hosts.join(" "))
}

/// Tries the hosts in turn until one begins to answer.
async fn send(
    core: &Core,
    view: &Arc<View>,
    call: Call,
    hosts: &[&HostOffer],
    prefix: Option<&Prefix>,
    mut asked: Asked,
) -> Result<Response<ReplyBody>, Refusal> {
    let body = &mut asked.body;
    body.remove("name");
    let mut last: Option<Result<Response<ReplyBody>, Refusal>> = None;
    for (at, host) in hosts.iter().enumerate() {
        let is_last = at + 1 == hosts.len();
        let model = &host.offer.model;
        body.insert("model".to_owned(), Value::String(model.clone()));
        let work = core.hosts.start(host.node, model, prefix, Instant::now());
        let mut tried = if host.is_self {
            // Only a copy where another host may need it.
            let body = if is_last {
                std::mem::take(body)
            } else {
                body.clone()
            };
            local(core, view, call, body, work).await
        } else {
            remote(core, host, call, body, work, is_last).await
        };
        if let Ok(reply) = &mut tried {
            door::sign(reply, &host.name, Some(at + 1));
            if let Ok(model) = HeaderValue::from_str(model) {
                let headers = reply.headers_mut();
                headers.insert(MODEL, model);
            }
        }
        let is_final = match &tried {
            Ok(reply) => !is_worth_another(reply.status()),
            Err(refusal) => !is_worth_another(refusal.status),
        };
        if is_final {
            handles::answered();
            return tried;
        }
        last = Some(tried);
    }
    metrics::counter!(crate::metrics::GUEST_REQUESTS, "outcome" => "failed").increment(1);
    last.unwrap_or_else(|| Err(nobody()))
}

/// Whether another host may do better: this one is busy, broken, or no longer shares the model.
fn is_worth_another(status: StatusCode) -> bool {
    (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
        || matches!(
            status,
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS
        )
}

async fn local(
    core: &Core,
    view: &Arc<View>,
    call: Call,
    body: Object,
    mut work: Work,
) -> Result<Response<ReplyBody>, Refusal> {
    let answered = match call {
        Call::Show => return door::show(core, view, None, &body).await,
        Call::Infer(route) => door::infer(core, view, None, route, None, body).await,
    };
    let now = Instant::now();
    match answered {
        Ok(reply) if reply.status() == StatusCode::OK => {
            work.answered(waited(reply.headers()), None, now);
            Ok(reply.map(|body| Tracked::new(body, work).boxed_unsync()))
        }
        Ok(reply) => {
            judge(&mut work, reply.status(), reply.headers(), now);
            Ok(reply)
        }
        Err(refusal) => {
            judge(&mut work, refusal.status, &HeaderMap::new(), now);
            Err(refusal)
        }
    }
}

async fn remote(
    core: &Core,
    host: &HostOffer,
    call: Call,
    body: &Object,
    mut work: Work,
    is_last: bool,
) -> Result<Response<ReplyBody>, Refusal> {
    let filter = call.filter(body)?;
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    let addr = SocketAddr::new(IpAddr::V4(host.ipv4), core.peer_port);
    let target = Target::Host(addr, core.outward.clone());
    let patience = match call {
        Call::Show => Patience::SHORT,
        Call::Infer(_) => Patience::of(filter.is_stream()).through_queue(),
    };
    let unreachable = |text: &str| {
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            format!("the host {} {text}", host.name),
        )
    };
    let began = async {
        let (head, mut body) = upstream::post(&core.pool, &target, call.path(), bytes, patience)
            .await?
            .into_parts();
        // Once a byte of the answer is out, no other host can take over.
        body.peek().await.map(|()| (head, body))
    };
    let began = tokio::select! {
        began = began => began,
        () = work.lost(is_last) => {
            return Err(unreachable("stopped answering"));
        }
    };
    let now = Instant::now();
    let (head, body) = match began {
        Ok(began) => began,
        Err(err) => {
            tracing::debug!(host = %host.name, %err, "host failed");
            return Err(match err {
                UpstreamError::Connect(_) => {
                    work.unreachable(now);
                    unreachable("cannot be reached at the moment")
                }
                UpstreamError::Broken(_) | UpstreamError::Body => {
                    work.broken(now);
                    unreachable("broke off before its answer began")
                }
                UpstreamError::Silent => {
                    work.failed(now);
                    unreachable("said nothing for too long")
                }
            });
        }
    };
    work.answered(waited(&head.headers), probe::load_of(&head.headers), now);
    let (status, mut headers) = upstream::passed_head(head.status, &head.headers);
    if let Some(waited) = head.headers.get(QUEUE_HEADER) {
        headers.insert(door::QUEUE, waited.clone());
    }
    let body = if status == StatusCode::OK {
        let relay = Relay::new(body, filter, call.dialect());
        match call {
            Call::Infer(_) => Tracked::new(relay, work).boxed_unsync(),
            Call::Show => relay.boxed_unsync(),
        }
    } else {
        judge(&mut work, status, &head.headers, now);
        Relay::new(body, Filter::whole(), call.dialect()).boxed_unsync()
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    Ok(reply)
}

/// How long a request waited for its turn, as its host says.
fn waited(headers: &HeaderMap) -> Duration {
    let told = headers.get(QUEUE_HEADER);
    let told = told.and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_millis(told.unwrap_or(0))
}

/// What an answer that is none says of its host.
fn judge(work: &mut Work, status: StatusCode, headers: &HeaderMap, now: Instant) {
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let after = headers.get(RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
            work.refused(after.map(Duration::from_secs), now);
        }
        status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
            work.failed(now);
        }
        _ => {}
    }
}
