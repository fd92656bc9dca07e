//! Joining: auth keys from everywhere, a daemon that must be started first, and what a coordinator may refuse.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use mesh_proto::auth_key::AuthKey;
use mesh_proto::key::CoordinatorPrivateKey;
use mesh_proto::local::*;

use crate::fake::{Fake, Meshctl, status_of, status_running};

fn auth_key() -> String {
    let coordinator = CoordinatorPrivateKey::from_bytes(&[3; 32]).public();
    AuthKey::new(
        &coordinator,
        [4; 32],
        [5; 6],
        vec!["https://192.0.2.1:7443".to_owned()],
    )
    .reveal()
}

fn joining() -> Fake {
    Fake::running()
        .json("POST", PATH_UP, &status_running())
        .start()
}

fn sent_key(fake: &Fake) -> String {
    let asked = fake.asked();
    let body = asked.last().unwrap().strip_prefix("POST /v1/up ").unwrap();
    serde_json::from_str::<UpRequest>(body)
        .unwrap()
        .auth_key
        .unwrap()
}

#[test]
fn up_tells_name_addresses_and_what_next() {
    let fake = joining();
    let shown = fake
        .meshctl(&["up", "--auth-key", &auth_key()])
        .replace(&auth_key(), "[KEY]");
    assert_snapshot!("up", shown);
    assert_eq!(sent_key(&fake), auth_key());
    let json = fake.meshctl(&["up", "--json", "--hostname", "laptop", "--timeout", "2s"]);
    assert!(
        json.contains("[exit 0]") && json.contains(r#""state": "running""#),
        "{json}"
    );
    assert_eq!(
        fake.asked().last().unwrap(),
        r#"POST /v1/up {"auth_key":null,"hostname":"laptop","timeout_ms":2000,"userspace":false}"#
    );
}

#[test]
fn the_auth_key_comes_from_file_standard_input_or_environment() {
    let fake = joining();
    let path = fake.dir.path().join("key");
    std::fs::write(&path, format!("  {}\n", auth_key())).unwrap();
    let from_file = fake.meshctl(&["up", "--auth-key", &format!("file:{}", path.display())]);
    assert!(from_file.contains("[exit 0]"), "{from_file}");
    assert_eq!(sent_key(&fake), auth_key());

    let from_stdin = fake.meshctl_with(&["up", "--auth-key", "-"], &format!("{}\n", auth_key()));
    assert!(from_stdin.contains("[exit 0]"), "{from_stdin}");
    assert_eq!(sent_key(&fake), auth_key());

    let from_env = Meshctl::new(&fake.socket())
        .env("PROXIMA_AUTH_KEY", &auth_key())
        .run(&["up"]);
    assert!(from_env.contains("[exit 0]"), "{from_env}");
    assert_eq!(sent_key(&fake), auth_key());
}

#[test]
fn a_wrong_auth_key_is_explained_before_anything_is_sent() {
    let fake = joining();
    let key = auth_key();
    let cut = &key[..key.len() - 3];
    let mut all = fake
        .meshctl(&["up", "--auth-key", cut])
        .replace(cut, "[KEY]");
    all.push_str(&fake.meshctl(&["up", "--auth-key", "tskey-auth-123"]));
    all.push_str(&fake.meshctl(&["up", "--auth-key", "file:/no/such/file"]));
    all.push_str(&fake.meshctl_with(&["up", "--auth-key", "-"], "\n"));
    assert_snapshot!("up_wrong_key", all);
    assert!(fake.asked().is_empty());
}

#[test]
fn no_error_repeats_the_key() {
    let fake = Fake::running()
        .error(
            "POST",
            PATH_UP,
            401,
            "auth_key_spent",
            "this auth key was for one use, and was used",
        )
        .start();
    let key = auth_key();
    let text = fake.meshctl(&["up", "-v", "--auth-key", &key]);
    assert_eq!(
        text.matches(&key).count(),
        1,
        "only the echoed command line of this test holds it: {text}"
    );
    assert_snapshot!("up_spent_key", text.replace(&key, "[KEY]"));
}

#[test]
fn up_says_what_is_missing() {
    let fake = Fake::running()
        .error(
            "POST",
            PATH_UP,
            409,
            "needs_login",
            "this machine is in no mesh yet: an auth key is needed",
        )
        .start();
    assert_snapshot!("up_needs_login", fake.both(&["up"]));
    let fake = Fake::running()
        .error(
            "POST",
            PATH_UP,
            504,
            "timeout",
            "the coordinator https://192.0.2.1:7443 does not answer",
        )
        .start();
    assert_snapshot!("up_timeout", fake.meshctl(&["up", "--timeout", "3s"]));
    let fake = Fake::bare()
        .json("POST", PATH_UP, &status_of(RunState::Starting))
        .start();
    assert_snapshot!("up_starting", fake.meshctl(&["up"]));
}

/// A copy of `meshctl` with a `meshd` of the test's making beside it.
fn with_daemon(dir: &Path, script: &str) -> PathBuf {
    let program = dir.join("meshctl");
    std::fs::copy(env!("CARGO_BIN_EXE_meshctl"), &program).unwrap();
    let daemon = dir.join("meshd");
    std::fs::write(&daemon, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&daemon, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn up_starts_a_daemon_that_is_not_running_and_says_so() {
    let fake = Fake::running()
        .json("POST", PATH_UP, &status_running())
        .hidden()
        .start();
    let dir = fake.dir.path();
    let program = with_daemon(
        dir,
        "echo started \"$@\"\nmv \"${0%/*}/hidden.sock\" \"$2\"",
    );
    let text = Meshctl::new(&fake.socket())
        .program(program)
        .env("MESHD_STATE_DIR", &dir.join("state").display().to_string())
        .run(&["up"]);
    let text = text.replace(&dir.display().to_string(), "[DIR]");
    assert_snapshot!("up_starts_daemon", text);
    let log = std::fs::read_to_string(dir.join("state/meshd.log")).unwrap();
    assert_eq!(
        log,
        format!(
            "started --socket {} --state-dir {}\n",
            fake.socket().display(),
            dir.join("state").display()
        )
    );
}

#[test]
fn up_shows_why_a_daemon_did_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_daemon(
        dir.path(),
        "echo 'meshd: cannot open /dev/net/tun' >&2\nexit 1",
    );
    let text = Meshctl::new(&dir.path().join("meshd.sock"))
        .program(program)
        .env(
            "MESHD_STATE_DIR",
            &dir.path().join("state").display().to_string(),
        )
        .run(&["up"]);
    assert_snapshot!(
        "up_daemon_fails",
        text.replace(&dir.path().display().to_string(), "[DIR]")
    );
}

#[test]
fn up_without_any_daemon_to_start_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_daemon(dir.path(), "");
    std::fs::remove_file(dir.path().join("meshd")).unwrap();
    let text = Meshctl::new(&dir.path().join("meshd.sock"))
        .program(program)
        .env("PATH", "/nonexistent")
        .run(&["up"]);
    assert_snapshot!("up_no_daemon", text);
}
