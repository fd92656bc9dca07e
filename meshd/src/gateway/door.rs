//! The host side: who may come in, which model is meant, and how the backend is asked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::name::{fold, normalise};
use mesh_proto::share::{Audience, BackendApi};
use serde_json::{Value, json};

use super::admit::{Infer, Route, admit, is_cloud_name};
use super::alias::Alias;
use super::clean::{self, Cleaned};
use super::count::{Counts, Record};
use super::dialect::{Dialect, Refusal, json_reply};
use super::json::Object;
use super::listing::{self, Listed};
use super::relay::{Filter, Relay};
use super::translate::{self, Frame, StreamTranslator, Translated};
use super::upstream::{Patience, Target, UpstreamBody, UpstreamError};
use super::{Core, ReplyBody, server, upstream};
use crate::catalog::Catalog;
use crate::inventory::{InventoryStatus, Shared};
use crate::view::{Caller, View};

/// How long a request waits for its turn.
const QUEUE_DEADLINE: Duration = Duration::from_secs(120);
/// The largest whole reply that is translated or filtered.
const WHOLE_MAX: usize = 64 << 20;
/// The largest error of a backend that is passed on.
const ERROR_MAX: usize = 64 << 10;

/// What `/api/show` tells a guest; the rest holds paths and the owner's own prompts.
const SHOWN: [&str; 8] = [
    "license",
    "parameters",
    "template",
    "details",
    "model_info",
    "projector_info",
    "capabilities",
    "modified_at",
];

/// Answers one request of a peer.
pub(crate) async fn answer(
    core: &Core,
    from: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Refusal> {
    let view = core
        .view()
        .ok_or_else(|| Refusal::busy("this host has no map of its mesh yet"))?;
    let share = core.share();
    let guest = identify(&view, &share, from)?;
    server::check_browser(request.headers(), &view.netmap.network.suffix)?;
    let route = admit(request.method(), request.uri().path())?;
    let catalog = core.catalog(&view);
    let alias = host_alias(&request, &view);
    let models = || -> Vec<Listed<'_>> {
        let listed = share.shared.iter().map(|shared| Listed {
            name: &shared.offer.model,
            offer: &shared.offer,
            has_gpu: !share.gpus.is_empty(),
        });
        listed.collect()
    };
    let mut reply = match route {
        Route::Root | Route::Version | Route::Status | Route::Recommendations => {
            server::fixed(&route).ok_or_else(|| Refusal::bad_request("no such call"))?
        }
        Route::Tags => ok(&listing::tags(&models())),
        Route::Ps => ok(&listing::ps(&models(), SystemTime::now())),
        Route::Models => ok(&listing::v1_models(&models())),
        Route::Model(name) => {
            let names = Names::new(&share, &catalog, &view.netmap.node.name);
            let shared = names.resolve(None, Some(&name), None)?;
            let listed = Listed {
                name: &shared.offer.model,
                offer: &shared.offer,
                has_gpu: false,
            };
            ok(&listing::v1_model(&listed))
        }
        Route::Show => {
            let asked = server::read(&core.bodies, guest, request).await?;
            show(core, &view, alias.as_ref(), &asked.body).await?
        }
        Route::Infer(route) => {
            let mut asked = server::read(&core.bodies, guest, request).await?;
            let body = std::mem::take(&mut asked.body);
            infer(core, &view, guest, route, alias.as_ref(), body).await?
        }
    };
    sign(&mut reply, &view.netmap.node.name, None);
    Ok(reply)
}

/// Says which host answered, and at which attempt.
pub(crate) fn sign(reply: &mut Response<ReplyBody>, host: &NodeName, n_attempts: Option<usize>) {
    let headers = reply.headers_mut();
    if let Ok(host) = HeaderValue::from_str(host.as_str()) {
        headers.insert(HeaderName::from_static("x-proxima-host"), host);
    }
    if let Some(n) = n_attempts {
        headers.insert(
            HeaderName::from_static("x-proxima-attempts"),
            HeaderValue::from(n),
        );
    }
}

/// The model that the host name of a request stands for.
pub(crate) fn host_alias(request: &Request<Incoming>, view: &View) -> Option<Alias> {
    let host = request.headers().get(HOST)?.to_str().ok()?;
    Alias::parse(host, &view.netmap.network.suffix)
}

fn ok(value: &Value) -> Response<ReplyBody> {
    json_reply(StatusCode::OK, value.to_string())
}

/// Who is asking, if that one may. `None` is this machine itself.
fn identify(view: &View, share: &InventoryStatus, from: IpAddr) -> Result<Option<NodeId>, Refusal> {
    let caller = view
        .caller(from)
        .ok_or_else(|| Refusal::forbidden("only nodes of the mesh may use this host"))?;
    if !share.config.is_on {
        return Err(Refusal::forbidden(
            "this host shares no models; its owner can change that with `meshctl share on`",
        ));
    }
    match caller {
        Caller::Own => Ok(None),
        Caller::Peer(id, peer) => {
            let owner = view.netmap.node.user;
            let audience = &share.config.audience;
            // A tagged node acts as no user: its registrar's rights are not its own.
            let is_admitted = if peer.tags.is_empty() {
                audience.admits(owner, peer.user, &peer.user_name)
            } else {
                *audience == Audience::Everyone
            };
            if is_admitted {
                Ok(Some(id))
            } else {
                Err(Refusal::forbidden(
                    "this host does not share its models with you",
                ))
            }
        }
    }
}

/// The names under which this host's models may be asked for.
struct Names<'a> {
    share: &'a InventoryStatus,
    catalog: &'a Catalog,
    own: &'a NodeName,
}

impl<'a> Names<'a> {
    fn new(share: &'a InventoryStatus, catalog: &'a Catalog, own: &'a NodeName) -> Self {
        Self {
            share,
            catalog,
            own,
        }
    }

    /// The one model that is meant, out of those that are shared and no others.
    fn resolve(
        &self,
        route: Option<Infer>,
        asked: Option<&str>,
        alias: Option<&Alias>,
    ) -> Result<&'a Shared, Refusal> {
        let unknown = |name: &str| {
            let known: Vec<&str> = self
                .share
                .shared
                .iter()
                .map(|shared| shared.offer.model.as_str())
                .take(20)
                .collect();
            server::not_found(route, name, &known)
        };
        let Some(asked) = asked else {
            let alias = alias.ok_or_else(|| {
                Refusal::bad_request("name a model: the key \"model\" is missing")
            })?;
            return self.by_alias(alias).ok_or_else(|| unknown(alias.text()));
        };
        if is_cloud_name(asked) {
            return Err(Refusal::forbidden(
                "ollama cloud is disabled: remote model is unavailable",
            ));
        }
        let normal = normalise(asked);
        let shared = &self.share.shared;
        shared
            .iter()
            .find(|shared| shared.offer.model == asked)
            .or_else(|| shared.iter().find(|s| normalise(&s.offer.model) == normal))
            .or_else(|| self.by_alias(&Alias::Label(fold(&normal))))
            .ok_or_else(|| unknown(asked))
    }

    fn by_alias(&self, alias: &Alias) -> Option<&'a Shared> {
        let entry = match alias {
            Alias::Label(label) => self.catalog.on_node(self.own, label),
            Alias::Id(id12) => self.catalog.by_digest(id12),
            Alias::OnNode(node, label) if node == self.own => self.catalog.on_node(node, label),
            Alias::OnNode(_, _) => return None,
        };
        let offer = &entry.found()?.on(self.own)?.offer;
        self.share
            .shared
            .iter()
            .find(|shared| shared.offer.model == offer.model)
    }
}

/// Tells about a shared model, without what is the owner's business.
pub(crate) async fn show(
    core: &Core,
    view: &Arc<View>,
    alias: Option<&Alias>,
    body: &Object,
) -> Result<Response<ReplyBody>, Refusal> {
    let share = core.share();
    let catalog = core.catalog(view);
    let names = Names::new(&share, &catalog, &view.netmap.node.name);
    let shared = names.resolve(None, clean::model_of(body)?, alias)?;
    if shared.offer.api == BackendApi::OpenAi {
        return Ok(ok(&listing::show(&shared.offer)));
    }
    let asked = json!({ "model": shared.offer.model, "verbose": false });
    let target = Target::Backend(shared.authority.clone());
    let asked = Bytes::from(asked.to_string());
    let sent = upstream::post(&core.pool, &target, "/api/show", asked, Patience::SHORT);
    let (head, body) = sent
        .await
        .map_err(|err| unreachable_backend(&err))?
        .into_parts();
    let whole = body
        .collect(WHOLE_MAX)
        .await
        .map_err(|err| unreachable_backend(&err))?;
    if head.status != StatusCode::OK {
        return Ok(json_reply(head.status, whole));
    }
    let Ok(Value::Object(mut told)) = serde_json::from_slice(&whole) else {
        return Err(Refusal::new(
            StatusCode::BAD_GATEWAY,
            "the model server's answer is not JSON",
        ));
    };
    told.retain(|key, _| SHOWN.contains(&key.as_str()));
    if let Some(details) = told.get_mut("details").and_then(Value::as_object_mut) {
        // A model made from a file has the file's path here.
        details.insert("parent_model".to_owned(), "".into());
    }
    Ok(ok(&Value::Object(told)))
}

/// Has a model work on a request.
pub(crate) async fn infer(
    core: &Core,
    view: &Arc<View>,
    guest: Option<NodeId>,
    route: Infer,
    alias: Option<&Alias>,
    body: Object,
) -> Result<Response<ReplyBody>, Refusal> {
    let share = core.share();
    let catalog = core.catalog(view);
    let names = Names::new(&share, &catalog, &view.netmap.node.name);
    let shared = names.resolve(Some(route), clean::model_of(&body)?, alias)?;
    let model = &shared.offer.model;
    let mut cleaned = clean::clean(route, body, model, shared.offer.context_length)?;
    if shared.offer.api == BackendApi::Ollama {
        // It shifts its window and goes on for ever; the others stop at its end, and refuse a limit beyond it.
        clean::bound_tokens(route, &mut cleaned.body);
    }
    let mut record = Record::new(guest, model, route.path(), core.meter.clone());
    let slot = core
        .queue
        .acquire(guest, QUEUE_DEADLINE)
        .await
        .map_err(|err| Refusal::busy(err.to_string()))?;
    let now = core.share();
    let is_still = |s: &Shared| s.offer.model == *model && s.authority == shared.authority;
    if !(now.config.is_on && now.shared.iter().any(is_still)) {
        return Err(Refusal::busy(
            "this host stopped to share the model while the request waited",
        ));
    }
    let frame = Frame {
        model: model.clone(),
        route,
        started: Instant::now(),
    };
    let translated = match shared.offer.api {
        BackendApi::Ollama => None,
        BackendApi::OpenAi => translate::translate(route, &cleaned.body),
    };
    let (sent_route, sent) = match translated {
        Some(Translated::Load) => {
            record.complete();
            return Ok(one_line(&frame.load(), cleaned.is_stream));
        }
        Some(Translated::Send(route, body)) => (route, body),
        None => (route, std::mem::take(&mut cleaned.body)),
    };
    let is_translated = sent_route != route;
    let target = Target::Backend(shared.authority.clone());
    let bytes = Bytes::from(Value::Object(sent).to_string());
    let patience = Patience::of(cleaned.is_stream);
    let (head, upstream) = upstream::post(&core.pool, &target, sent_route.path(), bytes, patience)
        .await
        .map_err(|err| unreachable_backend(&err))?
        .into_parts();
    if head.status != StatusCode::OK {
        return Ok(pass_error(route, is_translated, head.status, upstream).await);
    }
    if is_translated && !cleaned.is_stream {
        return translate_whole(&frame, upstream, record).await;
    }
    let (status, headers) = upstream::passed_head(head.status, &head.headers);
    let filter = filter_of(&frame, is_translated, &cleaned);
    let relay = Relay::new(upstream, filter, route.dialect()).holding(slot, record);
    let mut reply = Response::new(relay.boxed_unsync());
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    if is_translated {
        set_ndjson(&mut reply);
    }
    Ok(reply)
}

fn filter_of(frame: &Frame, is_translated: bool, cleaned: &Cleaned) -> Filter {
    if is_translated {
        Filter::translating(StreamTranslator::new(frame.clone()))
    } else if cleaned.is_stream {
        let is_openai = matches!(frame.route, Infer::V1Chat | Infer::V1Completions);
        Filter::stream(frame.route, is_openai && !cleaned.wants_usage)
    } else {
        Filter::whole()
    }
}

async fn translate_whole(
    frame: &Frame,
    upstream: UpstreamBody,
    mut record: Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let whole = upstream
        .collect(WHOLE_MAX)
        .await
        .map_err(|err| unreachable_backend(&err))?;
    let reply: Value = serde_json::from_slice(&whole).map_err(|_| {
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            "the model server's answer is not JSON",
        )
    })?;
    let mut counts = Counts::default();
    counts.observe(&reply);
    record.set(counts);
    record.complete();
    Ok(ok(&match frame.route {
        Infer::Embed | Infer::Embeddings => translate::embeddings(frame, &reply),
        Infer::Chat
        | Infer::Generate
        | Infer::V1Chat
        | Infer::V1Completions
        | Infer::V1Embeddings
        | Infer::V1Responses
        | Infer::V1Messages => translate::whole(frame, &reply),
    }))
}

fn one_line(value: &Value, is_stream: bool) -> Response<ReplyBody> {
    let mut reply = json_reply(StatusCode::OK, format!("{value}\n"));
    if is_stream {
        set_ndjson(&mut reply);
    }
    reply
}

fn set_ndjson(reply: &mut Response<ReplyBody>) {
    reply.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
}

/// Passes a backend's refusal on, in the caller's dialect.
async fn pass_error(
    route: Infer,
    is_translated: bool,
    status: StatusCode,
    upstream: UpstreamBody,
) -> Response<ReplyBody> {
    // That the backend wants a key of the owner is nothing the guest can mend.
    let status = if status.is_redirection() || status == StatusCode::UNAUTHORIZED {
        StatusCode::BAD_GATEWAY
    } else {
        status
    };
    let body = upstream.collect(ERROR_MAX).await.unwrap_or_default();
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    if !is_translated && is_json {
        return json_reply(status, body);
    }
    let text = translate::error_message(&body)
        .unwrap_or_else(|| format!("the model server answered {status}"));
    let dialect: Dialect = route.dialect();
    json_reply(status, dialect.error_body(status, &text))
}

fn unreachable_backend(err: &UpstreamError) -> Refusal {
    tracing::debug!(%err, "backend failed");
    match err {
        UpstreamError::Connect(_) => Refusal::busy("the model server of this host is not running"),
        UpstreamError::Silent => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the model server of this host stopped answering",
        ),
        UpstreamError::Broken(_) | UpstreamError::Body => Refusal::new(
            StatusCode::BAD_GATEWAY,
            "the model server of this host broke off",
        ),
    }
}
