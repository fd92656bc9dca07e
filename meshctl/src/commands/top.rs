//! `top`: the hosts at work, on a screen of its own, or as text and JSON.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use mesh_proto::local::{PATH_TOP, Top};
use serde::Serialize;

use crate::args::TopArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table};
use crate::tui::state::{Row, State, Sum};
use crate::tui::{Key, Screen, gpu_cells, host_cells};

/// Hosts are asked at each look; more often is nothing but load.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// How long the two looks are apart that `--once` needs for the pace.
const ONCE_APART: Duration = Duration::from_secs(1);

/// One look, as programs read it.
#[derive(Serialize)]
struct Look<'a> {
    #[serde(flatten)]
    sum: Sum,
    hosts: Vec<&'a Row>,
}

pub(super) async fn run(args: &TopArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    if args.interval < INTERVAL_MIN {
        return Err(Failure::usage("the interval must be 200ms at least")
            .with_fix("meshctl top --interval 1s"));
    }
    let mut looks = Looks {
        client,
        state: State::default(),
        last: None,
    };
    if args.once {
        looks.look().await?;
        tokio::time::sleep(ONCE_APART).await;
        looks.look().await?;
        show(&looks.state, output)?;
        return Ok(Exit::Done);
    }
    if output.is_json() {
        loop {
            looks.look().await?;
            show(&looks.state, output)?;
            tokio::time::sleep(args.interval).await;
        }
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage("top needs a terminal")
            .with_fix_note("meshctl top --once", "prints one look as text")
            .with_fix_note("meshctl top --json", "prints one object a look"));
    }
    // A daemon that is not there is told before the screen is taken.
    looks.look().await?;
    watch(args.interval, looks).await
}

struct Looks<'a> {
    client: &'a Client,
    state: State,
    last: Option<Instant>,
}

impl Looks<'_> {
    async fn look(&mut self) -> Result<(), Failure> {
        let top: Top = self.client.get(PATH_TOP).await?;
        let now = Instant::now();
        let since = self
            .last
            .replace(now)
            .map_or(Duration::ZERO, |last| now - last);
        self.state.take(top, since);
        Ok(())
    }
}

async fn watch(interval: Duration, mut looks: Looks<'_>) -> Result<Exit, Failure> {
    let broken = |err| Failure::failed(format!("cannot draw on this terminal: {err}"));
    let mut screen = Screen::open().map_err(broken)?;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        screen.draw(&looks.state).map_err(broken)?;
        let key = tokio::select! {
            key = screen.key() => key,
            _ = ticks.tick() => {
                if let Some(key) = look_unless(&mut screen, &mut looks).await {
                    key
                } else {
                    continue;
                }
            }
        };
        match key {
            Key::Quit => return Ok(Exit::Done),
            Key::Sort => looks.state.sort_by_next(),
            Key::Redraw => {}
        }
    }
}

/// Looks, unless a key comes first: a daemon that is slow to answer keeps nobody from leaving.
async fn look_unless(screen: &mut Screen, looks: &mut Looks<'_>) -> Option<Key> {
    tokio::select! {
        key = screen.key() => Some(key),
        looked = looks.look() => {
            if let Err(failure) = looked {
                looks.state.trouble = Some(failure.message);
            }
            None
        }
    }
}

fn show(state: &State, output: &Output) -> Result<(), Failure> {
    let look = Look {
        sum: state.sum(),
        hosts: state.rows(),
    };
    output.answer(&look, |_| describe(state))
}

fn describe(state: &State) -> String {
    let rows = state.rows();
    if rows.is_empty() {
        return "Nobody shares a model with this node yet.\n".to_owned();
    }
    let mut hosts = Table::new([
        "HOST",
        "OWNER",
        "STATE",
        "IN WORK",
        "WAITING",
        "TOKENS/S",
        "MODELS",
        "IN MEMORY",
    ]);
    let mut gpus = Table::new(["GPU", "ON", "BUSY", "MEMORY", "HEAT", "POWER", "DRIVER"]);
    let mut has_gpus = false;
    for row in rows {
        hosts.row(host_cells(row));
        for gpu in row.host.live.iter().flat_map(|live| &live.gpus) {
            has_gpus = true;
            gpus.row(gpu_cells(row, gpu));
        }
    }
    if has_gpus {
        format!("{hosts}\n{gpus}")
    } else {
        hosts.to_string()
    }
}
