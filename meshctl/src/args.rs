//! The command line: clap types, and the small parsers of their values.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 meshd is not running, 4 needs login or approval,
5 no reply or not found, 6 refused by policy, 7 degraded (answers, but not as asked)";

/// Join a mesh, use its models, share your own.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Args {
    /// The control socket of meshd
    #[arg(long, global = true, env = "MESHD_SOCKET",
        hide_env_values = true, value_name = "PATH", default_value = mesh_proto::local::SOCKET_PATH)]
    pub(crate) socket: PathBuf,

    /// Print one JSON object on standard output, nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say more about what is being done
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join a mesh, or switch the node on again
    Up(UpArgs),
    /// Switch the node off; it stays a member of its mesh
    Down,
    /// Leave the mesh and forget the node's identity
    Logout,
    /// Wait until the mesh can be used
    Wait(WaitArgs),
    /// Show this node, its peers and what is wrong
    Status(StatusArgs),
    /// Probe the way to a node
    Ping(PingArgs),
    /// Show what the network around this node lets through
    Netcheck,
    /// List the models that the mesh serves
    Models(ModelsArgs),
    /// Chat with a model
    Run(RunArgs),
    /// Share this machine's models, or see what is shared
    Share(ShareArgs),
    /// Change settings, or see them
    Set(SetArgs),
    /// Show how names are wired into this system
    Dns(DnsArgs),
    /// Print meshd's metrics in Prometheus' text format
    Metrics,
    /// Write all that helps to find a fault, without secrets, to a file
    Bugreport(BugreportArgs),
    /// Make a new tunnel key
    Rotate,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the versions of meshctl and meshd
    Version,
    /// Write the manual pages
    #[command(hide = true)]
    Man(ManArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    /// The auth key: itself, file:PATH, or - for standard input; needed once
    #[arg(
        long,
        env = "PROXIMA_AUTH_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) auth_key: Option<String>,

    /// The name to ask for; this machine's host name otherwise
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// How long to wait for the mesh
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitState {
    /// The overlay works, if need be from the last known map
    Running,
    /// The overlay works, the coordinator is heard and names are served
    Ready,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WaitArgs {
    /// What to wait for
    #[arg(
        long = "for",
        value_enum,
        default_value = "running",
        value_name = "STATE"
    )]
    pub(crate) state: WaitState,

    /// How long to wait at most; for ever otherwise
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Whether meshd answers
    Live,
    /// Whether the mesh can be used
    Ready,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Answer by the exit code, for probes
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) check: Option<Check>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PingArgs {
    /// A node's name, DNS name, id or overlay address
    #[arg(value_name = "NODE")]
    pub(crate) target: String,

    /// How many probes to send
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,

    /// How long to wait for each answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ModelsArgs {
    /// Only models whose name holds this text, or fits this pattern (`llama3*`)
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The model, as `meshctl models` lists it
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,

    /// What to ask; a conversation otherwise. Text on standard input is added to it
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Vec<String>,

    /// Instructions that stand before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// Print the answer when it is whole
    #[arg(long)]
    pub(crate) no_stream: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ShareArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ShareCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShareCommand {
    /// Show what is shared
    Status,
    /// Start sharing
    On(ShareOptions),
    /// Stop sharing
    Off,
    /// Change what is shared, with whom and how much
    Set(ShareOptions),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct ShareOptions {
    /// Models to share, by name or pattern (`llama3*`), comma-separated; `all` for all
    #[arg(long, value_name = "PATTERN,…", value_delimiter = ',')]
    pub(crate) models: Option<Vec<String>>,

    /// With whom: everyone, mine (your own nodes), or users:NAME,NAME
    #[arg(long, value_name = "WHO")]
    pub(crate) audience: Option<String>,

    /// How many requests to work on at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: Option<u32>,

    /// The URL of a model server on this machine, repeatable; `auto` to find them
    #[arg(long, value_name = "URL")]
    pub(crate) backend: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetArgs {
    /// names=direct|gateway, dns=on|off, operator=USER|none; without any, shows all
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) values: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DnsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DnsCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DnsCommand {
    /// Show how names are wired into this system
    Status,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BugreportArgs {
    /// The file to write; - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ManArgs {
    /// The folder to write one page a command to; the main page on standard output otherwise
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

/// Reads `30s`, `1m30s`, `500ms`, `2h` or a bare number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write it like 30s, 500ms or 2m");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(u64::from(seconds)));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let number = u64::from(number.parse::<u32>().map_err(|_| wrong())?);
        total += match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number * 60),
            "h" => Duration::from_secs(number * 3600),
            _ => return Err(wrong()),
        };
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_are_read() {
        let cases = [
            ("30s", 30_000),
            ("45", 45_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("0s", 0),
        ];
        for (text, ms) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in ["", "s", "1d", "-3s", "1.5s", "5 s", "99999999999s", "3s4"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_upsets_the_duration_parser(text in ".{0,24}") {
            let _ = parse_duration(&text);
        }
    }
}
