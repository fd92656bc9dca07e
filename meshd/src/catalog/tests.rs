//! The naming rules over real catalogues.

use super::*;
use crate::dns::fixture::{digest, offer, offers, peer, view, view_of};

fn catalog() -> Catalog {
    Catalog::build(&view(), |_| false)
}

/// The model that a label finds, `?` when ambiguous, empty when unknown.
fn found(lookup: Lookup<'_>) -> &str {
    match lookup {
        Lookup::Found(entry) => &entry.model,
        Lookup::Ambiguous(_) => "?",
        Lookup::Unknown => "",
    }
}

fn of_models(models: &[(&str, u8)]) -> Catalog {
    Catalog::build(
        &view_of(offers(&[]), vec![peer(1, "gpu1", offers(models))]),
        |_| false,
    )
}

#[test]
fn every_accepted_spelling_finds_its_model() {
    let catalog = catalog();
    let hf = "hf.co/bartowski/llama-3.2-1b-instruct-gguf:q4_k_m";
    let table = [
        ("llama3", "llama3"),
        ("LLAMA3", "llama3"),
        ("llama3-latest", "llama3"),
        ("latest.llama3", "llama3"),
        ("llama3-2-1b", "llama3.2:1b"),
        ("llama3.2-1b", "llama3.2:1b"),
        ("llama3.2.1b", "llama3.2:1b"),
        ("LLAMA3.2.1B", "llama3.2:1b"),
        ("1b.llama3.2", "llama3.2:1b"),
        ("llama3.2", "llama3.2:1b"),
        ("llama3-2", "llama3.2:1b"),
        (
            "qwen2.5-coder-7b-instruct-q4_k_m",
            "qwen2.5-coder:7b-instruct-q4_k_m",
        ),
        ("qwen2-5-coder", "qwen2.5-coder:7b-instruct-q4_k_m"),
        ("nomic-embed-text-v1-5", "nomic-embed-text:v1.5"),
        ("nomic-embed-text", "nomic-embed-text:v1.5"),
        ("hf-co-bartowski-llama-3-2-1b-instruct-gguf-q4-k-m", hf),
        ("hf.co.bartowski.Llama-3.2-1B-Instruct-GGUF.Q4_K_M", hf),
        ("hf.co.bartowski.Llama-3.2-1B-Instruct-GGUF", hf),
        ("llama-3.2-1b-instruct-gguf", hf),
        ("llama-3.2-1b-instruct-gguf-q4_k_m", hf),
        ("q4_k_m.llama-3.2-1b-instruct-gguf", hf),
        ("smollm2", "smollm2"),
        ("twin", "?"),
        ("gone", ""),
        ("secret", ""),
        ("llama", ""),
        ("1b", ""),
        ("", ""),
        ("node", ""),
        ("ollama", ""),
    ];
    for (label, model) in table {
        assert_eq!(found(catalog.lookup(&fold(label))), model, "{label}");
    }
}

#[test]
fn a_name_too_long_for_a_label_answers_to_its_cut_and_to_its_dotted_form() {
    let model = "hf.co/mradermacher/Meta-Llama-3.1-8B-Instruct-abliterated-i1-GGUF:IQ3_XXS";
    let catalog = of_models(&[(model, 1)]);
    let cut = "hf-co-mradermacher-meta-llama-3-1-8b-instruct-ablite-lxfhhuouuz";
    assert_eq!(found(catalog.lookup(cut)), normalise(model));
    assert_eq!(found(catalog.lookup(&fold(model))), normalise(model));
    assert_eq!(
        catalog
            .label_of(catalog.entries().next().unwrap())
            .as_deref(),
        Some(cut)
    );
}

#[test]
fn two_models_with_one_slug_are_ambiguous_and_keep_their_ids() {
    let catalog = of_models(&[("llama3-2:1b", 1), ("llama3.2:1b", 2)]);
    assert_eq!(found(catalog.lookup("llama3-2-1b")), "?");
    assert_eq!(found(catalog.by_digest(&digest(1).short())), "llama3-2:1b");
    assert_eq!(found(catalog.by_digest(&digest(2).short())), "llama3.2:1b");
    assert_eq!(found(catalog.lookup_model("llama3.2:1b")), "llama3.2:1b");
    assert_eq!(catalog.label_of(catalog.entries().next().unwrap()), None);
    assert_eq!(catalog.models().models[0].dns_name, None);
}

#[test]
fn two_names_with_one_slug_and_the_same_files_are_one_model() {
    let catalog = of_models(&[("llama3-2:1b", 1), ("llama3.2:1b", 1)]);
    let entry = catalog.lookup("llama3-2-1b").found().unwrap();
    assert_eq!((entry.digest, entry.offers.len()), (Some(digest(1)), 1));
}

#[test]
fn a_stronger_claim_wins_and_a_tie_does_not_fall_through() {
    type Row<'a> = (&'a [(&'a str, u8)], &'a str, &'a str);
    let table: &[Row<'_>] = &[
        (&[("llama3", 1), ("llama3:8b", 2)], "llama3", "llama3"),
        (&[("llama3:8b", 2)], "llama3", "llama3:8b"),
        (&[("llama3:8b", 2), ("llama3:70b", 3)], "llama3", "?"),
        (
            &[("llama3:8b", 2), ("llama3:70b", 2)],
            "llama3",
            "llama3:70b",
        ),
        (&[("anna/llama3", 2)], "llama3", "anna/llama3"),
        (&[("anna/llama3", 2), ("ben/llama3", 3)], "llama3", "?"),
        (
            &[("anna/llama3", 2), ("llama3:8b", 3)],
            "llama3",
            "llama3:8b",
        ),
        (&[("a:b", 1), ("b:a", 2)], "a-b", "a:b"),
        (&[("a:b", 1)], "b-a", "a:b"),
        (&[("a-latest", 1), ("a", 2)], "a-latest", "a-latest"),
        (&[("node:7b", 1)], "node-7b", "node:7b"),
        (&[("node", 1)], "node", ""),
        (&[("node", 1)], "node-latest", "node"),
    ];
    for (models, label, model) in table {
        assert_eq!(
            found(of_models(models).lookup(label)),
            *model,
            "{models:?} {label}"
        );
    }
}

#[test]
fn unknown_files_never_mix_with_known_ones() {
    let peers = vec![
        peer(1, "gpu1", offers(&[("m", 1)])),
        peer(2, "gpu2", offers(&[("m", 0)])),
    ];
    let catalog = Catalog::build(&view_of(offers(&[]), peers), |_| false);
    assert_eq!(
        (catalog.entries().len(), found(catalog.lookup("m"))),
        (2, "?")
    );
    assert_eq!(found(catalog.lookup_model("m")), "?");
    assert_eq!(found(catalog.on_node(&"gpu2".parse().unwrap(), "m")), "m");
}

#[test]
fn requests_name_models_exactly_or_as_labels_do() {
    let catalog = catalog();
    let table = [
        (" LLAMA3:latest ", "llama3"),
        ("library/llama3", "llama3"),
        ("llama3.2:1b", "llama3.2:1b"),
        ("llama3.2", "llama3.2:1b"),
        ("twin", "?"),
        ("nothing", ""),
    ];
    for (model, expected) in table {
        assert_eq!(found(catalog.lookup_model(model)), expected, "{model}");
    }
}

#[test]
fn a_host_is_asked_for_what_it_has_itself() {
    let catalog = catalog();
    let on = |node: &str, label: &str| match catalog.on_node(&node.parse().unwrap(), label) {
        Lookup::Found(entry) => entry.digest,
        Lookup::Ambiguous(_) | Lookup::Unknown => None,
    };
    assert_eq!(on("gpu2", "twin"), Some(digest(5)));
    assert_eq!(on("gpu3", "twin"), Some(digest(7)));
    assert_eq!(on("gpu1", "twin"), None);
    assert_eq!(on("off", "gone"), None);
    assert_eq!(on("desk", "smollm2"), Some(digest(11)));
    assert_eq!(catalog.of_node(&"gpu2".parse().unwrap()).count(), 3);
}

#[test]
fn hosts_stand_best_first_and_lost_ones_last_or_not_at_all() {
    let mut loaded = offers(&[("m", 1)]);
    Arc::make_mut(&mut loaded.models[0]).is_loaded = true;
    let peers = vec![
        peer(1, "gpu1", offers(&[("m", 1)])),
        peer(2, "gpu2", loaded),
        peer(3, "gpu3", offers(&[("m", 1)])),
    ];
    let down = peers[0].0;
    let catalog = Catalog::build(&view_of(offers(&[("m:latest", 1)]), peers), |node| {
        *node == down
    });
    let entry = catalog.lookup("m").found().unwrap();
    let names: Vec<&str> = entry
        .offers
        .iter()
        .map(|offer| offer.name.as_str())
        .collect();
    assert_eq!(names, ["gpu2", "desk", "gpu3", "gpu1"]);
    assert_eq!(entry.online().count(), 3);
    assert_eq!(catalog.models().models[0].hosts.len(), 4);
}

#[test]
fn a_host_stands_once_however_often_it_lists_a_name() {
    let mut twice = offers(&[("m", 1), ("M:latest", 2)]);
    twice.models.push(offer("library/m", 3).into());
    let catalog = Catalog::build(&view_of(offers(&[]), vec![peer(1, "gpu1", twice)]), |_| {
        false
    });
    assert_eq!(catalog.entries().len(), 1);
}

#[test]
fn names_near_a_mistyped_one_are_offered() {
    assert_eq!(catalog().near("llama3.2"), ["llama3.2:1b", "llama3"]);
    assert!(catalog().near("zzzzzzzz").is_empty());
}
