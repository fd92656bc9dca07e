//! Reads the text values of `meshctl set`. Pure.

use mesh_proto::control::code;
use mesh_proto::local::{NameMode, SetRequest, Settings};

use super::LocalError;

/// The settings after a change: all of it, or an error that names the wrong key or value and nothing of it.
///
/// # Errors
/// [`code::BAD_REQUEST`] for an unknown key or a value that the key does not take.
pub fn apply_settings(current: &Settings, request: &SetRequest) -> Result<Settings, LocalError> {
    let mut settings = current.clone();
    for (key, value) in &request.values {
        let value = value.trim();
        match key.as_str() {
            "names" => settings.names = parse_names(value)?,
            "dns" => settings.dns = parse_switch(key, value)?,
            "operator_uid" | "operator" => settings.operator_uid = parse_uid(value)?,
            unknown => {
                return Err(bad(format!(
                    "there is no setting `{unknown}`: known are names, dns and operator"
                )));
            }
        }
    }
    Ok(settings)
}

fn parse_names(value: &str) -> Result<NameMode, LocalError> {
    match value {
        "direct" => Ok(NameMode::Direct),
        "gateway" => Ok(NameMode::Gateway),
        other => Err(bad(format!(
            "`names` takes direct or gateway, not `{other}`"
        ))),
    }
}

fn parse_switch(key: &str, value: &str) -> Result<bool, LocalError> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        other => Err(bad(format!("`{key}` takes on or off, not `{other}`"))),
    }
}

fn parse_uid(value: &str) -> Result<Option<u32>, LocalError> {
    if matches!(value, "" | "none") {
        return Ok(None);
    }
    value
        .parse()
        .map(Some)
        .map_err(|_| bad(format!("`operator` takes a uid or none, not `{value}`")))
}

fn bad(message: String) -> LocalError {
    LocalError::new(code::BAD_REQUEST, message)
}
