//! Seeing the mesh: status, wait, ping, dns, settings.

use insta::assert_snapshot;
use mesh_proto::disco::Mapping;
use mesh_proto::id::RelayId;
use mesh_proto::local::*;

use crate::fake::{Fake, node_id, status_of, status_running};

/// Wall-clock values that change with every run.
fn still(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match line.split_once("\"last_seen_ms\": 1") {
            Some((head, _)) => out.push_str(&format!("{head}\"last_seen_ms\": [TIME],\n")),
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

#[test]
fn status_shows_self_first_then_peers_then_the_coordinators_last_word() {
    let fake = Fake::running().start();
    assert_snapshot!("status", still(&fake.both(&["status"])));
}

#[test]
fn status_ends_with_problems_and_their_cures() {
    let mut status = status_running();
    status.peers.clear();
    if let Some(coordinator) = &mut status.coordinator {
        coordinator.is_connected = false;
        coordinator.last_heard_ms_ago = None;
        coordinator.error = Some("connection refused".to_owned());
    }
    if let Some(node) = &mut status.node {
        node.is_sharing = true;
        node.expires_at_ms = Some(1);
    }
    status.problems = vec![
        Problem {
            code: "coordinator_unreachable".to_owned(),
            message: "the coordinator is not heard; the mesh works from the last known map"
                .to_owned(),
            fix: None,
        },
        Problem {
            code: "dns_unmanaged".to_owned(),
            message: "nothing on this system points at the mesh's names".to_owned(),
            fix: Some("meshctl dns".to_owned()),
        },
    ];
    let fake = Fake::bare().json("GET", PATH_STATUS, &status).start();
    assert_snapshot!("status_with_problems", fake.meshctl(&["status"]));
    assert_snapshot!(
        "check_ready_degraded",
        fake.meshctl(&["status", "--check", "ready"])
    );
}

#[test]
fn each_state_has_its_sentence_its_next_step_and_its_exit_code() {
    let mut all = String::new();
    for state in [
        RunState::NeedsLogin,
        RunState::Stopped,
        RunState::Starting,
        RunState::Refused,
    ] {
        let fake = Fake::bare()
            .json("GET", PATH_STATUS, &status_of(state))
            .start();
        all.push_str(&fake.meshctl(&["status"]));
        all.push_str(&fake.meshctl(&["status", "--check", "live"]));
        all.push_str(&fake.meshctl(&["status", "--check", "ready"]));
    }
    assert_snapshot!("status_states", all);
}

#[test]
fn probes_of_a_healthy_node_pass() {
    let fake = Fake::running().start();
    assert!(
        fake.meshctl(&["status", "--check", "live"])
            .contains("[exit 0]")
    );
    assert!(
        fake.meshctl(&["status", "--check", "ready"])
            .contains("[exit 0]\n[stdout]\nready\n")
    );
}

#[test]
fn a_hostile_name_cannot_steer_the_terminal() {
    let mut status = status_running();
    status.problems = vec![Problem {
        code: "x".to_owned(),
        message: "bad \u{1b}[2J\u{9b}31m thing".to_owned(),
        fix: None,
    }];
    let fake = Fake::bare().json("GET", PATH_STATUS, &status).start();
    let text = fake.meshctl(&["status"]);
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{9b}'),
        "{text:?}"
    );
}

#[test]
fn wait_ends_when_the_state_is_reached() {
    let fake = Fake::running().start();
    assert_snapshot!("wait", fake.meshctl(&["wait"]));
    assert!(
        fake.asked()[0].starts_with("GET /v1/status?wait=running&timeout_ms="),
        "{:?}",
        fake.asked()
    );
    let text = fake.meshctl(&["wait", "--for", "ready", "--timeout", "5s"]);
    assert!(text.contains("[exit 0]"), "{text}");
    assert!(
        fake.asked()[1].starts_with("GET /v1/status?wait=ready&timeout_ms=4")
            || fake.asked()[1].ends_with("=5000"),
        "{:?}",
        fake.asked()
    );
}

#[test]
fn wait_gives_up_and_says_on_what() {
    let mut all = String::new();
    for state in [RunState::NeedsLogin, RunState::Stopped, RunState::Starting] {
        let fake = Fake::bare()
            .json("GET", PATH_STATUS, &status_of(state))
            .start();
        all.push_str(&fake.meshctl(&["wait", "--timeout", "1ms"]));
    }
    let mut status = status_running();
    if let Some(coordinator) = &mut status.coordinator {
        coordinator.is_connected = false;
    }
    let fake = Fake::bare().json("GET", PATH_STATUS, &status).start();
    all.push_str(&fake.meshctl(&["wait", "--for", "ready", "--timeout", "1ms"]));
    assert_snapshot!("wait_gives_up", all);
}

fn pong() -> PingReply {
    PingReply {
        id: node_id(3),
        name: "gpu1".parse().unwrap(),
        ip: "10.171.1.3".parse().unwrap(),
        path: PathStatus::Direct {
            endpoint: "192.0.2.7:41641".parse().unwrap(),
        },
        rtt_ms: 1.234,
        path_mtu: Some(1440),
    }
}

#[test]
fn ping_tells_who_answered_by_which_way_and_how_fast() {
    let fake = Fake::running().json("POST", PATH_PING, &pong()).start();
    assert_snapshot!("ping", fake.both(&["ping", "gpu1"]));
    assert_eq!(
        fake.asked()[0],
        r#"POST /v1/ping {"target":"gpu1","timeout_ms":5000}"#
    );
    let text = fake.meshctl(&["ping", "gpu1", "-c", "2"]);
    assert_eq!(text.matches("pong from gpu1").count(), 2, "{text}");
}

#[test]
fn ping_names_the_relay_that_carried_it() {
    for (name, words) in [
        ("tokyo", "via relay tokyo"),
        ("", "via relay a4dqobyha4dqobyh"),
    ] {
        let reply = PingReply {
            path: PathStatus::Relayed {
                relay: RelayId::from_bytes([7; 10]),
                name: name.to_owned(),
            },
            path_mtu: None,
            ..pong()
        };
        let fake = Fake::running().json("POST", PATH_PING, &reply).start();
        let text = fake.meshctl(&["ping", "gpu1", "-c", "1"]);
        assert!(text.contains(words), "{text}");
        assert!(text.contains("[exit 7]"), "{text}");
    }
}

#[test]
fn ping_gives_a_direct_path_ten_probes() {
    let relayed = PingReply {
        path: PathStatus::Relayed {
            relay: RelayId::from_bytes([7; 10]),
            name: "tokyo".to_owned(),
        },
        path_mtu: None,
        ..pong()
    };
    let fake = Fake::running().json("POST", PATH_PING, &relayed).start();
    assert_snapshot!("ping_relayed", fake.meshctl(&["ping", "gpu1", "-i", "1ms"]));
    assert_eq!(fake.asked().len(), 10);
    let fake = Fake::running().json("POST", PATH_PING, &pong()).start();
    let text = fake.meshctl(&["ping", "gpu1", "-i", "1ms"]);
    assert!(text.contains("[exit 0]"), "{text}");
    assert_eq!(fake.asked().len(), 1, "it went on after a direct answer");
}

fn why_step(subject: WhySubject, verdict: Verdict, message: &str) -> WhyStep {
    WhyStep {
        subject,
        verdict,
        message: message.to_owned(),
        fix: None,
    }
}

#[test]
fn why_names_the_first_thing_that_fails() {
    use Verdict::{Degraded, No, Unknown, Yes};
    let why = |policy, offer, path| Why {
        from: "laptop".to_owned(),
        to: "gpu1".to_owned(),
        port: 11434,
        steps: vec![
            why_step(WhySubject::Policy, policy, "laptop and port 11434 on gpu1"),
            why_step(WhySubject::Name, Yes, "gpu1 is gpu1, 10.171.1.3"),
            WhyStep {
                fix: (offer == No).then(|| "meshctl share on".to_owned()),
                ..why_step(WhySubject::Offer, offer, "what gpu1 shares")
            },
            why_step(WhySubject::Path, path, "the way to gpu1"),
        ],
    };
    let mut all = String::new();
    for (answer, exit) in [
        (why(Yes, Yes, Yes), 0),
        (why(No, No, No), 6),
        (why(Yes, No, No), 5),
        (why(Unknown, Yes, No), 5),
        (why(Yes, Yes, Degraded), 7),
        (why(Unknown, Yes, Yes), 7),
    ] {
        let fake = Fake::running().json("POST", PATH_WHY, &answer).start();
        let text = fake.meshctl(&["why", "self", "gpu1:11434"]);
        assert!(text.contains(&format!("[exit {exit}]")), "{text}");
        all.push_str(&text);
    }
    let fake = Fake::running()
        .json("POST", PATH_WHY, &why(Yes, No, Yes))
        .start();
    all.push_str(&fake.meshctl(&["why", "laptop", "[fd00::1]:11434", "--json"]));
    assert_eq!(
        fake.asked(),
        [r#"POST /v1/why {"from":"laptop","to":"fd00::1","port":11434}"#]
    );
    for wrong in ["gpu1", "gpu1:", "gpu1:0", "gpu1:70000", ":80"] {
        let text = fake.meshctl(&["why", "self", wrong]);
        assert!(
            text.contains("[exit 2]") && text.contains("gpu1:11434"),
            "{text}"
        );
    }
    assert_snapshot!("why", all);
}

#[test]
fn netcheck_shows_what_the_network_lets_through() {
    let relay = |n: u8, name: &str| RelayCheck {
        id: RelayId::from_bytes([n; 10]),
        name: name.to_owned(),
        rtt_ms: Some(12.34),
        is_connected: true,
        is_home: n == 1,
    };
    let easy = NetCheck {
        has_udp_ipv4: true,
        has_udp_ipv6: false,
        no_ipv6: Some(NoIpv6::NoAddress),
        reflexive: vec!["203.0.113.5:41820".parse().unwrap()],
        mapping: Mapping::EndpointIndependent,
        port_mapping: Some(PortMapping {
            endpoint: "203.0.113.5:5000".parse().unwrap(),
            protocol: "PCP".to_owned(),
        }),
        relays: vec![
            relay(1, "tokyo"),
            RelayCheck {
                is_connected: false,
                rtt_ms: Some(3.21),
                ..relay(2, "")
            },
        ],
    };
    let fake = Fake::running().json("GET", PATH_NETCHECK, &easy).start();
    assert_snapshot!("netcheck", fake.both(&["netcheck"]));
    let blocked = NetCheck {
        has_udp_ipv4: false,
        reflexive: Vec::new(),
        mapping: Mapping::Unknown,
        port_mapping: None,
        relays: vec![RelayCheck {
            rtt_ms: None,
            is_connected: false,
            ..relay(1, "tokyo")
        }],
        ..easy
    };
    let fake = Fake::running().json("GET", PATH_NETCHECK, &blocked).start();
    assert_snapshot!("netcheck_blocked", fake.meshctl(&["netcheck"]));
}

#[test]
fn ping_without_a_reply_and_to_nobody() {
    let fake = Fake::running()
        .error("POST", PATH_PING, 504, "timeout", "no reply")
        .start();
    assert_snapshot!(
        "ping_no_reply",
        fake.both(&["ping", "gpu1", "--timeout", "1s"])
    );
    let fake = Fake::running()
        .error(
            "POST",
            PATH_PING,
            404,
            "not_found",
            "there is no node `gpu2`",
        )
        .start();
    assert_snapshot!("ping_unknown", fake.meshctl(&["ping", "gpu2"]));
    let fake = Fake::running()
        .error(
            "POST",
            PATH_PING,
            403,
            "refused",
            "the mesh's policy forbids it",
        )
        .start();
    assert_snapshot!("ping_refused", fake.meshctl(&["ping", "gpu1"]));
}

#[test]
fn a_ping_that_cannot_be_sent_had_no_reply() {
    let unsent = "the probe cannot be sent now: try again in a moment";
    let fake = Fake::running()
        .error("POST", PATH_PING, 503, "unavailable", unsent)
        .start();
    let text = fake.meshctl(&["ping", "gpu1", "-c", "2"]);
    assert!(text.contains("[exit 5]"), "{text}");
    assert!(
        text.contains(&format!("no reply from gpu1: {unsent}")),
        "{text}"
    );
    assert_eq!(fake.asked().len(), 2, "it gave up after the first: {text}");
}

#[test]
fn a_node_that_is_still_starting_is_degraded_and_needs_no_login() {
    let fake = Fake::bare()
        .json("GET", PATH_STATUS, &status_of(RunState::Starting))
        .error("POST", PATH_PING, 409, "needs_login", "the node is not up")
        .error("GET", PATH_MODELS, 409, "needs_login", "the node is not up")
        .start();
    for verb in [&["ping", "gpu1"][..], &["models"]] {
        let text = fake.meshctl(verb);
        assert!(text.contains("[exit 7]"), "{text}");
        assert!(text.contains("meshctl wait"), "{text}");
        assert!(!text.contains("auth-key"), "{text}");
    }
}

fn dns() -> DnsStatus {
    DnsStatus {
        suffix: "proxima".to_owned(),
        alias: "proxima.internal".to_owned(),
        servers: vec!["10.171.0.53".parse().unwrap()],
        manager: "systemd-resolved".to_owned(),
        is_wired: true,
        hint: None,
        upstreams: Vec::new(),
        n_models: 4,
    }
}

#[test]
fn dns_says_who_was_told_and_how_to_undo_it() {
    let fake = Fake::running().json("GET", PATH_DNS, &dns()).start();
    assert_snapshot!("dns", fake.both(&["dns"]));
    let unwired = DnsStatus {
        manager: "none".to_owned(),
        is_wired: false,
        hint: Some("put this into /etc/resolv.conf:\nnameserver 10.171.0.53".to_owned()),
        upstreams: vec!["192.0.2.53:53".parse().unwrap()],
        ..dns()
    };
    let fake = Fake::running().json("GET", PATH_DNS, &unwired).start();
    assert_snapshot!("dns_unwired", fake.meshctl(&["dns", "status"]));
}

#[test]
fn settings_are_shown_and_changed_by_key() {
    let fake = Fake::running()
        .json("GET", PATH_SETTINGS, &Settings::default())
        .json(
            "POST",
            PATH_SETTINGS,
            &Settings {
                names: NameMode::Gateway,
                dns: false,
                operator_uid: Some(0),
                ..Settings::default()
            },
        )
        .start();
    assert_snapshot!("settings", fake.both(&["set"]));
    assert_snapshot!(
        "set",
        fake.meshctl(&["set", "names=gateway", "dns=off", "operator=root"])
    );
    let asked = fake.asked();
    assert_eq!(
        asked.last().map(String::as_str),
        Some(r#"POST /v1/settings {"values":{"dns":"off","names":"gateway","operator_uid":"0"}}"#)
    );
}

#[test]
fn wrong_settings_are_caught_before_they_are_sent() {
    let fake = Fake::running().start();
    let mut all = String::new();
    for pair in [
        "name=direct",
        "names=best",
        "dns",
        "operator=no-such-user-here",
    ] {
        all.push_str(&fake.meshctl(&["set", pair]));
    }
    assert_snapshot!("set_wrong", all);
    assert!(fake.asked().is_empty());
}

#[test]
fn a_node_that_is_switched_off_is_not_told_to_find_an_auth_key() {
    let fake = Fake::bare()
        .json("GET", PATH_STATUS, &status_of(RunState::Stopped))
        .error("GET", PATH_DNS, 409, "needs_login", "the node is not up")
        .start();
    let text = fake.both(&["dns"]);
    assert!(
        text.contains("error: the node is switched off\n  to mend it: meshctl up\n"),
        "{text}"
    );
    assert!(!text.contains("pxk_"), "{text}");
    assert_eq!(text.matches("[exit 7]").count(), 2, "{text}");
}

#[test]
fn names_that_somebody_wired_by_hand_are_nobodys_to_undo() {
    let status = DnsStatus {
        suffix: "proxima".to_owned(),
        alias: "proxima.internal".to_owned(),
        servers: Vec::new(),
        manager: "none".to_owned(),
        is_wired: true,
        hint: None,
        upstreams: Vec::new(),
        n_models: 1,
    };
    let fake = Fake::bare().json("GET", PATH_DNS, &status).start();
    let text = fake.meshctl(&["dns"]);
    assert!(
        text.contains("set up by hand; programs resolve these names"),
        "{text}"
    );
    assert!(!text.contains("undo"), "{text}");
}

#[test]
fn a_wrong_command_line_is_an_object_for_programs_too() {
    let fake = Fake::bare().start();
    let text = fake.meshctl(&["bogus", "--json"]);
    assert!(text.contains("[exit 2]"), "{text}");
    assert!(text.contains("\"schema_version\": 1"), "{text}");
    assert!(text.contains("unrecognized subcommand 'bogus'"), "{text}");
}

#[test]
fn down_claims_no_membership_that_there_is_not() {
    let fake = Fake::bare()
        .json("GET", PATH_STATUS, &status_of(RunState::NeedsLogin))
        .done(PATH_DOWN)
        .start();
    let text = fake.meshctl(&["down"]);
    assert!(text.contains("[exit 0]"), "{text}");
    assert!(text.contains("This machine is in no mesh"), "{text}");
}
