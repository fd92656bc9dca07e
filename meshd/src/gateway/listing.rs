//! Lists of models in each dialect, made from offers alone: no backend is asked, so nothing but offers can show.
//!
//! Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::share::Offer;
use serde_json::{Value, json};

/// A model in a list, under the name to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed<'a> {
    pub(crate) name: &'a str,
    pub(crate) offer: &'a Offer,
    pub(crate) has_gpu: bool,
}

/// `GET /api/tags`.
pub(crate) fn tags(models: &[Listed<'_>]) -> Value {
    json!({ "models": models.iter().map(tag).collect::<Vec<_>>() })
}

fn tag(listed: &Listed<'_>) -> Value {
    let offer = listed.offer;
    let name = with_tag(listed.name);
    json!({
        "name": name,
        "model": name,
        "modified_at": modified_at(offer),
        "size": offer.size_bytes,
        "digest": offer.digest.map(|digest| digest.hex()).unwrap_or_default(),
        "details": details(offer),
        "capabilities": offer.capabilities,
    })
}

/// `GET /api/ps`.
pub(crate) fn ps(models: &[Listed<'_>], now: SystemTime) -> Value {
    let expires_at = rfc3339(now + Duration::from_secs(300));
    let loaded: Vec<Value> = models
        .iter()
        .filter(|listed| listed.offer.is_loaded)
        .map(|listed| {
            let name = with_tag(listed.name);
            let offer = listed.offer;
            json!({
                "name": name,
                "model": name,
                "size": offer.size_bytes,
                "digest": offer.digest.map(|digest| digest.hex()).unwrap_or_default(),
                "details": details(offer),
                "expires_at": expires_at,
                "size_vram": if listed.has_gpu { offer.size_bytes } else { 0 },
                "context_length": offer.context_length,
            })
        })
        .collect();
    json!({ "models": loaded })
}

/// `GET /v1/models`.
pub(crate) fn v1_models(models: &[Listed<'_>]) -> Value {
    json!({ "object": "list", "data": models.iter().map(v1_model).collect::<Vec<_>>() })
}

/// `GET /v1/models/:model`.
pub(crate) fn v1_model(listed: &Listed<'_>) -> Value {
    json!({ "id": listed.name, "object": "model", "created": 0, "owned_by": "library" })
}

/// `POST /api/show` for a backend that has no such call.
pub(crate) fn show(offer: &Offer) -> Value {
    let family = if offer.family.is_empty() {
        "unknown"
    } else {
        &offer.family
    };
    let mut info = json!({ "general.architecture": family });
    if offer.context_length > 0 {
        info[format!("{family}.context_length")] = offer.context_length.into();
    }
    json!({
        "license": "",
        "parameters": "",
        "template": "",
        "details": details(offer),
        "model_info": info,
        "capabilities": offer.capabilities,
        "modified_at": modified_at(offer),
    })
}

fn details(offer: &Offer) -> Value {
    let families: &[&str] = if offer.family.is_empty() {
        &[]
    } else {
        &[&offer.family]
    };
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": offer.family,
        "families": families,
        "parameter_size": offer.parameter_size,
        "quantization_level": offer.quantization,
        "context_length": offer.context_length,
    })
}

/// Ollama's clients expect a time that they can parse.
fn modified_at(offer: &Offer) -> &str {
    if offer.modified_at.is_empty() {
        "1970-01-01T00:00:00Z"
    } else {
        &offer.modified_at
    }
}

/// Lists of Ollama always show a tag.
pub(crate) fn with_tag(name: &str) -> String {
    let after_path = name.rfind('/').map_or(0, |at| at + 1);
    if name[after_path..].contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// A time as RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = since.as_secs();
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // Days to a civil date in the proleptic Gregorian calendar, by eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_idx = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_idx + 2) / 5 + 1;
    let month = if month_idx < 10 {
        month_idx + 3
    } else {
        month_idx - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (secs, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_440_123, "2026-11-23T13:22:03.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(secs)), want);
        }
    }

    #[test]
    fn a_name_in_a_list_has_a_tag() {
        assert_eq!(with_tag("tiny"), "tiny:latest");
        assert_eq!(with_tag("tiny:1b"), "tiny:1b");
        assert_eq!(with_tag("host:80/ns/tiny"), "host:80/ns/tiny:latest");
    }
}
