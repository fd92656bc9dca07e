//! The computed vectors of the naming rules, and their properties.

use proptest::prelude::*;

use super::*;

#[test]
fn vectors() {
    let table = [
        ("llama3", "llama3"),
        ("llama3:latest", "llama3"),
        ("library/llama3", "llama3"),
        ("registry.ollama.ai/library/LLAMA3:latest", "llama3"),
        ("llama3.2:1b", "llama3-2-1b"),
        (
            "qwen2.5-coder:7b-instruct-q4_K_M",
            "qwen2-5-coder-7b-instruct-q4-k-m",
        ),
        ("nomic-embed-text:v1.5", "nomic-embed-text-v1-5"),
        (
            "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
            "hf-co-bartowski-llama-3-2-1b-instruct-gguf-q4-k-m",
        ),
        (
            "hf.co/mradermacher/Meta-Llama-3.1-8B-Instruct-abliterated-i1-GGUF:IQ3_XXS",
            "hf-co-mradermacher-meta-llama-3-1-8b-instruct-ablite-lxfhhuouuz",
        ),
    ];
    for (model, label) in table {
        assert_eq!(slug(model).as_deref(), Some(label), "{model}");
    }
}

#[test]
fn the_two_spellings_that_collide_do_collide() {
    assert_eq!(slug("llama3-2:1b"), slug("llama3.2:1b"));
}

#[test]
fn reserved_and_empty_names_are_no_slugs() {
    for model in ["node", "id", "API", "www", "ollama", "", "___", "ns:latest"] {
        assert_eq!(slug(model), None, "{model}");
    }
}

#[test]
fn parts() {
    let parts = ModelParts::of("hf.co:443/anna/llama-3.2:q4");
    assert_eq!(
        (parts.base, parts.short, parts.tag),
        ("hf.co:443/anna/llama-3.2", "llama-3.2", "q4")
    );
    let parts = ModelParts::of("llama3");
    assert_eq!(
        (parts.base, parts.short, parts.tag),
        ("llama3", "llama3", "latest")
    );
}

proptest! {
    #[test]
    fn a_slug_is_a_dns_label_and_folding_again_changes_nothing(model in "\\PC{0,120}") {
        if let Some(label) = slug(&model) {
            prop_assert!(label.len() <= 63 && !label.contains("--"));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert_eq!(fold(&label), label);
        }
    }
}
