//! Lists as the servers were seen to answer them.

use serde_json::json;

use super::*;

#[test]
fn models_of_ollama_are_read_and_those_of_the_cloud_left_out() {
    let tags = json!({ "models": [
        { "name": "tiny:latest", "model": "tiny:latest", "modified_at": "2026-11-23T13:00:00Z", "size": 1_057_622,
          "digest": "f1".repeat(32), "details": { "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
          "parameter_size": "517K", "quantization_level": "F16", "context_length": 131_072, "embedding_length": 128 },
          "capabilities": ["completion"] },
        { "name": "gpt-oss:120b-cloud", "model": "gpt-oss:120b-cloud", "size": 384 },
        { "name": "stub:1b", "model": "stub:1b", "remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b" },
        { "name": "bad name", "model": "bad name" },
        { "name": 7 },
        { "name": "embed:latest", "details": null, "capabilities": null, "digest": "short" },
    ] });
    let loaded =
        json!({ "models": [{ "name": "tiny:latest", "context_length": 4_096, "size_vram": 0 }] });
    let offers = ollama_models(tags, loaded);
    let names: Vec<&str> = offers.iter().map(|offer| offer.model.as_str()).collect();
    assert_eq!(names, ["embed:latest", "tiny:latest"]);
    let tiny = &offers[1];
    assert!(tiny.is_loaded && tiny.digest.is_some());
    assert_eq!(
        (tiny.context_length, tiny.size_bytes),
        (4_096, 1_057_622),
        "what is loaded counts"
    );
    assert!(!offers[0].is_loaded && offers[0].digest.is_none());
    assert!(ollama_models(json!([]), json!(null)).is_empty());
}

#[test]
fn models_of_openai_servers_are_read() {
    let llama = json!({
        "models": [{ "name": "tiny", "capabilities": ["completion", "multimodal"] }],
        "object": "list",
        "data": [{ "id": "tiny", "meta": { "n_ctx_train": 8_192, "n_params": 516_736, "size": 1_033_984, "ftype": "F16" } }]
    });
    let props = json!({
        "default_generation_settings": { "n_ctx": 4_096 }, "modalities": { "vision": true, "audio": false },
        "chat_template_caps": { "supports_tools": true }
    });
    let offers = openai_models(&llama, &props);
    assert_eq!(offers.len(), 1);
    assert_eq!(
        (offers[0].context_length, offers[0].parameter_size.as_str()),
        (4_096, "516K")
    );
    assert_eq!(
        offers[0].capabilities,
        ["completion", "multimodal", "tools", "vision"]
    );
    assert_eq!(offers[0].quantization, "F16");
    let vllm = json!({ "object": "list", "data": [{ "id": "meta/Llama-3", "max_model_len": 2_048 }, { "id": "" }, {}] });
    let offers = openai_models(&vllm, &json!(null));
    assert_eq!((offers.len(), offers[0].context_length), (1, 2_048));
    assert_eq!(offers[0].capabilities, ["completion"]);
}

#[test]
fn urls_are_read_as_owners_write_them() {
    for (url, want) in [
        ("http://127.0.0.1:11434", Some("127.0.0.1:11434")),
        ("http://127.0.0.1:11434/", Some("127.0.0.1:11434")),
        ("127.0.0.1:8080", Some("127.0.0.1:8080")),
        ("http://[::1]:8000", Some("[::1]:8000")),
        ("http://gpu.lan", Some("gpu.lan:80")),
        ("https://127.0.0.1:1", None),
        ("http://user@127.0.0.1:1", None),
        ("http://127.0.0.1:1/v1", None),
        ("", None),
        ("/tmp/x", None),
    ] {
        assert_eq!(authority_of(url).ok().as_deref(), want, "{url}");
    }
}
