//! The guest side: one catalogue of all hosts, and each request to a host that has the model.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::admit::{Infer, Route, admit};
use super::alias::Alias;
use super::clean;
use super::dialect::{Dialect, Refusal, json_reply};
use super::json::Object;
use super::listing::{self, Listed};
use super::relay::{Filter, Relay};
use super::server::Asked;
use super::upstream::{Patience, Target, UpstreamError};
use super::{Core, ReplyBody, door, server, upstream};
use crate::catalog::{Catalog, Entry, HostOffer, Lookup};
use crate::view::{Caller, View};

/// How many hosts are tried for one request.
const N_ATTEMPTS_MAX: usize = 4;

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
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Refusal> {
    let view = core.view().ok_or_else(|| {
        Refusal::busy("this node has no map of its mesh yet; see `meshctl status`")
    })?;
    if !matches!(view.caller(from), Some(Caller::Own)) {
        return Err(Refusal::forbidden(
            "this gateway serves its own machine alone",
        ));
    }
    server::check_browser(request.headers(), &view.netmap.network.suffix)?;
    let catalog = core.catalog(&view);
    let route = match admit(request.method(), request.uri().path()) {
        Ok(route) => route,
        Err(refusal) => return Err(helpful(refusal, request.uri().path(), &catalog)),
    };
    let models = || -> Vec<Listed<'_>> {
        let listed = catalog.entries().iter().filter_map(|entry| {
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
        Route::Show => Call::Show,
        Route::Infer(route) => Call::Infer(route),
    };
    let alias = door::host_alias(&request, &view);
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
    let all = entry
        .offers
        .iter()
        .filter(|o| pinned.is_none_or(|node| o.name == *node));
    let mut hosts: Vec<&HostOffer> = all.collect();
    // Hosts that were found down come last: they may be back, and nobody else has the model.
    hosts.sort_by_key(|offer| !offer.is_online || core.is_down(&offer.node));
    hosts.truncate(N_ATTEMPTS_MAX);
    send(core, &view, call, &hosts, asked).await
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
    let names = catalog.entries().iter().map(|entry| entry.model.as_str());
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
    mut asked: Asked,
) -> Result<Response<ReplyBody>, Refusal> {
    let body = &mut asked.body;
    body.remove("name");
    let mut last: Option<Result<Response<ReplyBody>, Refusal>> = None;
    for (at, host) in hosts.iter().enumerate() {
        body.insert("model".to_owned(), Value::String(host.offer.model.clone()));
        let mut tried = if host.is_self {
            // Only a copy where another host may need it.
            let body = if at + 1 == hosts.len() {
                std::mem::take(body)
            } else {
                body.clone()
            };
            local(core, view, call, body).await
        } else {
            remote(core, host, call, body).await
        };
        if let Ok(reply) = &mut tried {
            door::sign(reply, &host.name, Some(at + 1));
        }
        let is_final = match &tried {
            Ok(reply) => !is_worth_another(reply.status()),
            Err(refusal) => !is_worth_another(refusal.status),
        };
        if is_final {
            metrics::counter!(crate::metrics::GUEST_REQUESTS, "outcome" => "answered").increment(1);
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
) -> Result<Response<ReplyBody>, Refusal> {
    match call {
        Call::Show => door::show(core, view, None, &body).await,
        Call::Infer(route) => door::infer(core, view, None, route, None, body).await,
    }
}

async fn remote(
    core: &Core,
    host: &HostOffer,
    call: Call,
    body: &Object,
) -> Result<Response<ReplyBody>, Refusal> {
    let filter = call.filter(body)?;
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    let addr = SocketAddr::new(IpAddr::V4(host.ipv4), core.peer_port);
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
    let reply = match upstream::post(
        &core.pool,
        &Target::Host(addr),
        call.path(),
        bytes,
        patience,
    )
    .await
    {
        Ok(reply) => reply,
        Err(err) => {
            tracing::debug!(host = %host.name, %err, "host failed");
            if !matches!(err, UpstreamError::Silent) {
                core.liveness.mark_down(host.node, Instant::now());
            }
            return Err(unreachable("cannot be reached at the moment"));
        }
    };
    core.liveness.mark_up(&host.node);
    let (head, mut body) = reply.into_parts();
    // Once a byte of the answer is out, no other host can take over.
    if body.peek().await.is_err() {
        return Err(unreachable("broke off before its answer began"));
    }
    let (status, headers) = upstream::passed_head(head.status, &head.headers);
    let filter = if status == StatusCode::OK {
        filter
    } else {
        Filter::whole()
    };
    let relay = Relay::new(body, filter, call.dialect());
    let mut reply = Response::new(relay.boxed_unsync());
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    Ok(reply)
}
