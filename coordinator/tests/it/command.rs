//! The program as a shell sees it: exit codes and what it says.

use std::path::Path;
use std::process::{Command, Output};

use crate::client::Mesh;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coordinator"))
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn failures_have_their_exit_codes_and_name_the_next_command() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("none");
    let output = run(&["health", "--state-dir", nowhere.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said(&output).contains("coordinator serve"),
        "{}",
        said(&output)
    );
    assert_eq!(run(&["node", "frobnicate"]).status.code(), Some(2));

    let config = dir.path().join("c.toml");
    std::fs::write(&config, "\n\nsufix = 'x'\n").unwrap();
    let output = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("line 3") && said(&output).contains("sufix"),
        "{}",
        said(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_commands_work_on_the_socket() {
    let mesh = Mesh::start().await;
    mesh.join(1).await;
    let dir = mesh.dir.path().join("state");
    let ask = |arguments: &[&str]| {
        let dir: &Path = &dir;
        run(&[arguments, &["--state-dir", dir.to_str().unwrap()]].concat())
    };
    let created = ask(&["key", "create", "--reusable", "--ttl", "2h"]);
    assert!(created.status.success(), "{}", said(&created));
    let key = String::from_utf8(created.stdout).unwrap();
    key.trim().parse::<mesh_proto::auth_key::AuthKey>().unwrap();

    let listed = ask(&["node", "list", "--json"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.starts_with("{\n  \"schema_version\": 1,"), "{text}");
    let renamed = ask(&["node", "rename", "host1", "gpu"]);
    assert!(renamed.status.success());
    let shown = ask(&["node", "show", "gpu"]);
    assert!(
        String::from_utf8(shown.stdout)
            .unwrap()
            .starts_with("name         gpu\n")
    );
    let missing = ask(&["node", "delete", "host1"]);
    assert_eq!(missing.status.code(), Some(5));
    assert!(
        said(&missing).contains("coordinator node list"),
        "{}",
        said(&missing)
    );
    let deleted = ask(&["node", "delete", "gpu", "--json"]);
    assert_eq!(
        String::from_utf8(deleted.stdout).unwrap(),
        "{\n  \"schema_version\": 1\n}\n"
    );
    let health = ask(&["health"]);
    assert!(
        String::from_utf8(health.stdout)
            .unwrap()
            .starts_with("ok: 0 of 0 nodes online")
    );
}
