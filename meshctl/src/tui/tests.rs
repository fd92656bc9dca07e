//! Frames as a terminal would show them, and what is between two looks.

use std::time::Duration;

use insta::assert_snapshot;
use mesh_proto::id::NodeId;
use mesh_proto::local::{Top, TopHost};
use mesh_proto::share::{Gpu, HostLive};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::state::State;
use super::view;

fn host(n: u8, name: &str, live: Option<HostLive>) -> TopHost {
    TopHost {
        id: NodeId::from_bytes([n; 10]),
        name: name.parse().unwrap(),
        user: "anna".parse().unwrap(),
        is_self: n == 1,
        is_online: live.is_some(),
        n_models: 3,
        live,
    }
}

fn live(n_active: u32, n_output_tokens: u64) -> HostLive {
    HostLive {
        n_slots: 4,
        n_active,
        n_queued: 1,
        n_output_tokens,
        loaded: vec!["llama3.2:1b".to_owned(), "evil\u{1b}[2J".to_owned()],
        gpus: Vec::new(),
    }
}

fn look(n_tokens: u64) -> Top {
    let mut card = live(2, n_tokens);
    card.gpus = vec![
        Gpu {
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            memory_total_bytes: Some(24 << 30),
            memory_used_bytes: Some(7 << 30),
            utilization_percent: Some(97),
            temperature_celsius: Some(66),
            power_milliwatts: Some(312_500),
            driver: Some("570.86".to_owned()),
            ..Gpu::default()
        },
        Gpu {
            name: "NVIDIA H100".to_owned(),
            is_mig: Some(true),
            ..Gpu::default()
        },
    ];
    Top {
        hosts: vec![
            host(2, "gpu1", Some(card)),
            host(1, "laptop", Some(live(0, 40))),
            host(3, "lab", None),
        ],
    }
}

fn frame(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn frames_show_hosts_and_cards() {
    let mut state = State::default();
    state.take(look(1_000), Duration::ZERO);
    assert_snapshot!("first", frame(&state, 100, 14));
    state.take(look(1_250), Duration::from_secs(2));
    state.sort_by_next();
    state.sort_by_next();
    assert_snapshot!("later", frame(&state, 100, 14));
    state.trouble = Some("meshd is not running".to_owned());
    assert_snapshot!("trouble", frame(&state, 40, 8));
    assert_snapshot!("nobody", frame(&State::default(), 60, 5));
}

#[test]
fn no_size_of_a_terminal_upsets_it() {
    let mut state = State::default();
    state.take(look(1), Duration::ZERO);
    for (width, height) in [(1, 1), (3, 2), (20, 3), (300, 100)] {
        assert!(!frame(&state, width, height).is_empty());
    }
}

#[test]
fn a_pace_needs_two_looks_at_one_count() {
    let pace = |state: &State| {
        let rows = state.rows();
        let row = rows.iter().find(|row| row.host.name.as_str() == "gpu1");
        row.unwrap().tokens_per_second
    };
    let mut state = State::default();
    state.take(look(1_000), Duration::ZERO);
    assert_eq!(pace(&state), None);
    state.take(look(1_250), Duration::from_secs(2));
    assert_eq!(pace(&state), Some(125.0));
    assert_eq!(state.sum().tokens_per_second, 125.0);
    assert_eq!((state.sum().n_online, state.sum().n_hosts), (2, 3));
    // Its daemon was started anew.
    state.take(look(7), Duration::from_secs(2));
    assert_eq!(pace(&state), None);
}
