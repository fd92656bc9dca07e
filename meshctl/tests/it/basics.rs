//! What holds for every verb: exit codes, errors, closed pipes, version, completions, the manual.

use std::process::{Command, Stdio};

use insta::assert_snapshot;
use mesh_proto::local::*;

use crate::fake::{Fake, Meshctl, status_of};

#[test]
fn every_verb_says_that_the_daemon_is_not_running() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("meshd.sock");
    let run = |args: &[&str]| {
        let text = Meshctl::new(&socket).run(args);
        text.replace(&dir.path().display().to_string(), "[DIR]")
    };
    assert_snapshot!("not_running", run(&["status"]));
    assert_snapshot!("not_running_json", run(&["status", "--json"]));
    let verbs: [&[&str]; 12] = [
        &["down"],
        &["logout"],
        &["rotate"],
        &["ping", "gpu1"],
        &["models"],
        &["run", "llama3.2", "hi"],
        &["share", "on"],
        &["set"],
        &["dns"],
        &["metrics"],
        &["bugreport"],
        &["wait", "--timeout", "10ms"],
    ];
    for verb in verbs {
        let text = run(verb);
        assert!(text.contains("[exit 3]"), "{text}");
        assert!(text.contains("the daemon meshd is not running"), "{text}");
        assert!(!text.contains("Usage:"), "{text}");
    }
}

#[test]
fn wrong_usage_is_exit_two() {
    let fake = Fake::running().start();
    for args in [
        &["sideways"][..],
        &["ping"],
        &["status", "--check", "sunny"],
        &["wait", "--timeout", "soon"],
        &["ping", "gpu1", "-c", "0"],
        &[],
    ] {
        let text = fake.meshctl(args);
        assert!(text.contains("[exit 2]"), "{text}");
    }
}

#[test]
fn switching_off_leaving_and_rotating_say_what_was_done() {
    let fake = Fake::running()
        .done(PATH_DOWN)
        .done(PATH_LOGOUT)
        .done(PATH_ROTATE)
        .start();
    assert_snapshot!("down", fake.both(&["down"]));
    assert_snapshot!("logout", fake.both(&["logout"]));
    assert_snapshot!("rotate", fake.both(&["rotate"]));
}

#[test]
fn one_without_rights_learns_which_command_helps() {
    let message = "the user with uid 1000 may look but not change anything: use sudo, or let an administrator run \
                   `meshctl set operator=1000` once";
    let fake = Fake::running()
        .error("POST", PATH_DOWN, 403, "forbidden", message)
        .start();
    assert_snapshot!("forbidden", fake.both(&["down"]));
}

#[test]
fn a_daemon_of_another_kind_is_named_as_the_reason() {
    let fake = Fake::bare()
        .json(
            "GET",
            PATH_STATUS,
            &serde_json::json!({ "state": "dancing" }),
        )
        .start();
    assert_snapshot!("not_understood", fake.meshctl(&["status"]));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let fake = Fake::running().start();
    for args in [
        &["status"][..],
        &["completions", "bash"],
        &["status", "--json"],
        &["version"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(args)
            .env_clear()
            .env("MESHD_SOCKET", fake.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !stderr.contains("panicked") && !stderr.contains("error"),
            "{args:?}: {stderr}"
        );
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn colours_reach_no_pipe() {
    let fake = Fake::running().start();
    let text = fake.meshctl(&["ping", "nobody"]);
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn versions_of_both_programs_are_shown() {
    let fake = Fake::bare()
        .json("GET", PATH_STATUS, &status_of(RunState::Stopped))
        .start();
    assert_snapshot!("version", fake.both(&["version"]));
    let dir = tempfile::tempdir().unwrap();
    let alone = Meshctl::new(&dir.path().join("none.sock")).run(&["version"]);
    assert_snapshot!("version_without_daemon", alone);
}

#[test]
fn completions_and_manual_are_made_for_every_verb() {
    let fake = Fake::running().start();
    for shell in ["bash", "zsh", "fish"] {
        let script = fake.meshctl(&["completions", shell]);
        assert!(script.contains("[exit 0]"));
        for verb in ["up", "status", "share", "models"] {
            assert!(script.contains(verb), "{shell} {verb}");
        }
    }
    let pages = fake.dir.path().join("man");
    let text = fake.meshctl(&["man", "-o", &pages.display().to_string()]);
    assert!(text.contains("[exit 0]"), "{text}");
    for page in ["meshctl.1", "meshctl-up.1", "meshctl-share-on.1"] {
        assert!(
            std::fs::read_to_string(pages.join(page))
                .unwrap()
                .contains(".TH"),
            "{page}"
        );
    }
    assert!(!pages.join("meshctl-man.1").exists());
}

#[test]
fn help_shows_the_verbs_and_the_exit_codes() {
    let fake = Fake::running().start();
    assert_snapshot!(
        "help",
        fake.meshctl(&["--help"])
            .replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
    );
}

#[test]
fn metrics_pass_through_and_become_numbers_for_programs() {
    let fake = Fake::running()
        .text(PATH_METRICS, "# HELP meshd_peers peers\nmeshd_peers 3\nmeshd_bytes_total{direction=\"rx\"} 12.5\nmeshd_odd NaN\n")
        .start();
    assert_snapshot!("metrics", fake.both(&["metrics"]));
}

#[test]
fn a_bug_report_is_a_private_file_or_standard_output() {
    use std::os::unix::fs::PermissionsExt as _;
    let fake = Fake::running()
        .json(
            "GET",
            PATH_BUGREPORT,
            &serde_json::json!({ "state": "running" }),
        )
        .start();
    let path = fake.dir.path().join("report.json");
    assert_snapshot!(
        "bugreport",
        fake.meshctl(&["bugreport", "-o", &path.display().to_string()])
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\n"));
    assert_snapshot!("bugreport_stdout", fake.meshctl(&["bugreport", "-o", "-"]));
    assert_snapshot!("bugreport_json", fake.meshctl(&["bugreport", "--json"]));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    fake.meshctl(&["bugreport", "-a", "-o", &path.display().to_string()]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "one that was there stayed open to others"
    );
    let nowhere = fake.dir.path().join("no/such/dir/report.json");
    let text = fake.meshctl(&["bugreport", "-o", &nowhere.display().to_string()]);
    assert!(
        text.contains("[exit 1]") && text.contains("cannot write"),
        "{text}"
    );
}
