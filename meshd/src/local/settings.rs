//! Reads the text values of `meshctl set`. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use mesh_proto::control::code;
use mesh_proto::local::{NameMode, SetRequest, Settings, UserspaceMode};

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
            "userspace" => settings.userspace = parse_userspace(value)?,
            "socks5" => settings.socks5 = parse_listener(key, value)?,
            "http-proxy" | "http_proxy" => settings.http_proxy = parse_listener(key, value)?,
            "relay" => settings.relay = parse_switch(key, value)?,
            "gateway" => settings.gateway = parse_loopback(key, value)?,
            unknown => {
                return Err(bad(format!(
                    "there is no setting `{unknown}`: known are names, dns, operator, userspace, socks5, http-proxy, gateway and relay"
                )));
            }
        }
    }
    let listeners = [settings.socks5, settings.http_proxy, Some(settings.gateway)];
    let listeners: Vec<SocketAddr> = listeners.into_iter().flatten().collect();
    let is_twice =
        |(at, addr): (usize, &SocketAddr)| listeners.iter().skip(at + 1).any(|other| other == addr);
    if listeners.iter().enumerate().any(is_twice) {
        return Err(bad(
            "socks5, http-proxy and gateway each need an address of their own".to_owned(),
        ));
    }
    Ok(settings)
}

fn parse_userspace(value: &str) -> Result<UserspaceMode, LocalError> {
    match value {
        "auto" => Ok(UserspaceMode::Auto),
        other => parse_switch("userspace", other)
            .map(|is_on| {
                if is_on {
                    UserspaceMode::On
                } else {
                    UserspaceMode::Off
                }
            })
            .map_err(|_| bad(format!("`userspace` takes on, off or auto, not `{other}`"))),
    }
}

/// An address to listen at, or none.
fn parse_listener(key: &str, value: &str) -> Result<Option<SocketAddr>, LocalError> {
    match value {
        "off" | "none" => Ok(None),
        other => parse_loopback(key, other).map(Some),
    }
}

/// Whoever reaches these ports speaks for this node: they are for this machine alone.
fn parse_loopback(key: &str, value: &str) -> Result<SocketAddr, LocalError> {
    let addr = match value.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        Err(_) => value.parse::<SocketAddr>(),
    };
    match addr {
        Ok(addr) if addr.ip().is_loopback() && addr.port() != 0 => Ok(addr),
        Ok(_) | Err(_) => Err(bad(format!(
            "`{key}` takes a port, or a loopback address with one such as 127.0.0.1:1055, not `{value}`"
        ))),
    }
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
