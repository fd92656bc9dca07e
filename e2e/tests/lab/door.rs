//! What the door refuses, however it is asked, and that there is no way around it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::Node;
use e2e::model::{LlamaServer, Ollama};
use e2e::net::{Lab, scenario};
use e2e::probe::{Request, can_connect};
use e2e::process::{ensure_success, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use serde_json::{Value, json};

use crate::mesh;

const PROMISED: Duration = Duration::from_secs(5);

/// What may reach the model server: the daemon's own questions, and inference.
const HARMLESS: &[(&str, &str)] = &[
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/v1/models"),
    ("GET", "/v1/messages"),
    ("GET", "/v1/responses"),
    ("GET", "/health"),
    ("GET", "/props"),
    ("POST", "/api/show"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
];

const FORBIDDEN: &[(&str, &str)] = &[
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:0000"),
    ("HEAD", "/api/blobs/sha256:0000"),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/x"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("POST", "/v1/audio/transcriptions"),
    ("GET", "/slots"),
    ("GET", "/metrics"),
    ("GET", "/debug/pprof/"),
    ("POST", "/no/such/route"),
    ("DELETE", "/api/tags"),
    ("PUT", "/api/chat"),
    ("PATCH", "/v1/chat/completions"),
];

/// The spellings under which a careless server finds a path.
fn spellings(path: &str) -> Vec<String> {
    let bare = path.trim_start_matches('/');
    let (first, rest) = bare.split_once('/').unwrap_or((bare, ""));
    let initial = rest
        .as_bytes()
        .first()
        .or_else(|| first.as_bytes().first())
        .copied()
        .unwrap_or(b'x');
    let tail = rest.get(1..).unwrap_or_default();
    vec![
        path.to_owned(),
        format!("//{bare}"),
        format!("/{first}//{rest}"),
        format!("/{first}/./{rest}"),
        format!("/api/../{bare}"),
        format!("/api/chat/../../{bare}"),
        format!("/api/chat/..%2f..%2f{bare}"),
        format!("/%2e%2e/{bare}"),
        format!("/api/%2e%2e/{bare}"),
        format!("/{first}/%{initial:02x}{tail}"),
        format!("/{first}/%{initial:02X}{tail}"),
        format!("/{first}%2f{rest}"),
        format!("{path}/"),
        format!("{path}?x=/api/chat"),
        format!("{path};/api/chat"),
        format!("{path}#/api/chat"),
        path.to_ascii_uppercase(),
        format!("/{first}\\{rest}"),
        format!("http://127.0.0.1:11434{path}"),
        format!("/v1/models/../..{path}"),
    ]
}

/// Sends requests byte by byte as they are, and gives the status of each, 0 for none.
fn raw(node: &Node<'_>, target: &str, requests: &[String]) -> Result<Vec<u64>> {
    let file = node.host.dir().join("raw.json");
    std::fs::write(&file, serde_json::to_vec(requests)?)?;
    let script = tool::client_script("raw.py");
    let args = [
        script.to_string_lossy(),
        target.into(),
        file.to_string_lossy(),
    ];
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let output = node.host.run(tool::python()?, &args)?;
    ensure_success("raw.py", &output)?;
    serde_json::from_slice(&output.stdout).with_context(|| stdout(&output))
}

/// What reached the model server and should not have.
fn trespasses(ollama: &Ollama<'_>) -> Result<Vec<Value>> {
    let is_harmless = |entry: &Value| {
        let (method, path) = (entry["method"].as_str(), entry["path"].as_str());
        HARMLESS
            .iter()
            .any(|(m, p)| method == Some(m) && path == Some(p))
    };
    Ok(ollama
        .requests()?
        .into_iter()
        .filter(|entry| !is_harmless(entry))
        .collect())
}

/// A host with two models in an Ollama that listens as told, the first of them shared with everybody.
struct Stage<'lab> {
    beta: Node<'lab>,
    gamma: Node<'lab>,
    ollama: Ollama<'lab>,
    _servers: [LlamaServer<'lab>; 2],
}

fn stage<'lab>(
    lab: &'lab Lab,
    listen: &str,
) -> Result<(e2e::mesh::Coordinator<'lab>, Stage<'lab>)> {
    let (coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
    let (gamma, beta) = nodes.pop().zip(nodes.pop()).context("two nodes")?;
    let tiny = LlamaServer::start(gamma.host, "tiny", 9001)?;
    let other = LlamaServer::start(gamma.host, "other", 9002)?;
    let models = [("tiny", &tiny), ("other", &other)];
    let ollama = Ollama::start(gamma.host, listen, &models, &[])?;
    gamma.ctl_ok(&["share", "on", "--models", "tiny"])?;
    beta.wait_model("tiny", PROMISED)?;
    let stage = Stage {
        beta,
        gamma,
        ollama,
        _servers: [tiny, other],
    };
    Ok((coordinator, stage))
}

#[test]
fn what_is_not_inference_reaches_no_model_server_in_any_spelling() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, stage) = stage(lab, "127.0.0.1:11434")?;
        let body =
            r#"{"model":"tiny","name":"tiny","source":"tiny","destination":"copy","stream":false}"#;
        let mut requests = Vec::new();
        for (method, path) in FORBIDDEN {
            for spelling in spellings(path) {
                for more in [
                    "",
                    "X-HTTP-Method-Override: POST\r\nX-Original-URL: /api/pull\r\nX-Rewrite-URL: /api/pull\r\n",
                ] {
                    requests.push(format!(
                        "{method} {spelling} HTTP/1.1\r\nHost: tiny.proxima\r\nContent-Type: application/json\r\n{more}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                }
            }
        }
        // One request hidden in another, and in ways that two servers may read differently.
        let hidden = format!(
            "POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        for head in [
            format!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
            format!("Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n{hidden}"),
            format!("Content-Length: 4\r\nContent-Length: 0\r\n\r\n{hidden}"),
            format!("Content-Length: +0\r\n\r\n{hidden}"),
            format!("Content-Length: 0\r\n\r\n{hidden}"),
        ] {
            requests.push(format!(
                "POST /api/chat HTTP/1.1\r\nHost: tiny.proxima\r\n{head}"
            ));
        }
        let host = stage.gamma.ipv4()?;
        for target in [
            "ollama.proxima:11434".to_owned(),
            "tiny.proxima:11434".to_owned(),
            "tiny.proxima:80".to_owned(),
            format!("{host}:11434"),
        ] {
            let statuses = raw(&stage.beta, &target, &requests)?;
            for (request, status) in requests.iter().zip(&statuses) {
                let line = request.lines().next().unwrap_or_default();
                // 0: the connection was closed without a word, as with a malformed request line.
                let is_refused = *status == 0 || (400..500).contains(status) || *status == 501;
                ensure!(is_refused, "{target}: {line}: {status}");
            }
        }
        let trespasses = trespasses(&stage.ollama)?;
        ensure!(
            trespasses.is_empty(),
            "{} requests came through: {:?}",
            trespasses.len(),
            trespasses.first()
        );
        let list = Request::get("http://127.0.0.1:11434/api/tags").send(stage.gamma.host)?;
        ensure!(
            list.body.contains("tiny") && list.body.contains("other"),
            "models were deleted: {list:?}"
        );
        // A careless server is there to be reached, or all this would prove nothing.
        raw(&stage.gamma, "127.0.0.1:11434", &requests)?;
        let n_reached = self::trespasses(&stage.ollama)?.len();
        ensure!(
            n_reached > requests.len() / 4,
            "only {n_reached} requests reach a server without a door"
        );
        Ok(())
    })
}

#[test]
fn doubled_and_oddly_cased_keys_reach_no_unshared_model() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, stage) = stage(lab, "127.0.0.1:11434")?;
        let rest = r#""prompt":"hi","input":"hi","max_tokens":5,"options":{"num_predict":5},"stream":false,"messages":[{"role":"user","content":"hi"}]"#;
        let bodies = [
            r#""model":"other""#,
            r#""model":"tiny","Model":"other""#,
            r#""Model":"other","model":"tiny""#,
            r#""model":"tiny","model":"other""#,
            r#""model":"tiny","MODEL":"other","mOdEl":"other""#,
            r#""MODEL":"other""#,
            r#""model":"tiny","mode\u006c":"other""#,
            r#""model":"tiny","name":"other""#,
            r#""model":"","name":"other""#,
            r#""model":" other ""#,
            r#""model":"OTHER""#,
            r#""model":"library/other""#,
            r#""model":"registry.example/library/other:latest""#,
            r#""model":"http://registry.example/library/other""#,
            r#""model":"other:local""#,
            r#""model":"other:latest""#,
            r#""model":["tiny","other"]"#,
            r#""model":{"model":"other"}"#,
            r#""model":"tiny\u0000other""#,
            r#""model":"tiny:cloud""#,
            r#""model":"other-cloud""#,
            r#""model":"tiny","keep_alive":0"#,
        ];
        let routes = [
            "/api/chat",
            "/api/generate",
            "/api/embed",
            "/api/embeddings",
            "/api/show",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
        ];
        let body_of = |inner: &str| format!("{{{inner},{rest}}}");
        let mut requests = Vec::new();
        for route in routes {
            for inner in bodies {
                // As it is, and with a second value behind it.
                for body in [
                    body_of(inner),
                    format!("{} {}", body_of(r#""model":"tiny""#), body_of(inner)),
                ] {
                    requests.push(format!(
                        "POST {route} HTTP/1.1\r\nHost: tiny.proxima\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                }
            }
        }
        // What a check on the bytes as they came does not see.
        for route in ["/v1/chat/completions", "/v1/completions", "/api/chat"] {
            let packed = zstd::encode_all(body_of(r#""model":"other""#).as_bytes(), 3)?;
            let text: String = packed.iter().copied().map(char::from).collect();
            requests.push(format!(
                "POST {route} HTTP/1.1\r\nHost: tiny.proxima\r\nContent-Encoding: zstd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                packed.len()
            ));
        }
        for route in [
            "/v1/models/other",
            "/v1/models/other:latest",
            "/v1/models/library%2Fother",
        ] {
            requests.push(format!(
                "GET {route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ));
        }
        let before = stage.ollama.requests()?.len();
        for target in ["ollama.proxima:11434", "tiny.proxima:11434"] {
            raw(&stage.beta, target, &requests)?;
        }
        // The daemon may look at any model with /api/show; the mesh may run only what is shared.
        let ran: Vec<Value> = stage.ollama.requests()?.split_off(before);
        let is_run = |entry: &&Value| entry["method"] == "POST" && entry["path"] != "/api/show";
        for entry in ran.iter().filter(is_run) {
            ensure!(entry["model"] == "tiny:latest", "{entry}");
            let body = entry["body"].as_str().unwrap_or_default();
            ensure!(
                !body.contains("keep_alive") && !body.to_lowercase().contains("other"),
                "{entry}"
            );
        }
        ensure!(
            ran.iter().filter(is_run).count() > 0,
            "not even the shared model was run"
        );
        let trespasses = trespasses(&stage.ollama)?;
        ensure!(trespasses.is_empty(), "{trespasses:?}");

        for url in ["/api/tags", "/v1/models", "/api/ps"] {
            let list =
                Request::get(&format!("http://tiny.proxima:11434{url}")).send(stage.beta.host)?;
            ensure!(!list.body.contains("other"), "{url}: {list:?}");
        }
        let show = json!({ "model": "tiny" }).to_string();
        let show =
            Request::post("http://tiny.proxima:11434/api/show", &show).send(stage.beta.host)?;
        ensure!(show.status == 200, "{show:?}");
        ensure!(
            !show.body.contains("/usr/share/ollama"),
            "the host's paths are told: {show:?}"
        );
        Ok(())
    })
}

#[test]
fn servers_on_all_addresses_neither_block_the_door_nor_are_reached_around_it() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, stage) = stage(lab, "[::]:11434")?;
        let Stage {
            beta,
            gamma,
            ollama,
            ..
        } = &stage;
        let www = gamma.host.dir().join("www");
        std::fs::create_dir_all(&www)?;
        std::fs::write(www.join("index.html"), "the owner's own page")?;
        let mut web = gamma.host.command(tool::python()?);
        web.args(["-m", "http.server", "80", "--bind", "::", "--directory"])
            .arg(&www);
        let _web = gamma.host.spawn("web", web)?;
        let own = Request::get(&format!("http://{}/", gamma.host.ipv4));
        wait_until("the web server answers its own machine", PROMISED, || {
            ensure!(own.send(gamma.host)?.body.contains("own page"));
            Ok(())
        })?;

        let node = gamma.status()?.node.context("not joined")?;
        let chat = r#"{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
        let pull = r#"{"model":"tiny","stream":false}"#;
        for host in [
            node.ipv4.to_string(),
            format!("[{}]", node.ipv6),
            "tiny.proxima".to_owned(),
        ] {
            for port in [80, 11434] {
                let base = format!("http://{host}:{port}");
                let chat =
                    Request::post(&format!("{base}/v1/chat/completions"), chat).send(beta.host)?;
                ensure!(
                    chat.status == 200 && chat.body.contains("t5"),
                    "{base}: {chat:?}"
                );
                let pull = Request::post(&format!("{base}/api/pull"), pull).send(beta.host)?;
                ensure!((400..500).contains(&pull.status), "{base}: {pull:?}");
                let page = Request::get(&format!("{base}/index.html")).send(beta.host)?;
                ensure!(!page.body.contains("own page"), "{base}: {page:?}");
            }
        }
        let trespasses = trespasses(ollama)?;
        ensure!(trespasses.is_empty(), "{trespasses:?}");
        // With sharing off the door is still what answers.
        gamma.ctl_ok(&["share", "off"])?;
        let n_before = ollama.requests()?.len();
        for port in [80, 11434] {
            let url = format!("http://{}:{port}/api/chat", node.ipv4);
            let answer = Request::post(&url, chat).send(beta.host)?;
            ensure!((400..500).contains(&answer.status), "{answer:?}");
        }
        let chats = ollama.requests()?.split_off(n_before);
        ensure!(
            chats.iter().all(|entry| entry["method"] != "POST"),
            "{chats:?}"
        );
        Ok(())
    })
}

#[test]
fn pictures_reach_the_host_by_every_api() -> Result<()> {
    /// A PNG of one pixel.
    const PICTURE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, stage) = stage(lab, "127.0.0.1:11434")?;
        let url = format!("data:image/png;base64,{PICTURE}");
        let source = json!({ "type": "base64", "media_type": "image/png", "data": PICTURE });
        let user = |content: Value| json!([{ "role": "user", "content": content }]);
        for (path, mut body) in [
            (
                "/api/chat",
                json!({ "messages": [{ "role": "user", "content": "what is it?", "images": [PICTURE] }] }),
            ),
            (
                "/api/generate",
                json!({ "prompt": "what is it?", "images": [PICTURE] }),
            ),
            (
                "/v1/chat/completions",
                json!({ "messages": user(json!([{ "type": "image_url", "image_url": { "url": url } }])) }),
            ),
            (
                "/v1/messages",
                json!({ "max_tokens": 4, "messages": user(json!([{ "type": "image", "source": source }])) }),
            ),
            (
                "/v1/responses",
                json!({ "input": user(json!([{ "type": "input_image", "detail": "auto", "image_url": url }])) }),
            ),
        ] {
            body["model"] = json!("tiny");
            body["stream"] = json!(false);
            let before = stage.ollama.requests()?.len();
            let answer = Request::post(
                &format!("http://ollama.proxima:11434{path}"),
                &body.to_string(),
            )
            .send(stage.beta.host)?;
            // The model has no eyes: what matters is that its server was asked.
            let asked = stage.ollama.requests()?.split_off(before);
            let is_it = |entry: &Value| {
                entry["path"] == path
                    && entry["body"]
                        .as_str()
                        .is_some_and(|body| body.contains(PICTURE))
            };
            ensure!(asked.iter().any(is_it), "{path}: {answer:?} and {asked:?}");
        }
        Ok(())
    })
}

#[test]
fn another_users_node_reaches_models_and_nothing_else() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let coordinator = e2e::mesh::Coordinator::start(lab.host("control")?)?;
        let gamma = Node::join(lab.host("gamma")?, &coordinator.first_key)?;
        let user = coordinator.admin(&["user", "create", "guest"])?;
        ensure_success("user create", &user)?;
        let beta = Node::join(lab.host("beta")?, &coordinator.key(&["--user", "guest"])?)?;
        let _tiny = LlamaServer::start(gamma.host, "tiny", 8080)?;
        gamma.share()?;
        beta.wait_model("tiny", PROMISED)?;
        let mut web = gamma.host.command(tool::python()?);
        web.args(["-m", "http.server", "9999", "--bind", "::", "--directory"])
            .arg(gamma.host.dir());
        let _web = gamma.host.spawn("web", web)?;
        let target = gamma.ipv4()?;
        wait_until("the owner's server is up", PROMISED, || {
            ensure!(can_connect(gamma.host, target.into(), 9999)?);
            Ok(())
        })?;
        e2e::probe::ping(beta.host, target)?;
        ensure!(
            can_connect(beta.host, target.into(), 11434)?,
            "the door is closed"
        );
        for port in [9999, 8080, 22] {
            ensure!(
                !can_connect(beta.host, IpAddr::V4(target), port)?,
                "port {port} is open to another user"
            );
        }
        Ok(())
    })
}
