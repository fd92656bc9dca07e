//! Sharing this machine's models.

use insta::assert_snapshot;
use mesh_proto::door::*;
use mesh_proto::local::*;
use mesh_proto::share::{Audience, BackendApi, Gpu, HostOffers, Offer, PullPolicy};

use crate::fake::Fake;

fn offer() -> Offer {
    Offer {
        size_bytes: 2_019_393_189,
        family: "llama".to_owned(),
        parameter_size: "3.2B".to_owned(),
        quantization: "Q4_K_M".to_owned(),
        context_length: 131_072,
        capabilities: vec!["completion".to_owned()],
        is_loaded: true,
        ..Offer::new("llama3.2:latest", BackendApi::Ollama)
    }
}

fn sharing() -> ShareStatus {
    ShareStatus {
        pulls: PullPolicy::default(),
        is_on: true,
        models: vec!["llama3*".to_owned()],
        offers: HostOffers {
            models: vec![offer().into()],
            gpus: Vec::new(),
            audience: Audience::Users(vec!["bob".parse().unwrap()]),
            n_slots: 2,
        },
        backends: vec![
            BackendStatus {
                url: "http://127.0.0.1:11434".to_owned(),
                api: BackendApi::Ollama,
                n_models: 3,
                error: None,
                warning: Some("Ollama listens on all addresses: everybody in your network reaches it around the mesh; to mend it, set OLLAMA_HOST=127.0.0.1 and restart it".to_owned()),
            },
            BackendStatus {
                url: "http://127.0.0.1:8080".to_owned(),
                api: BackendApi::OpenAi,
                n_models: 0,
                error: Some("connection refused".to_owned()),
                warning: None,
            },
        ],
        n_active: 1,
        n_queued: 0,
        gpus: vec![Gpu {
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            memory_total_bytes: Some(25_757_220_864),
            memory_used_bytes: Some(4_294_967_296),
            utilization_percent: Some(37),
            ..Gpu::default()
        }],
        door: DoorStatus::default(),
    }
}

fn limit(who: &str, models: &str) -> Limit {
    Limit {
        who: who.parse().unwrap(),
        models: models.to_owned(),
        concurrent: None,
        per_minute: None,
        tokens_per_day: None,
    }
}

#[test]
fn what_guests_are_granted_is_shown() {
    let policy = DoorPolicy {
        limits: vec![
            Limit {
                concurrent: Some(3),
                ..limit("all", "llama3.3:70b")
            },
            Limit {
                concurrent: Some(2),
                per_minute: Some(30),
                tokens_per_day: Some(200_000),
                ..limit("each", "*")
            },
            Limit {
                tokens_per_day: Some(1_000_000),
                ..limit("user:bob", "*")
            },
        ],
        quiet: vec![
            "22:00-07:00".parse().unwrap(),
            "sat,sun 00:00-24:00".parse().unwrap(),
        ],
        pauses_on_gpu_use: true,
        caps: Caps {
            output_tokens: Some(2_048),
            images: Some(1),
            ..Caps::default()
        },
    };
    let guest = |guest: &str, n_active, n_waiting, position| QueueStatus {
        guest: guest.to_owned(),
        n_active,
        n_waiting,
        position,
    };
    let status = ShareStatus {
        n_active: 2,
        n_queued: 3,
        door: DoorStatus {
            policy,
            closed: Some(Closed::GpuInUse),
            queue: vec![guest("owner", 1, 1, Some(1)), guest("bob", 1, 2, Some(2))],
        },
        ..sharing()
    };
    let fake = Fake::running().json("GET", PATH_SHARE, &status).start();
    assert_snapshot!("share_door", fake.both(&["share"]));
}

#[test]
fn sharing_shows_what_with_whom_and_what_to_look_at() {
    let fake = Fake::running()
        .json("GET", PATH_SHARE, &sharing())
        .json("POST", PATH_SHARE, &sharing())
        .start();
    assert_snapshot!("share_on", fake.both(&["share", "on"]));
    assert_eq!(
        fake.asked()[0],
        r#"POST /v1/share {"is_on":true,"models":null,"audience":null,"n_slots":null,"backends":null}"#
    );
    let status = fake.meshctl(&["share"]);
    assert_eq!(
        status.lines().skip(1).collect::<Vec<_>>(),
        fake.meshctl(&["share", "status"])
            .lines()
            .skip(1)
            .collect::<Vec<_>>()
    );
}

#[test]
fn nothing_shared_says_so() {
    let off = ShareStatus::default();
    let fake = Fake::running()
        .json("GET", PATH_SHARE, &off)
        .json("POST", PATH_SHARE, &off)
        .start();
    assert_snapshot!("share_off", fake.both(&["share", "off"]));
    let empty = ShareStatus {
        is_on: true,
        ..ShareStatus::default()
    };
    let fake = Fake::running().json("POST", PATH_SHARE, &empty).start();
    assert_snapshot!("share_nothing_found", fake.meshctl(&["share", "on"]));
}

#[test]
fn options_become_one_request() {
    let fake = Fake::running().json("POST", PATH_SHARE, &sharing()).start();
    let cases: [(&[&str], &str); 8] = [
        (
            &[
                "share",
                "limit",
                "each",
                "--concurrent",
                "2",
                "--per-minute",
                "30",
                "--tokens-per-day",
                "200000",
            ],
            r#"{"is_on":null,"models":null,"audience":null,"n_slots":null,"backends":null,"door":{"limit":{"who":"each","models":"*","concurrent":2,"per_minute":30,"tokens_per_day":200000}}}"#,
        ),
        (
            &[
                "share",
                "limit",
                "user:anna",
                "--models",
                "llama3*",
                "--none",
            ],
            r#"{"is_on":null,"models":null,"audience":null,"n_slots":null,"backends":null,"door":{"limit":{"who":"user:anna","models":"llama3*"}}}"#,
        ),
        (
            &[
                "share",
                "set",
                "--quiet",
                "22:00-07:00;mon-tue 09:00-10:00",
                "--pause-on-gpu-use",
                "on",
                "--max-output",
                "2048",
                "--max-body",
                "0",
            ],
            r#"{"is_on":null,"models":null,"audience":null,"n_slots":null,"backends":null,"door":{"quiet":["22:00-07:00","mon,tue 09:00-10:00"],"pauses_on_gpu_use":true,"caps":{"output_tokens":2048,"body_mib":0}}}"#,
        ),
        (
            &["share", "set", "--quiet", "none"],
            r#"{"is_on":null,"models":null,"audience":null,"n_slots":null,"backends":null,"door":{"quiet":[]}}"#,
        ),
        (
            &[
                "share",
                "set",
                "--models",
                "llama3*,qwen3:8b",
                "--audience",
                "users:anna,bob",
                "--slots",
                "4",
            ],
            r#"{"is_on":null,"models":["llama3*","qwen3:8b"],"audience":{"users":["anna","bob"]},"n_slots":4,"backends":null}"#,
        ),
        (
            &[
                "share",
                "set",
                "--models",
                "all",
                "--audience",
                "mine",
                "--backend",
                "auto",
            ],
            r#"{"is_on":null,"models":[],"audience":"mine","n_slots":null,"backends":[]}"#,
        ),
        (
            &[
                "share",
                "on",
                "--backend",
                "http://127.0.0.1:8080",
                "--backend",
                "http://127.0.0.1:8000",
            ],
            r#"{"is_on":true,"models":null,"audience":null,"n_slots":null,"backends":["http://127.0.0.1:8080","http://127.0.0.1:8000"]}"#,
        ),
        (
            &["share", "off"],
            r#"{"is_on":false,"models":null,"audience":null,"n_slots":null,"backends":null}"#,
        ),
    ];
    for (args, expected) in cases {
        let text = fake.meshctl(args);
        assert!(text.contains("[exit 0]"), "{text}");
        assert_eq!(
            fake.asked().last().unwrap(),
            &format!("POST /v1/share {expected}")
        );
    }
}

#[test]
fn wrong_options_are_caught_before_they_are_sent() {
    let fake = Fake::running().start();
    let mut all = String::new();
    for args in [
        &["share", "set"][..],
        &["share", "set", "--audience", "friends"],
        &["share", "set", "--audience", "users:An na"],
        &["share", "set", "--backend", "127.0.0.1:8080"],
        &["share", "set", "--quiet", "22-7"],
        &["share", "limit", "anna", "--concurrent", "2"],
        &["share", "limit", "each"],
        &["share", "limit", "each", "--none", "--per-minute", "2"],
    ] {
        all.push_str(&fake.meshctl(args));
    }
    assert_snapshot!("share_wrong", all);
    assert!(fake.asked().is_empty());
}

#[test]
fn suggestions_tell_what_the_mesh_would_like() {
    let model = |model: &str, n_users, is_here, is_shared| Suggestion {
        model: model.to_owned(),
        n_users,
        asked_at_ms: 0,
        n_hosts: usize::from(is_shared),
        is_here,
        is_shared,
    };
    let wanted = Suggestions {
        models: vec![
            model("qwen3:8b", 3, false, false),
            model("llama3.2", 1, true, false),
            model("tiny", 1, true, true),
        ],
    };
    let fake = Fake::running().json("GET", PATH_WANTS, &wanted).start();
    let said = fake.meshctl(&["share", "suggestions"]);
    for words in [
        "qwen3:8b  3 users",
        "does not have it",
        "has it, does not share it",
        "shares it",
        "days ago",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_snapshot!(
        "share_suggestions_json",
        fake.meshctl(&["share", "suggestions", "--json"])
    );
    let nobody = Fake::running()
        .json("GET", PATH_WANTS, &Suggestions::default())
        .start();
    assert_snapshot!(
        "share_suggestions_none",
        nobody.both(&["share", "suggestions"])
    );
}

#[test]
fn pulls_are_granted_to_users_within_a_budget() {
    let status = ShareStatus {
        pulls: PullPolicy {
            users: vec!["anna".parse().unwrap(), "bob".parse().unwrap()],
            budget_bytes: 50 << 30,
        },
        ..sharing()
    };
    let fake = Fake::running().json("POST", PATH_SHARE, &status).start();
    let set = |args: &[&str]| fake.meshctl(&[&["share", "set"], args].concat());
    let said = set(&["--pulls", "users:anna,bob", "--pull-budget", "50GiB"]);
    assert!(
        said.contains("Pulls:     by anna, bob, 50.0 GiB of models at most"),
        "{said}"
    );
    assert!(
        fake.asked()
            .last()
            .unwrap()
            .contains(r#""pulls":{"users":["anna","bob"],"budget_bytes":53687091200}"#),
        "{:?}",
        fake.asked()
    );
    set(&["--pulls", "none"]);
    assert!(
        fake.asked()
            .last()
            .unwrap()
            .contains(r#""pulls":{"users":[]}"#)
    );
    for wrong in [
        &["--pulls", "everyone"][..],
        &["--pulls", "users:"],
        &["--pull-budget", "a lot"],
    ] {
        let said = set(wrong);
        assert!(said.contains("[exit 2]"), "{said}");
    }
}
