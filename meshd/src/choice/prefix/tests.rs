//! Conversations are known again, turn by turn; strangers and old ones are not.

use serde_json::json;

use super::*;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

fn chat(system: &str, turns: &[(&str, &str)], question: &str) -> Prefix {
    let mut messages = vec![json!({ "role": "system", "content": system })];
    for (asked, answered) in turns {
        messages.push(json!({ "role": "user", "content": asked }));
        messages.push(json!({ "role": "assistant", "content": answered }));
    }
    messages.push(json!({ "role": "user", "content": question }));
    let body = json!({ "model": "m", "messages": messages });
    Prefix::of(body.as_object().unwrap()).unwrap()
}

fn nodes(found: &[(NodeId, u32)]) -> Vec<NodeId> {
    found.iter().map(|(node, _)| *node).collect()
}

#[test]
fn the_next_turn_of_a_conversation_finds_the_host_of_the_last() {
    let (mut affinity, now) = (Affinity::default(), Instant::now());
    let long = "You are a helper. ".repeat(20);
    let first = chat(&long, &[], "What is a mesh?");
    affinity.learn(&first, node(1), now);
    affinity.learn(&chat(&long, &[], "And what is a lathe?"), node(2), now);
    // The answer that it gave counts as known, however long.
    let answer = "A net. ".repeat(500);
    let second = chat(&long, &[("What is a mesh?", &answer)], "Go on.");
    assert_eq!(nodes(&affinity.holders(&second, now)), [node(1)]);
    assert_eq!(second.home(), first.home());
    // What both hosts hold is shared; a new conversation may go to either.
    let other = chat(&long, &[], "Something else");
    assert_eq!(affinity.holders(&other, now).len(), 2);
    assert_ne!(other.home(), first.home());
}

#[test]
fn another_system_prompt_model_or_tool_is_another_prompt() {
    let (mut affinity, now) = (Affinity::default(), Instant::now());
    let body = |model: &str, system: &str, tools: Value| {
        let body =
            json!({ "model": model, "system": system, "tools": tools, "prompt": "x".repeat(2000) });
        Prefix::of(body.as_object().unwrap()).unwrap()
    };
    affinity.learn(&body("a", "s", json!([])), node(1), now);
    assert_eq!(affinity.holders(&body("a", "s", json!([])), now).len(), 1);
    for other in [
        body("b", "s", json!([])),
        body("a", "t", json!([])),
        body("a", "s", json!([{ "name": "f" }])),
    ] {
        assert!(affinity.holders(&other, now).is_empty());
    }
}

#[test]
fn a_longer_text_is_known_by_its_beginning_and_a_small_part_of_it_does_not_count() {
    let (mut affinity, now) = (Affinity::default(), Instant::now());
    let text = |prompt: String| {
        let body = json!({ "model": "m", "prompt": prompt });
        Prefix::of(body.as_object().unwrap()).unwrap()
    };
    let base = "abcdefgh".repeat(400);
    affinity.learn(&text(base.clone()), node(3), now);
    assert_eq!(
        nodes(&affinity.holders(&text(format!("{base} and more")), now)),
        [node(3)]
    );
    let much = format!("{base}{}", "other".repeat(2000));
    assert!(affinity.holders(&text(much), now).is_empty());
}

#[test]
fn what_is_old_is_forgotten_and_memory_is_bounded() {
    let (mut affinity, now) = (Affinity::default(), Instant::now());
    let one = chat(&"s".repeat(200), &[], "one");
    affinity.learn(&one, node(1), now);
    assert!(affinity.holders(&one, now + KEPT_FOR).is_empty());
    for n in 0..N_KEPT_MAX {
        affinity.learn(&chat(&format!("{n} ").repeat(50), &[], "q"), node(1), now);
    }
    assert_eq!(affinity.places.len(), N_KEPT_MAX);
    assert_eq!(affinity.by_age.len(), N_KEPT_MAX);
    for n in 0..20 {
        affinity.learn(&one, node(n), now);
    }
    assert_eq!(affinity.holders(&one, now).len(), N_HOLDERS_MAX);
}

#[test]
fn what_has_no_prompt_has_no_prefix() {
    for body in [
        json!({ "model": "m" }),
        json!({ "model": "m", "prompt": "short" }),
        json!({ "model": "m", "messages": [] }),
        json!({ "model": "m", "messages": "none" }),
        json!({ "model": "m", "prompt": 7 }),
    ] {
        assert_eq!(Prefix::of(body.as_object().unwrap()), None, "{body}");
    }
}
