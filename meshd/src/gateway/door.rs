//! The host side: who may come in, which model is meant, and how the backend is asked.

mod account;
mod caps;
mod scrub;
mod spending;
mod tally;
mod terms;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::name::{fold, normalise};
use mesh_proto::share::{Audience, BackendApi};
use serde_json::{Value, json};

pub use account::Account;
pub(crate) use account::{Asker, Bound, Gate, GateKey, name_of};
use caps::Size;
pub(crate) use scrub::scrub_value;
pub(crate) use spending::Reserved;
pub use spending::Spending;
pub(crate) use tally::Tally;

use super::admit::{Infer, Route, admit, is_cloud_name};
use super::alias::Alias;
use super::caller::Request;
use super::clean::{self, Cleaned};
use super::count::{Counts, Record, Subject};
use super::dialect::{Dialect, Refusal, json_reply};
use super::json::Object;
use super::listing::{self, Listed};
use super::pace::Watch;
use super::relay::{Filter, Relay};
use super::translate::{self, Frame, StreamTranslator, Translated};
use super::upstream::{Patience, Target, UpstreamBody, UpstreamError};
use super::{Core, LOAD_HEADER, QUEUE_HEADER, ReplyBody, handles, live, server, upstream};
use crate::catalog::Catalog;
use crate::inventory::{InventoryStatus, Shared};
use crate::view::{Caller, View};

/// How long a request waits for its turn.
const QUEUE_DEADLINE: Duration = Duration::from_secs(120);
/// The largest whole reply that is translated or filtered.
const WHOLE_MAX: usize = 64 << 20;
/// The largest error of a backend that is passed on.
const ERROR_MAX: usize = 64 << 10;

const HOST: HeaderName = HeaderName::from_static("x-proxima-host");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-proxima-attempts");
const LOAD: HeaderName = HeaderName::from_static(LOAD_HEADER);
pub(crate) const QUEUE: HeaderName = HeaderName::from_static(QUEUE_HEADER);
const POSITION: HeaderName = HeaderName::from_static("x-proxima-queue-position");

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
    request: Request,
) -> Result<Response<ReplyBody>, Refusal> {
    let view = core
        .view()
        .ok_or_else(|| Refusal::busy("this host has no map of its mesh yet"))?;
    let share = core.share();
    let guest = identify(&view, &share, from)?;
    let asker = Asker::of(&view, guest).ok_or_else(no_guest)?;
    terms::check_open(share.closed.as_ref(), asker.account, SystemTime::now)?;
    server::check_browser(&request.head.fields, &view.netmap.network.suffix)?;
    let route = admit(&request.head.method, &request.head.path)?;
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
        Route::Live => {
            let live = serde_json::to_value(live::own(core)).unwrap_or_default();
            ok(&live)
        }
        Route::Pull => {
            may_pull(&view, &share, guest)?;
            let asked = server::read(&core.bodies, guest, request).await?;
            let model = clean::model_of(&asked.body)?
                .ok_or_else(|| Refusal::bad_request("name the model to pull"))?;
            let status = core.puller.ask(&core.pool, &share, model)?;
            ok(&serde_json::to_value(status).unwrap_or_default())
        }
        Route::Show => {
            let asked = server::read(&core.bodies, guest, request).await?;
            show(core, &view, alias.as_ref(), &asked.body).await?
        }
        Route::Infer(route) => {
            let mut asked = server::read(&core.bodies, guest, request).await?;
            caps::check_body(&asker.caps(&share.config.door), asked.n_bytes)?;
            let body = std::mem::take(&mut asked.body);
            infer(core, &view, guest, route, alias.as_ref(), body).await?
        }
    };
    sign(&mut reply, &view.netmap.node.name, None);
    if let Ok(load) = HeaderValue::from_str(&core.load().to_string()) {
        reply.headers_mut().insert(LOAD, load);
    }
    Ok(reply)
}

/// Says which host answered, and at which attempt.
pub(crate) fn sign(reply: &mut Response<ReplyBody>, host: &NodeName, n_attempts: Option<usize>) {
    let headers = reply.headers_mut();
    if let Ok(host) = HeaderValue::from_str(host.as_str()) {
        headers.insert(HOST, host);
    }
    if let Some(n) = n_attempts {
        headers.insert(ATTEMPTS, number(n as u64));
    }
}

/// The model that the host name of a request stands for.
pub(crate) fn host_alias(request: &Request, view: &View) -> Option<Alias> {
    let host = request.head.fields.host.as_ref()?;
    Alias::parse(host, &view.netmap.network.suffix)
}

fn ok(value: &Value) -> Response<ReplyBody> {
    json_reply(StatusCode::OK, value.to_string())
}

/// Who is asking, if that one may. `None` is this machine itself.
fn identify(view: &View, share: &InventoryStatus, from: IpAddr) -> Result<Option<NodeId>, Refusal> {
    let caller = view.caller(from).ok_or_else(no_guest)?;
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

fn no_guest() -> Refusal {
    Refusal::forbidden("only nodes of the mesh may use this host")
}

/// Whether the owner lets this user have models pulled. A tagged node acts as no user.
fn may_pull(view: &View, share: &InventoryStatus, guest: Option<NodeId>) -> Result<(), Refusal> {
    let peer = guest.and_then(|id| view.netmap.peers.get(&id));
    let user = match (guest, peer) {
        (None, _) => Some(&view.netmap.node.user_name),
        (Some(_), Some(peer)) if peer.tags.is_empty() => Some(&peer.user_name),
        (Some(_), _) => None,
    };
    if user.is_some_and(|user| share.config.pulls.users.contains(user)) {
        return Ok(());
    }
    Err(Refusal::forbidden(
        "this host's owner does not let you have models pulled; let it be known what you would like: meshctl models want NAME",
    ))
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
        let mut error: Value = serde_json::from_slice(&whole).unwrap_or_default();
        scrub_value(&mut error);
        return Ok(json_reply(head.status, error.to_string()));
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
    if core.is_leaving() {
        return Err(leaving());
    }
    let share = core.share();
    let asker = Asker::of(view, guest).ok_or_else(no_guest)?;
    // It may have closed while the body came.
    terms::check_open(share.closed.as_ref(), asker.account, SystemTime::now)?;
    let catalog = core.catalog(view);
    let names = Names::new(&share, &catalog, &view.netmap.node.name);
    let shared = names.resolve(Some(route), clean::model_of(&body)?, alias)?;
    let model = &shared.offer.model;
    let terms = &share.config.door;
    let caps = asker.caps(terms);
    let size = Size::of(&body);
    let context = caps::context(&caps, shared.offer.context_length);
    let mut cleaned = clean::clean(route, body, model, context)?;
    caps::apply(&caps, route, &mut cleaned.body, size)?;
    if shared.offer.api == BackendApi::Ollama {
        // It shifts its window and goes on for ever; the others stop at its end, and refuse a limit beyond it.
        clean::bound_tokens(route, &mut cleaned.body);
    }
    let arrived = Instant::now();
    let bounds = asker.limits(terms, model);
    let n_output_max = caps::n_output_max(route, &cleaned.body);
    let reserved = core
        .spending
        .admit(
            asker.account,
            model,
            &bounds,
            size.n_tokens(),
            n_output_max,
            SystemTime::now(),
        )
        .map_err(|err| terms::over(&err))?;
    let gates: Vec<Gate> = bounds.iter().filter_map(Bound::gate).collect();
    let slot = core
        .queue
        .acquire(asker.account, gates, QUEUE_DEADLINE)
        .await
        .map_err(|err| terms::no_slot(&err))?;
    if slot.position > 0 {
        still_shares(core, asker.account, shared)?;
    }
    let waited = (slot.waited, slot.position);
    handles::wait(slot.waited.as_secs_f64());
    let subject = Subject {
        view,
        guest,
        offer: &shared.offer,
        route,
        is_stream: cleaned.is_stream,
    };
    let mut record = Record::new(&subject, arrived, core.meter.clone());
    record.pay_with(reserved, size.n_tokens());
    record.occupy(core.occupancy.begin());
    // Given back before the record says that the request is over.
    let slot = slot;
    let frame = Frame {
        model: model.clone(),
        route,
        started: slot.begun,
    };
    let is_translated = !translate::is_spoken(&shared.offer, route);
    let (sent_route, sent) = if is_translated {
        let translated = translate::translate(route, &cleaned.body);
        match translated.inspect_err(|_| record.refused())? {
            Translated::Load => {
                record.complete();
                return Ok(one_line(&translate::load(&frame), cleaned.is_stream));
            }
            Translated::Send(route, body) => (route, body),
        }
    } else {
        (route, std::mem::take(&mut cleaned.body))
    };
    let target = Target::Backend(shared.authority.clone());
    let bytes = Bytes::from(serde_json::to_vec(&sent).unwrap_or_default());
    let patience = Patience::of(cleaned.is_stream);
    let (head, upstream) = upstream::post(&core.pool, &target, sent_route.path(), bytes, patience)
        .await
        .map_err(|err| {
            record.fail(&err);
            unreachable_backend(&err)
        })?
        .into_parts();
    if head.status != StatusCode::OK {
        if head.status.is_client_error() {
            record.refused();
        } else {
            record.broke();
        }
        return Ok(pass_error(route, head.status, upstream).await);
    }
    let watch = Watch::new(&core.pace, model, frame.started);
    if is_translated && !cleaned.is_stream {
        let mut reply = translate_whole(&frame, upstream, record, watch).await?;
        tell_wait(&mut reply, waited);
        return Ok(reply);
    }
    let (status, headers) = upstream::passed_head(head.status, &head.headers);
    let filter = filter_of(&frame, is_translated, &cleaned);
    let made = filter.content_type();
    let relay = Relay::new(upstream, filter, route.dialect())
        .holding(slot, record)
        .watched(watch);
    let mut reply = Response::new(relay.boxed_unsync());
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    if let Some(made) = made {
        set_content_type(&mut reply, made);
    }
    tell_wait(&mut reply, waited);
    Ok(reply)
}

/// Whether the host would still take a request that waited for its turn.
fn still_shares(core: &Core, account: Account, shared: &Shared) -> Result<(), Refusal> {
    let now = core.share();
    terms::check_open(now.closed.as_ref(), account, SystemTime::now)?;
    if core.is_leaving() {
        return Err(leaving());
    }
    let is_it = |s: &Shared| s.offer.model == shared.offer.model && s.authority == shared.authority;
    if now.config.is_on && now.shared.iter().any(is_it) {
        return Ok(());
    }
    Err(Refusal::busy(
        "this host stopped to share the model while the request waited",
    ))
}

fn leaving() -> Refusal {
    Refusal::busy("this host leaves the mesh at the moment; ask another one")
}

/// Says how long a request waited for its turn, and at which place it entered the queue; 0 when it did not have to.
fn tell_wait(reply: &mut Response<ReplyBody>, (waited, position): (Duration, usize)) {
    let headers = reply.headers_mut();
    let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    headers.insert(QUEUE, number(ms));
    headers.insert(POSITION, number(position as u64));
}

/// A number as a header has it; most are these two, which need no memory.
fn number(n: u64) -> HeaderValue {
    match n {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        n => HeaderValue::from(n),
    }
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
    watch: Watch,
) -> Result<Response<ReplyBody>, Refusal> {
    let whole = upstream.collect(WHOLE_MAX).await.map_err(|err| {
        record.fail(&err);
        unreachable_backend(&err)
    })?;
    let reply: Value = serde_json::from_slice(&whole).map_err(|_| {
        record.broke();
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            "the model server's answer is not JSON",
        )
    })?;
    let mut counts = Counts::default();
    counts.observe(&reply);
    record.set(counts);
    record.complete();
    watch.end(counts.n_output);
    let text = translate::whole(frame, &reply).to_string();
    record.passed(text.as_bytes());
    Ok(json_reply(StatusCode::OK, text))
}

fn one_line(value: &Value, is_stream: bool) -> Response<ReplyBody> {
    let mut reply = json_reply(StatusCode::OK, format!("{value}\n"));
    if is_stream {
        set_content_type(&mut reply, "application/x-ndjson");
    }
    reply
}

fn set_content_type(reply: &mut Response<ReplyBody>, kind: &'static str) {
    reply
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
}

/// Passes a backend's refusal on, in the caller's dialect.
async fn pass_error(
    route: Infer,
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
    let dialect: Dialect = route.dialect();
    if dialect.is_error(&body)
        && let Ok(mut error) = serde_json::from_slice::<Value>(&body)
    {
        scrub_value(&mut error);
        return json_reply(status, error.to_string());
    }
    let text = translate::error_message(&body).map_or_else(
        || format!("the model server answered {status}"),
        |text| scrub::scrub(&text),
    );
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
