//! The command line, as types.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use coordinator::config::ConfigFile;
use ipnet::Ipv4Net;
use mesh_proto::id::{NodeName, Tag, UserName};
use mesh_proto::key::CoordinatorKey;

/// The control plane of a Proxima mesh: lets nodes in and tells each of the others. It never sees their traffic.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator. The first run prints a one-use auth key.
    Serve(ServeArgs),
    /// Make, list and revoke auth keys (for nodes) and API keys (for operators afar).
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// List, show, rename, expire and delete nodes.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Make, list, rename and delete users.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Run a relay alone, or let relays in and list them where the coordinator runs.
    Relay(RelayArgs),
    /// Tell how the coordinator fares; exits 0 only when all is well.
    Health(Access),
    /// Print a completion script for a shell.
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML); flags go before it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// TCP address to listen on; repeatable [default: 0.0.0.0:7443 and [::]:7443]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where keys and the database are kept [default: /var/lib/proxima-coordinator]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Public URL that goes into auth keys; repeatable [default: this machine's addresses]
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// UDP address that answers STUN; repeatable [default: as --listen, and one port higher]
    #[arg(long, value_name = "ADDR:PORT")]
    stun: Vec<SocketAddr>,
    /// DNS suffix of the mesh [default: proxima]
    #[arg(long)]
    suffix: Option<String>,
    /// IPv4 pool of overlay addresses; only the first run takes it [default: a /16 of 10.0.0.0/8]
    #[arg(long, value_name = "NET")]
    ipv4_pool: Option<Ipv4Net>,
    /// Certificate chain of your own, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Days until a node must log in again; 0 for never [default: 180]
    #[arg(long, value_name = "DAYS")]
    node_key_expiry_days: Option<u64>,
    /// Seconds until an ephemeral node that is away is removed [default: 300]
    #[arg(long, value_name = "SECONDS")]
    ephemeral_timeout_seconds: Option<u64>,
    /// The user that the first run makes [default: admin]
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
    /// Whether to carry sealed packets between nodes that have no direct path [default: true]
    #[arg(long, value_name = "BOOL")]
    relay: Option<bool>,
    /// Megabits a second that each node may send through the relay; 0 for any [default: 0]
    #[arg(long, value_name = "MBIT")]
    relay_rate_mbit: Option<u64>,
}

impl ServeArgs {
    /// The flags in the form of the file.
    pub(crate) fn into_file(self) -> ConfigFile {
        let given = |list: Vec<SocketAddr>| (!list.is_empty()).then_some(list);
        ConfigFile {
            listen: given(self.listen),
            state_dir: self.state_dir,
            url: (!self.url.is_empty()).then_some(self.url),
            stun: given(self.stun),
            suffix: self.suffix,
            ipv4_pool: self.ipv4_pool,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            node_key_expiry_days: self.node_key_expiry_days,
            ephemeral_timeout_seconds: self.ephemeral_timeout_seconds,
            user: self.user,
            relay: self.relay,
            relay_rate_mbit: self.relay_rate_mbit,
        }
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RelayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RelayCommand>,
    #[command(flatten)]
    pub(crate) run: RelayRunArgs,
}

/// A relay that runs alone.
#[derive(Debug, Args)]
pub(crate) struct RelayRunArgs {
    /// The key that `coordinator relay add` printed; only the first run needs it
    #[arg(
        long,
        value_name = "KEY",
        env = "PROXIMA_RELAY_KEY",
        hide_env_values = true
    )]
    pub(crate) auth_key: Option<String>,
    /// TCP address to listen on; repeatable [default: 0.0.0.0:7443 and [::]:7443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Public URL by which nodes reach it; repeatable [default: this machine's addresses]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Vec<String>,
    /// UDP address that answers STUN; repeatable [default: as --listen, and one port higher]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) stun: Vec<SocketAddr>,
    /// Where its key and what it knows are kept
    #[arg(long, value_name = "DIR", default_value = coordinator::RELAY_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Megabits a second that each node may send; 0 for any
    #[arg(long, value_name = "MBIT", default_value_t = 0)]
    pub(crate) rate_mbit: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Let a relay in: prints the key for its first run.
    Add {
        name: NodeName,
        /// How long the key is valid, such as 30m, 12h, 7d [default: 1h]
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        ttl: Option<u64>,
        #[command(flatten)]
        access: Access,
    },
    /// List relays that stand alone.
    List(Access),
    /// Remove a relay: nodes use it no more, and it serves nobody.
    Remove {
        name: NodeName,
        #[command(flatten)]
        access: Access,
    },
}

/// How an operator's command reaches the coordinator, and how it prints.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// State directory of the coordinator on this machine
    #[arg(long, value_name = "DIR", default_value = coordinator::config::STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Admin socket of the coordinator on this machine [default: coordinator.sock in the state directory]
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    pub(crate) socket: Option<PathBuf>,
    /// URL of a coordinator elsewhere
    #[arg(long, requires = "api_key_file", requires = "coordinator_key")]
    pub(crate) url: Option<String>,
    /// File with an API key for it
    #[arg(long, value_name = "FILE", env = "PROXIMA_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Its coordinator key, which proves that it is the right one
    #[arg(long, value_name = "ck:KEY", env = "PROXIMA_COORDINATOR_KEY")]
    pub(crate) coordinator_key: Option<CoordinatorKey>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make an auth key: for one node and one hour, if not told otherwise.
    Create {
        /// Whose the nodes become [default: the first user]
        #[arg(long)]
        user: Option<UserName>,
        /// Let more than one node join by it
        #[arg(long)]
        reusable: bool,
        /// Remove its nodes some time after they disconnect
        #[arg(long)]
        ephemeral: bool,
        /// Give its nodes a tag in place of the user's rights; repeatable
        #[arg(long = "tag", value_name = "tag:NAME")]
        tags: Vec<Tag>,
        /// How long it is valid, such as 30m, 12h, 7d
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        ttl: Option<u64>,
        #[command(flatten)]
        access: Access,
    },
    /// List auth keys.
    List(Access),
    /// Revoke an auth key; nodes that joined by it stay.
    Revoke {
        /// The part of the key between the first two underscores
        prefix: String,
        #[command(flatten)]
        access: Access,
    },
    /// Make an API key, for operating this coordinator from another machine.
    ApiCreate {
        /// How long it is valid, such as 12h, 90d [default: 90d]
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        ttl: Option<u64>,
        #[command(flatten)]
        access: Access,
    },
    /// List API keys.
    ApiList(Access),
    /// Delete an API key.
    ApiDelete {
        /// The part of the key between the first two underscores
        prefix: String,
        #[command(flatten)]
        access: Access,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes.
    List(Access),
    /// Show one node.
    Show {
        /// Its name or id
        node: String,
        #[command(flatten)]
        access: Access,
    },
    /// Rename a node.
    Rename {
        /// Its name or id
        node: String,
        new_name: NodeName,
        #[command(flatten)]
        access: Access,
    },
    /// Expire a node's key now: peers drop it, and it must log in again.
    Expire {
        /// Its name or id
        node: String,
        #[command(flatten)]
        access: Access,
    },
    /// Delete a node. Its address is never given to another.
    Delete {
        /// Its name or id
        node: String,
        #[command(flatten)]
        access: Access,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user.
    Create {
        name: UserName,
        #[command(flatten)]
        access: Access,
    },
    /// List users.
    List(Access),
    /// Rename a user.
    Rename {
        name: UserName,
        new_name: UserName,
        #[command(flatten)]
        access: Access,
    },
    /// Delete a user that owns no nodes.
    Delete {
        name: UserName,
        #[command(flatten)]
        access: Access,
    },
}

/// A time such as `90`, `90s`, `30m`, `12h`, `7d`, in seconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, text.as_bytes().last().copied()),
        None => (text, None),
    };
    let factor = match unit {
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 24 * 3600,
        Some(_) | None => 1,
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a time such as 30m, 12h or 7d".to_owned())?;
    number
        .checked_mul(factor)
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "the time must be above zero".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_seconds("90"), Ok(90));
        assert_eq!(parse_seconds("30m"), Ok(1800));
        assert_eq!(parse_seconds("7d"), Ok(604_800));
        for bad in ["", "0", "d", "-1h", "1w", "999999999999999999d"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
