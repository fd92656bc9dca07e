//! Names and paths as Ollama reads them, and what it tells of a model.

use std::net::IpAddr;

use mesh_proto::share::Digest;
use serde_json::{Value, json};

/// The one name of a model with many spellings, or nothing when it is malformed.
#[must_use]
pub fn canonical(asked: &str) -> Option<String> {
    let name = asked.trim().to_ascii_lowercase();
    let name = name
        .split_once("://")
        .map_or(name.as_str(), |(_, rest)| rest);
    let name = name.strip_suffix(":local").unwrap_or(name);
    let last = name.rsplit('/').next()?;
    let (model, tag) = last.split_once(':').unwrap_or((last, "latest"));
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 80
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
    };
    let prefix = name.strip_suffix(last)?;
    let is_library = prefix.is_empty() || prefix == "library/" || prefix.ends_with("/library/");
    (is_part(model) && is_part(tag) && !prefix.starts_with('.')).then(|| {
        let prefix = if is_library { "" } else { prefix };
        format!("{prefix}{model}:{tag}")
    })
}

/// Resolves `%xx`, once.
#[must_use]
pub fn percent_decode(path: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) if byte == b'%' => {
                decoded.push(value);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The path without empty, `.` and `..` segments and without a slash at its end.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The `Host` check of a server on loopback.
#[must_use]
pub fn is_host_allowed(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let name = if host.starts_with('[') {
        host.trim_start_matches('[')
            .split(']')
            .next()
            .unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    if let Ok(ip) = name.parse::<IpAddr>() {
        return ip.is_loopback()
            || ip.is_unspecified()
            || match ip {
                IpAddr::V4(ip) => ip.is_private(),
                IpAddr::V6(ip) => ip.is_unique_local(),
            };
    }
    name.is_empty()
        || name == "localhost"
        || [".localhost", ".local", ".internal"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
}

/// The `Origin` check of any server.
#[must_use]
pub fn is_origin_allowed(origin: &str) -> bool {
    let local = ["localhost", "127.0.0.1", "0.0.0.0"];
    let schemes = [
        "app://",
        "file://",
        "tauri://",
        "vscode-webview://",
        "vscode-file://",
    ];
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    rest.is_some_and(|rest| local.contains(&rest.split(':').next().unwrap_or_default()))
        || schemes.iter().any(|scheme| origin.starts_with(scheme))
}

pub(crate) fn digest(model: &str) -> String {
    // Two stand-ins with the same name have the same files; any 32 bytes that depend on the name will do.
    let mut bytes = [0u8; 32];
    for (index, byte) in model.bytes().enumerate() {
        let slot = &mut bytes[index % 32];
        *slot = slot.wrapping_mul(31).wrapping_add(byte);
    }
    bytes[31] = 0x5d;
    Digest::from_bytes(bytes).hex()
}

fn is_embedding(model: &str) -> bool {
    model.starts_with("embed")
}

fn details() -> Value {
    json!({ "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
            "parameter_size": "517K", "quantization_level": "F16",
            "context_length": 4096, "embedding_length": 128 })
}

/// What a model can do, by its name.
fn capabilities(model: &str) -> &'static [&'static str] {
    if is_embedding(model) {
        &["embedding"]
    } else if model.starts_with("caller") {
        &["completion", "tools"]
    } else {
        &["completion"]
    }
}

/// A model's entry of `/api/tags`.
#[must_use]
pub fn entry(model: &str) -> Value {
    json!({ "name": model, "model": model, "modified_at": "2026-11-23T13:20:11.123456789Z", "size": 1_057_622,
            "digest": digest(model), "details": details(), "capabilities": capabilities(model) })
}

/// What `/api/show` says, the host's own path included.
#[must_use]
pub fn show(model: &str) -> Value {
    let blob = format!(
        "/usr/share/ollama/.ollama/models/blobs/sha256-{}",
        digest(model)
    );
    json!({ "modelfile": format!("# Modelfile generated by \"ollama show\"\nFROM {blob}\nPARAMETER num_thread 1\n"),
            "parameters": "num_thread                     1", "template": "{{ .Prompt }}",
            "system": "the owner's own instructions", "details": details(),
            "model_info": { "general.architecture": "llama", "general.parameter_count": 516_992,
                            "llama.context_length": 4096, "llama.embedding_length": 128 },
            "capabilities": capabilities(model), "modified_at": "2026-11-23T13:20:11.123456789Z" })
}

#[cfg(test)]
mod tests {
    use super::{canonical, clean, is_host_allowed, is_origin_allowed, percent_decode};

    #[test]
    fn every_spelling_is_one_model() {
        for spelling in [
            "tiny",
            "TINY",
            " tiny ",
            "library/tiny",
            "registry.example/library/tiny:latest",
            "http://registry.example/library/tiny",
            "tiny:local",
        ] {
            assert_eq!(
                canonical(spelling).as_deref(),
                Some("tiny:latest"),
                "{spelling}"
            );
        }
        for malformed in ["", "tiny:", "tiny/", "./tiny", "tiny@sha256:00"] {
            assert_eq!(canonical(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn paths_are_decoded_and_cleaned() {
        assert_eq!(percent_decode("/api/%74ags%2"), "/api/tags%2");
        assert_eq!(clean("//api/../api/./tags/"), "/api/tags");
        assert_eq!(clean("/"), "/");
    }

    #[test]
    fn hosts_and_origins_are_checked_as_measured() {
        for host in [
            "",
            "localhost",
            "a.localhost:1",
            "A.INTERNAL",
            "10.1.2.3:11434",
            "[::1]:1",
            "127.0.0.1",
        ] {
            assert!(is_host_allowed(host), "{host}");
        }
        for host in [
            "tiny.proxima",
            "evil.example",
            "8.8.8.8",
            "169.254.1.1",
            "[fe80::1]",
            "100.64.0.7",
        ] {
            assert!(!is_host_allowed(host), "{host}");
        }
        assert!(is_origin_allowed("http://localhost:3000"));
        for origin in [
            "null",
            "http://tiny.proxima",
            "https://localhost.evil.example",
        ] {
            assert!(!is_origin_allowed(origin), "{origin}");
        }
    }
}
