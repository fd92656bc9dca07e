//! Settings of `coordinator serve`: flags over the file over defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use mesh_proto::id::UserName;
use serde::Deserialize;

use crate::ipam;
use crate::state_dir::socket_path;

/// The port of coordinators.
pub const PORT: u16 = 7443;
/// Where state is kept by default.
pub const STATE_DIR: &str = "/var/lib/proxima-coordinator";

const SECONDS_A_DAY: u64 = 24 * 3600;
/// For limits that people give in megabits.
pub const BYTES_PER_MEGABIT: u64 = 125_000;

/// The file, and the flags in the same form. Every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// TCP addresses that nodes and operators reach.
    pub listen: Option<Vec<SocketAddr>>,
    /// Where state is kept.
    pub state_dir: Option<PathBuf>,
    /// The public URLs that go into auth keys.
    pub url: Option<Vec<String>>,
    /// UDP addresses that answer STUN; empty for none.
    pub stun: Option<Vec<SocketAddr>>,
    /// The DNS suffix of the mesh.
    pub suffix: Option<String>,
    /// The IPv4 pool; only the first run takes it.
    pub ipv4_pool: Option<Ipv4Net>,
    /// A certificate chain of the operator's own, PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Days until a node must log in again; 0 for never.
    pub node_key_expiry_days: Option<u64>,
    /// Seconds until an ephemeral node that is away is removed.
    pub ephemeral_timeout_seconds: Option<u64>,
    /// The user that the first run makes.
    pub user: Option<UserName>,
    /// Whether it carries packets between nodes that have no direct path.
    pub relay: Option<bool>,
    /// How many megabits a second each node may send through the relay; 0 for any.
    pub relay_rate_mbit: Option<u64>,
}

/// What the coordinator runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// TCP addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Whether an address that the machine lacks is left out: the default must work where there is no IPv6.
    pub is_listen_default: bool,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// The admin socket.
    pub socket: PathBuf,
    /// The public URLs; empty to find them out.
    pub urls: Vec<String>,
    /// UDP addresses for STUN; when absent those of TCP, and one port higher.
    pub stun: Option<Vec<SocketAddr>>,
    /// The DNS suffix.
    pub suffix: String,
    /// The IPv4 pool, where the operator names one.
    pub ipv4_pool: Option<Ipv4Net>,
    /// Certificate chain and private key files of the operator's own.
    pub tls_files: Option<(PathBuf, PathBuf)>,
    /// How long a node key is good.
    pub node_key_ttl: Option<Duration>,
    /// How long an ephemeral node may be away.
    pub ephemeral_ttl: Duration,
    /// The first user.
    pub user: UserName,
    /// Whether it is a relay too.
    pub is_relay: bool,
    /// How many bytes a second each node may send through the relay; 0 for any.
    pub relay_bytes_per_second: u64,
    /// How long nodes count as online after a start.
    pub start_grace: Duration,
}

impl ConfigFile {
    /// Reads a file. Unknown keys are errors that name the line.
    ///
    /// # Errors
    /// When it cannot be read or is not as it must be.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        toml::from_str(&text)
            .with_context(|| format!("the configuration {} is wrong", path.display()))
    }

    /// These values where they are given, and `other`'s where not.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            state_dir: self.state_dir.or(other.state_dir),
            url: self.url.or(other.url),
            stun: self.stun.or(other.stun),
            suffix: self.suffix.or(other.suffix),
            ipv4_pool: self.ipv4_pool.or(other.ipv4_pool),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            node_key_expiry_days: self.node_key_expiry_days.or(other.node_key_expiry_days),
            ephemeral_timeout_seconds: self
                .ephemeral_timeout_seconds
                .or(other.ephemeral_timeout_seconds),
            user: self.user.or(other.user),
            relay: self.relay.or(other.relay),
            relay_rate_mbit: self.relay_rate_mbit.or(other.relay_rate_mbit),
        }
    }

    /// Checks the values and fills in the defaults.
    ///
    /// # Errors
    /// When a value cannot be used; the text says which and what would do.
    pub fn into_settings(self) -> anyhow::Result<Settings> {
        let tls_files = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("`tls_cert` and `tls_key` go together: give both or neither"),
        };
        let suffix = self.suffix.unwrap_or_else(|| "proxima".to_owned());
        if !is_domain(&suffix) {
            bail!(
                "`suffix` must be a domain in small letters without dots at its ends, such as proxima"
            );
        }
        if let Some(pool) = self.ipv4_pool
            && (!ipam::is_usable(pool) || pool.trunc() != pool)
        {
            bail!(
                "`ipv4_pool` must be a network of /8 to /22 with no host bits set, such as 10.77.0.0/16"
            );
        }
        let urls = self.url.unwrap_or_default();
        check_urls(&urls)?;
        if self.listen.as_ref().is_some_and(Vec::is_empty) {
            bail!("`listen` must name an address, such as 0.0.0.0:{PORT}");
        }
        let is_listen_default = self.listen.is_none();
        let state_dir = self.state_dir.unwrap_or_else(|| STATE_DIR.into());
        let expiry_days = self.node_key_expiry_days.unwrap_or(180);
        let expiry = Duration::from_secs(expiry_days.saturating_mul(SECONDS_A_DAY));
        Ok(Settings {
            listen: self.listen.unwrap_or_else(default_listen),
            is_listen_default,
            socket: socket_path(&state_dir),
            state_dir,
            urls,
            stun: self.stun,
            suffix,
            ipv4_pool: self.ipv4_pool,
            tls_files,
            node_key_ttl: (expiry_days > 0).then_some(expiry),
            ephemeral_ttl: Duration::from_secs(self.ephemeral_timeout_seconds.unwrap_or(300)),
            user: match self.user {
                Some(user) => user,
                None => "admin".parse()?,
            },
            is_relay: self.relay.unwrap_or(true),
            relay_bytes_per_second: self
                .relay_rate_mbit
                .unwrap_or(0)
                .saturating_mul(BYTES_PER_MEGABIT),
            start_grace: Duration::from_secs(10),
        })
    }
}

/// All addresses of the machine at the usual port.
#[must_use]
pub fn default_listen() -> Vec<SocketAddr> {
    vec![
        SocketAddr::from(([0, 0, 0, 0], PORT)),
        SocketAddr::from(([0_u16; 8], PORT)),
    ]
}

/// Checks public URLs.
///
/// # Errors
/// When one is not `https://HOST` or `https://HOST:PORT`.
pub fn check_urls(urls: &[String]) -> anyhow::Result<()> {
    for url in urls {
        if url.len() > 255 || host_of(url).is_none() {
            bail!("`url` must be https://HOST or https://HOST:PORT with nothing behind it: {url}");
        }
    }
    Ok(())
}

/// The host of a coordinator's URL; `None` when it is not `https://HOST[:PORT]`.
pub(crate) fn host_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let is_bare = url.path_and_query().is_none_or(|path| path.as_str() == "/");
    let host = url.host()?;
    let is_plain = url
        .authority()
        .is_some_and(|authority| !authority.as_str().contains('@'));
    (url.scheme_str() == Some("https") && is_bare && is_plain && !host.is_empty())
        .then(|| unbracketed(host).to_owned())
}

/// The host of a URL as names and addresses are written elsewhere: an IPv6 address without its brackets.
#[must_use]
pub fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_domain(text: &str) -> bool {
    text.len() <= 200
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests;
