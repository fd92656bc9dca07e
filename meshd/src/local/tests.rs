//! The control socket over a real Unix socket, with a daemon that only remembers what it was asked.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_proto::control::{ErrorBody, WantRequest, code};
use mesh_proto::local::{
    DnsAnswer, DnsQuery, DnsStatus, Models, NameMode, NetCheck, PingReply, PingRequest,
    PullRequest, PullState, PullStatus, RunState, SetRequest, Settings, ShareRequest, ShareStatus,
    Status, Suggestions, Top, UpRequest, UserspaceMode,
};
use mesh_proto::usage::UsageReport;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

#[derive(Default)]
struct FakeDaemon {
    calls: Mutex<Vec<String>>,
    settings: Settings,
}

impl FakeDaemon {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

fn status() -> Status {
    Status {
        state: RunState::NeedsLogin,
        version: "0.0.0".to_owned(),
        node: None,
        coordinator: None,
        peers: Vec::new(),
        problems: Vec::new(),
    }
}

impl LocalApi for FakeDaemon {
    async fn status(&self, wait: Option<WaitFor>, timeout: Duration) -> Result<Status, LocalError> {
        self.note(format!("status {wait:?} {timeout:?}"));
        Ok(status())
    }

    async fn up(&self, request: UpRequest) -> Result<Status, LocalError> {
        self.note(format!("up {:?}", request.hostname));
        Err(LocalError::new(code::NEEDS_LOGIN, "an auth key is needed"))
    }

    async fn down(&self) -> Result<(), LocalError> {
        self.note("down");
        Ok(())
    }

    async fn logout(&self) -> Result<(), LocalError> {
        self.note("logout");
        Ok(())
    }

    async fn rotate(&self) -> Result<(), LocalError> {
        self.note("rotate");
        Ok(())
    }

    async fn ping(&self, request: PingRequest) -> Result<PingReply, LocalError> {
        self.note(format!("ping {}", request.target));
        Err(LocalError::new(code::TIMEOUT, "no reply"))
    }

    async fn why(&self, request: WhyRequest) -> Result<Why, LocalError> {
        self.note(format!("why {} {}", request.from, request.to));
        Err(LocalError::new(code::NOT_FOUND, "no such node"))
    }

    async fn models(&self) -> Result<Models, LocalError> {
        Ok(Models::default())
    }

    async fn top(&self) -> Result<Top, LocalError> {
        Ok(Top::default())
    }

    async fn pull(&self, request: PullRequest) -> Result<PullStatus, LocalError> {
        self.note(format!("pull {} {}", request.model, request.host));
        Ok(PullStatus::of(&request.model, PullState::Pulling))
    }

    async fn want(&self, request: WantRequest) -> Result<(), LocalError> {
        self.note(format!("want {} {}", request.model, request.is_over));
        Ok(())
    }

    async fn suggestions(&self) -> Result<Suggestions, LocalError> {
        Ok(Suggestions::default())
    }

    async fn share_status(&self) -> Result<ShareStatus, LocalError> {
        Ok(ShareStatus::default())
    }

    async fn usage(&self, n_days: u32) -> Result<UsageReport, LocalError> {
        self.note(format!("usage {n_days}"));
        Ok(UsageReport::default())
    }

    async fn share(&self, request: ShareRequest) -> Result<ShareStatus, LocalError> {
        self.note(format!("share {:?}", request.is_on));
        Ok(ShareStatus::default())
    }

    async fn settings(&self) -> Result<Settings, LocalError> {
        Ok(self.settings.clone())
    }

    async fn set(&self, request: SetRequest) -> Result<Settings, LocalError> {
        apply_settings(&self.settings, &request)
    }

    async fn netcheck(&self) -> Result<NetCheck, LocalError> {
        Err(LocalError::new(code::NEEDS_LOGIN, "the node is not up"))
    }

    async fn dns(&self) -> Result<DnsStatus, LocalError> {
        Err(LocalError::new(code::UNAVAILABLE, "no names yet"))
    }

    async fn dns_query(&self, query: DnsQuery) -> Result<DnsAnswer, LocalError> {
        Ok(DnsAnswer {
            name: query.name,
            kind: query.kind,
            code: "NOERROR".to_owned(),
            answers: Vec::new(),
            additionals: Vec::new(),
        })
    }

    async fn metrics(&self) -> Result<String, LocalError> {
        Ok("meshd_up 1\n".to_owned())
    }

    async fn bugreport(&self) -> Result<serde_json::Value, LocalError> {
        Ok(serde_json::json!({ "state": "needs_login" }))
    }
}

struct Running {
    dir: TempDir,
    daemon: Arc<FakeDaemon>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users must be able to reach the socket through the directory.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = LocalServer::bind(dir.path().join("run/meshd.sock")).unwrap();
        let daemon = Arc::new(FakeDaemon {
            settings,
            ..FakeDaemon::default()
        });
        let cancel = CancellationToken::new();
        let task = tokio::spawn(server.run(Arc::clone(&daemon), cancel.clone()));
        Self {
            dir,
            daemon,
            cancel,
            task,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("run/meshd.sock")
    }

    async fn raw(&self, request: &str) -> (u16, String) {
        raw(&self.path(), request).await
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let len = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n\r\n{body}"
        ))
        .await
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

async fn raw(path: &Path, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may refuse and close before it has read everything.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

fn code_of(body: &str) -> String {
    serde_json::from_str::<ErrorBody>(body).unwrap().error.code
}

#[tokio::test]
async fn calls_reach_the_daemon_and_its_errors_come_back_as_statuses() {
    let running = Running::start(Settings::default());
    let (status, body) = running
        .call("GET", "/v1/status?wait=ready&timeout_ms=1500", "")
        .await;
    assert_eq!(status, 200);
    assert_eq!(
        serde_json::from_str::<Status>(&body).unwrap().state,
        RunState::NeedsLogin
    );
    let (status, body) = running
        .call("POST", "/v1/up", r#"{"hostname":"gpu1"}"#)
        .await;
    assert_eq!((status, code_of(&body).as_str()), (409, "needs_login"));
    assert_eq!(
        running.call("POST", "/v1/down", "").await,
        (204, String::new())
    );
    assert_eq!(running.call("POST", "/v1/logout", "").await.0, 204);
    assert_eq!(running.call("POST", "/v1/rotate", "").await.0, 204);
    assert_eq!(
        running
            .call("POST", "/v1/ping", r#"{"target":"gpu1"}"#)
            .await
            .0,
        504
    );
    assert_eq!(
        running
            .call("POST", "/v1/share", r#"{"is_on":true}"#)
            .await
            .0,
        200
    );
    assert_eq!(running.call("GET", "/v1/dns", "").await.0, 503);
    assert_eq!(
        running.call("GET", "/v1/metrics", "").await,
        (200, "meshd_up 1\n".to_owned())
    );
    for path in ["/v1/models", "/v1/share", "/v1/settings", "/v1/bugreport"] {
        assert_eq!(running.call("GET", path, "").await.0, 200, "{path}");
    }
    assert_eq!(
        running.daemon.calls(),
        [
            "status Some(Ready) 1.5s",
            "up Some(\"gpu1\")",
            "down",
            "logout",
            "rotate",
            "ping gpu1",
            "share Some(true)",
        ]
    );
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_reaches_nothing() {
    let running = Running::start(Settings::default());
    let cases = [
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/v1/down", "", 404),
        ("DELETE", "/v1/status", "", 404),
        ("POST", "/v1/up", "{", 400),
        ("POST", "/v1/up", r#"{"unknown":1}"#, 400),
        ("GET", "/v1/status?wait=sunshine", "", 400),
        ("GET", "/v1/status?timeout_ms=-1", "", 400),
        (
            "POST",
            "/v1/settings",
            r#"{"values":{"names":"best"}}"#,
            400,
        ),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = running.call(method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
    }
    let long = format!(r#"{{"hostname":"{}"}}"#, "a".repeat(65 * 1024));
    assert_eq!(running.call("POST", "/v1/up", &long).await.0, 400);
    assert!(running.daemon.calls().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn web_pages_and_foreign_hosts_are_refused() {
    let running = Running::start(Settings::default());
    let cases = [
        ("host: localhost\r\n", 200),
        ("host:\r\n", 200),
        ("", 200),
        ("host: localhost\r\norigin: http://localhost\r\n", 403),
        ("host: localhost\r\nOrigin: null\r\n", 403),
        ("host: localhost\r\nreferer: http://a.example/\r\n", 403),
        ("host: a.example\r\n", 403),
        ("host: localhost:80\r\n", 403),
        ("host: localhost\r\nhost: a.example\r\n", 403),
    ];
    for (headers, expected) in cases {
        let (status, body) = running
            .raw(&format!("GET /v1/models HTTP/1.1\r\n{headers}\r\n"))
            .await;
        assert_eq!(status, expected, "{headers:?}: {body}");
    }
    running.stop().await;
}

#[tokio::test]
async fn the_socket_has_its_mode_and_goes_away_with_the_daemon() {
    let running = Running::start(Settings::default());
    let path = running.path();
    let found = std::fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    let dir = std::fs::metadata(path.parent().unwrap()).unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o755);
    running.cancel.cancel();
    running.task.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket_away() {
    let running = Running::start(Settings::default());
    let err = LocalServer::bind(running.path()).unwrap_err();
    assert!(matches!(err, BindError::AlreadyRunning { .. }), "{err}");
    assert!(err.to_string().contains("already running"));
    assert_eq!(running.call("GET", "/v1/models", "").await.0, 200);
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_program_that_answers_keeps_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meshd.sock");
    let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(
        LocalServer::bind(&path),
        Err(BindError::AlreadyRunning { .. })
    ));
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_any_other_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meshd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(LocalServer::bind(&path).unwrap());

    std::fs::write(&path, "letters").unwrap();
    assert!(matches!(
        LocalServer::bind(&path),
        Err(BindError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "letters");
}

#[tokio::test]
async fn calls_beyond_the_cap_are_told_so() {
    let running = Running::start(Settings::default());
    let mut idle = Vec::new();
    for _ in 0..16 {
        let mut stream = UnixStream::connect(running.path()).await.unwrap();
        stream
            .write_all(b"GET /v1/models HTTP/1.1\r\n")
            .await
            .unwrap();
        idle.push(stream);
    }
    let (status, body) = running.call("GET", "/v1/models", "").await;
    assert_eq!((status, code_of(&body).as_str()), (503, "unavailable"));
    idle.pop();
    // The place is free again once the server has seen the hang-up; each try is one round trip.
    while running.call("GET", "/v1/models", "").await.0 != 200 {
        tokio::task::yield_now().await;
    }
    running.stop().await;
}

/// A call by another user, in a child process; `None` where this test may not change users.
async fn call_as(uid: u32, path: &Path, method: &str, route: &str) -> Option<(u16, String)> {
    let whoami = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").ok()?);
    let gid = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(path).ok()?);
    if whoami != 0 {
        return None;
    }
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .arg("--clear-groups");
    command.args([
        "curl",
        "-s",
        "-w",
        "\n%{http_code}",
        "-X",
        method,
        "--unix-socket",
    ]);
    command.arg(path).arg(format!("http://localhost{route}"));
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (body, status) = text.rsplit_once('\n')?;
    Some((status.parse().ok()?, body.to_owned()))
}

#[tokio::test]
async fn the_group_reads_and_only_root_and_the_operator_write() {
    let running = Running::start(Settings {
        operator_uid: Some(65_533),
        ..Settings::default()
    });
    let Some((status, _)) = call_as(65_534, &running.path(), "GET", "/v1/models").await else {
        assert_ne!(
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()),
            0,
            "as root this test needs setpriv and curl"
        );
        return running.stop().await;
    };
    assert_eq!(status, 200);
    let (status, body) = call_as(65_534, &running.path(), "POST", "/v1/down")
        .await
        .unwrap();
    assert_eq!((status, code_of(&body).as_str()), (403, "forbidden"));
    assert!(running.daemon.calls().is_empty());
    let (status, _) = call_as(65_533, &running.path(), "POST", "/v1/down")
        .await
        .unwrap();
    assert_eq!(status, 204);
    assert_eq!(running.daemon.calls(), ["down"]);
    running.stop().await;
}

#[test]
fn settings_are_read_whole_or_not_at_all() {
    let request = |pairs: &[(&str, &str)]| SetRequest {
        values: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let current = Settings::default();
    let changed = apply_settings(
        &current,
        &request(&[
            ("names", "gateway"),
            ("dns", "off"),
            ("operator_uid", "1000"),
        ]),
    )
    .unwrap();
    assert_eq!(
        changed,
        Settings {
            names: NameMode::Gateway,
            dns: false,
            operator_uid: Some(1000),
            ..Settings::default()
        }
    );
    let moved = [
        ("userspace", "on"),
        ("socks5", "1080"),
        ("http-proxy", "off"),
        ("gateway", "[::1]:11435"),
    ];
    let moved = apply_settings(&current, &request(&moved)).unwrap();
    assert_eq!(moved.userspace, UserspaceMode::On);
    assert_eq!(moved.socks5, Some("127.0.0.1:1080".parse().unwrap()));
    assert_eq!(moved.http_proxy, None);
    assert_eq!(moved.gateway, "[::1]:11435".parse().unwrap());
    let changed = apply_settings(&changed, &request(&[("operator", "none")])).unwrap();
    assert_eq!(changed.operator_uid, None);
    for pairs in [
        &[("dns", "off"), ("names", "best")][..],
        &[("dns", "maybe")],
        &[("operator", "anna")],
        &[("colour", "red")],
        &[("userspace", "maybe")],
        &[("socks5", "0.0.0.0:1055")],
        &[("socks5", "192.168.1.2:1055")],
        &[("http-proxy", "0")],
        &[("gateway", "off")],
        &[("gateway", "somewhere")],
        &[("socks5", "127.0.0.1:1056")],
    ] {
        let err = apply_settings(&current, &request(pairs)).unwrap_err();
        assert_eq!(err.code, code::BAD_REQUEST, "{pairs:?}");
    }
}

#[test]
fn codes_from_the_coordinator_pass_and_strangers_become_internal() {
    for known in CODES {
        assert_eq!(LocalError::from_wire(known, "x").code, known);
    }
    assert_eq!(LocalError::from_wire("new_code", "x").code, code::INTERNAL);
}
