//! The daemon's configuration file: TOML, every key optional, unknown keys refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::dial::{Dialer, Proxy};

/// Where the configuration is read from when none is named.
pub const DEFAULT_PATH: &str = "/etc/proxima/meshd.toml";

/// What the file may set. Flags on the command line win over it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys, membership and the last map.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The name of the overlay interface, at most 15 characters.
    pub interface: String,
    /// The UDP port of tunnels; 0 takes a free one. When it is taken, a free one is used.
    pub listen_port: u16,
    /// The overlay MTU in bytes; 0 is as much as this machine's links carry.
    pub mtu: u16,
    /// Data-plane workers; 0 is one a core, at most 8.
    pub workers: usize,
    /// Whether to point the system's resolver at the mesh's names.
    pub dns: bool,
    /// Whether to ask the gateway to forward a port to this node (PCP, NAT-PMP, UPnP).
    pub port_mapping: bool,
    /// The TCP and UDP port of the relay that `meshctl set relay=on` offers.
    pub relay_port: u16,
    /// The URL of the HTTP proxy to coordinators and relays; the environment's (`HTTPS_PROXY`) when absent, none when
    /// empty.
    pub proxy: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/proxima".into(),
            socket: mesh_proto::local::SOCKET_PATH.into(),
            interface: "proxima0".to_owned(),
            listen_port: 41820,
            mtu: 0,
            workers: 0,
            dns: true,
            port_mapping: true,
            relay_port: 41821,
            proxy: None,
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that is not understood; the message holds line and column.
    #[error("the configuration {path} is wrong: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
}

impl Config {
    /// Reads a file; the default path may be missing, a named one may not.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read or understood.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, is_named) =
            path.map_or_else(|| (Path::new(DEFAULT_PATH), false), |path| (path, true));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|message| ConfigError::Invalid {
                path: path.to_owned(),
                message,
            }),
            Err(err) if !is_named && err.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// How to reach coordinators and relays: by the proxy of the file, by that of the environment, or straight.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        let var = |name: &str| std::env::var(name).ok();
        let proxy = match &self.proxy {
            None => Proxy::of_environment(var),
            Some(url) if url.is_empty() => Ok(None),
            Some(url) => {
                let except = var("NO_PROXY").or_else(|| var("no_proxy"));
                Proxy::parse(url, &except.unwrap_or_default()).map(Some)
            }
        };
        Dialer::new(proxy.unwrap_or_else(|err| {
            tracing::warn!(%err, "the environment's HTTPS_PROXY is not used");
            None
        }))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|err| err.to_string())?;
        if config.interface.is_empty()
            || config.interface.len() > 15
            || config.interface.contains(['/', ' '])
        {
            return Err(format!(
                "interface: `{}` is no interface name (1 to 15 characters)",
                config.interface
            ));
        }
        if config.mtu != 0 && !(1280..=9000).contains(&config.mtu) {
            let mtu = config.mtu;
            return Err(format!(
                "mtu: {mtu} is neither between 1280 and 9000 nor 0, as much as the links carry"
            ));
        }
        if let Some(url) = config.proxy.as_ref().filter(|url| !url.is_empty()) {
            Proxy::parse(url, "").map_err(|err| format!("proxy: {err}"))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let message = Config::parse("mtu = 1280\nmut = 1280\n").unwrap_err();
        assert!(
            message.contains("line 2") && message.contains("mut"),
            "{message}"
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(Config::parse("mtu = 500").is_err());
        assert!(Config::parse("proxy = \"socks5://proxy\"").is_err());
        assert!(Config::parse("proxy = \"http://proxy:8080\"").is_ok());
        assert!(Config::parse("proxy = \"\"").is_ok());
        assert!(Config::parse("interface = \"a-name-that-is-too-long\"").is_err());
    }

    #[test]
    fn the_packaged_example_is_the_default() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../packaging/config/meshd.toml"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let uncommented: String = text
            .lines()
            .filter_map(|line| line.strip_prefix("#: "))
            .fold(String::new(), |all, line| all + line + "\n");
        assert_eq!(Config::parse(&uncommented), Ok(Config::default()));
    }
}
