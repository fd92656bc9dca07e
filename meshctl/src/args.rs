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
    /// The control socket of meshd [default: /run/proxima/meshd.sock, or one of your own where nobody runs that]
    #[arg(
        long,
        global = true,
        env = "MESHD_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(crate) socket: Option<PathBuf>,

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
    /// Tell why one node reaches a port of another, or does not
    Why(WhyArgs),
    /// Show what the network around this node lets through
    Netcheck,
    /// List the models that the mesh serves
    Models(ModelsArgs),
    /// Watch the hosts at work: requests, tokens a second, GPUs
    Top(TopArgs),
    /// Chat with a model
    Run(RunArgs),
    /// Share this machine's models, or see what is shared
    Share(ShareArgs),
    /// Show what was used of this machine's models, by guest, model and day
    Usage(UsageArgs),
    /// Change settings, or see them
    Set(SetArgs),
    /// Show how names are wired into this system, or ask for one
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

    /// Do without a network interface, now and for good: programs use the proxies that `meshctl status` shows
    #[arg(long)]
    pub(crate) userspace: bool,

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

    /// How many probes to send; otherwise until one comes directly, 10 at most
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,

    /// How long after a probe the next one is sent
    #[arg(short = 'i', long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) interval: Duration,

    /// How long to wait for each answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WhyArgs {
    /// Who wants to reach it: a node's name, DNS name, id or overlay address; `self` for this one
    #[arg(value_name = "FROM")]
    pub(crate) from: String,

    /// What it wants to reach: a node or a model, and a TCP port, such as gpu1:11434
    #[arg(value_name = "TO:PORT")]
    pub(crate) to: String,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ModelsCommand>,

    /// Only models whose name holds this text, or fits this pattern (`llama3*`)
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Option<String>,

    /// Only models on this host
    #[arg(long, value_name = "NODE")]
    pub(crate) host: Option<String>,

    /// Only models that can do this, such as tools, vision, embedding or thinking; repeatable
    #[arg(long, value_name = "WHAT")]
    pub(crate) can: Vec<String>,

    /// Only models that some host has in memory
    #[arg(long)]
    pub(crate) loaded: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Let hosts know that you would like a model that nobody shares
    Want(WantArgs),
    /// Have a host pull a model, where its owner lets you
    Pull(PullArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PullArgs {
    /// The model, as Ollama's registry has it, such as llama3.2:1b
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,

    /// The host that should have it
    #[arg(long, value_name = "NODE")]
    pub(crate) on: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WantArgs {
    /// The model, as Ollama has it, such as llama3.2:1b
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,

    /// Take the wish back
    #[arg(long = "not")]
    pub(crate) is_over: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TopArgs {
    /// How long after one look the next one comes
    #[arg(short = 'i', long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub(crate) interval: Duration,

    /// Look once, print it and end
    #[arg(long)]
    pub(crate) once: bool,
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
    /// Show which models the mesh would like to have
    Suggestions,
    /// Bound how much guests may use; it stands in the place of the limit for the same guests and models
    Limit(LimitArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LimitArgs {
    /// Whom it bounds: each (each user by itself), all (all guests together), or user:NAME
    #[arg(value_name = "GUESTS")]
    pub(crate) who: String,

    /// For which models, by name or pattern; all of them together otherwise
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    pub(crate) models: String,

    /// How many requests may be in work at once; more of them wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrent: Option<u32>,

    /// How many requests a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_minute: Option<u32>,

    /// How many tokens, read and generated, a day of UTC
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) tokens_per_day: Option<u64>,

    /// Take the limit away
    #[arg(long, conflicts_with_all = ["concurrent", "per_minute", "tokens_per_day"])]
    pub(crate) none: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageBy {
    /// One row for each guest
    Guest,
    /// One row for each model
    Model,
    /// One row for each day
    Day,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UsageArgs {
    /// One row for what; for each guest and model otherwise
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) by: Option<UsageBy>,

    /// How many days back, today included
    #[arg(long, value_name = "N", default_value = "30", value_parser = clap::value_parser!(u32).range(1..=400))]
    pub(crate) days: u32,
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

    /// When to serve nobody but yourself, by this machine's clock: 22:00-07:00, or 'mon-fri 09:00-18:00;sat,sun 00:00-24:00';
    /// `none` for never
    #[arg(long, value_name = "HOURS;…", value_delimiter = ';')]
    pub(crate) quiet: Option<Vec<String>>,

    /// Whether guests wait while your other programs use the GPU
    #[arg(long, value_enum, value_name = "on|off")]
    pub(crate) pause_on_gpu_use: Option<Switch>,

    /// The most tokens that a guest's request may have generated; 0 for what is built in
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=32_768))]
    pub(crate) max_output: Option<u32>,

    /// The most tokens of context for a guest's request; 0 for what the model has
    #[arg(long, value_name = "N")]
    pub(crate) max_context: Option<u32>,

    /// The most pictures in a guest's request; 0 for what is built in
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=32))]
    pub(crate) max_images: Option<u32>,

    /// The largest body of a guest's request, in MiB; 0 for what is built in
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(..=32))]
    pub(crate) max_body: Option<u32>,

    /// Who may have this machine pull models: users:NAME,NAME, or none
    #[arg(long, value_name = "WHO")]
    pub(crate) pulls: Option<String>,

    /// How much of the disk the models may take that were pulled so, such as 50GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) pull_budget: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SetArgs {
    /// names=direct|gateway, dns=on|off, operator=USER|none, relay=on|off, userspace=on|off|auto, and the ports of userspace
    /// mode: socks5, http-proxy, gateway; without any, shows all
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
    /// Ask this node's own zone, whatever the system's resolver does
    Query(DnsQueryArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DnsQueryArgs {
    /// The name, such as llama3.2.proxima
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// The record type
    #[arg(value_name = "TYPE", default_value = "A")]
    pub(crate) kind: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BugreportArgs {
    /// The file to write; - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Put tokens in the place of names, addresses, ids and keys, the same one for the same value
    #[arg(short, long)]
    pub(crate) anonymous: bool,
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

/// Reads `50GiB`, `500MiB`, `1TiB`, `20GB` or a bare number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write it like 50GiB or 500MB");
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
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

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("50GiB", 50 << 30), ("7", 7), ("20 GB", 20_000_000_000)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "1KB", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_upsets_the_duration_parser(text in ".{0,24}") {
            let _ = parse_duration(&text);
        }
    }
}
