//! Whether streams keep all their words while the hosts that they come from are killed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome};
use crate::mesh::{Node, join_all};
use crate::model::{LlamaServer, Ollama, OpenAiOnly};
use crate::net::{Host, Lab};
use crate::process::{ensure_success, stdout};
use crate::tool;
use crate::wait::wait_until;

const READY: Duration = Duration::from_secs(15);
/// Between two blows.
const PAUSE: Duration = Duration::from_millis(700);
/// How long what was killed stays away.
const AWAY: Duration = Duration::from_millis(500);
/// Streams of one guest at once.
const N_AT_ONCE: usize = 4;
const N_WORDS: usize = 48;
/// The guests, and the model that each asks for.
const GUESTS: [(&str, &str); 3] = [("eta", "tiny"), ("theta", "other"), ("iota", "tiny")];

/// What stands in front of a host's llama-server.
enum Front<'lab> {
    Ollama { _it: Ollama<'lab> },
    Nothing,
    OpenAi { _it: OpenAiOnly },
}

#[derive(Clone, Copy)]
enum Kind {
    Ollama,
    Llama,
    OpenAi,
}

const HOSTS: [(&str, &str, Kind); 4] = [
    ("beta", "tiny", Kind::Ollama),
    ("gamma", "tiny", Kind::Ollama),
    ("delta", "other", Kind::Llama),
    ("epsilon", "other", Kind::OpenAi),
];

/// The model server of a host. Dropping it kills it without a word.
struct Server<'lab> {
    _front: Front<'lab>,
    _llama: LlamaServer<'lab>,
}

impl<'lab> Server<'lab> {
    fn start(host: &'lab Host, model: &str, kind: Kind) -> Result<Self> {
        let port = match kind {
            Kind::Llama => 8080,
            Kind::Ollama | Kind::OpenAi => 9001,
        };
        let llama = LlamaServer::start(host, model, port)?;
        let front = match kind {
            Kind::Ollama => Front::Ollama {
                _it: Ollama::start(host, "127.0.0.1:11434", &[(model, &llama)], &[])?,
            },
            Kind::Llama => Front::Nothing,
            Kind::OpenAi => Front::OpenAi {
                _it: OpenAiOnly::start(host, "127.0.0.1:8080", &llama)?,
            },
        };
        Ok(Self {
            _front: front,
            _llama: llama,
        })
    }
}

/// A host with its model server, which is away for a moment now and then.
struct Machine<'lab> {
    node: Node<'lab>,
    model: &'static str,
    kind: Kind,
    server: Option<Server<'lab>>,
}

impl Machine<'_> {
    /// Kills its daemon or its model server without a word, and starts it again.
    fn strike(&mut self, is_daemon: bool) -> Result<()> {
        if is_daemon {
            self.node.kill();
            thread::sleep(AWAY);
            return self.node.start_again();
        }
        self.server = None;
        thread::sleep(AWAY);
        self.server = Some(Server::start(self.node.host, self.model, self.kind)?);
        Ok(())
    }
}

/// Runs so many streams.
///
/// # Errors
/// When something does not come up, or a client fails.
pub fn run(n_streams: usize) -> Result<Outcome> {
    let names: Vec<&str> = HOSTS.iter().map(|(name, _, _)| *name).collect();
    let guests: Vec<&str> = GUESTS.iter().map(|(name, _)| *name).collect();
    let all = [&["control"][..], &names, &guests].concat();
    let lab = Lab::new(&all)?;
    let (_coordinator, mut nodes) = join_all(&lab, &[&names[..], &guests].concat())?;
    let guests = nodes.split_off(HOSTS.len());
    let mut machines = Vec::new();
    for (node, (_, model, kind)) in nodes.into_iter().zip(HOSTS) {
        let server = Some(Server::start(node.host, model, kind)?);
        node.share()?;
        machines.push(Machine {
            node,
            model,
            kind,
            server,
        });
    }
    for guest in &guests {
        guest.use_mesh_dns()?;
        wait_until("the guest knows all hosts", READY, || {
            let models = guest.models()?.models;
            let n_hosts: usize = models.iter().map(|model| model.hosts.len()).sum();
            ensure!(n_hosts == HOSTS.len(), "{models:?}");
            Ok(())
        })?;
    }
    let n_running = AtomicUsize::new(guests.len());
    let (heard, struck) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> = guests
            .iter()
            .zip(GUESTS)
            .map(|(guest, (_, model))| {
                let n_running = &n_running;
                scope.spawn(move || {
                    let heard = stream(guest, model, n_streams.div_ceil(GUESTS.len()));
                    n_running.fetch_sub(1, Ordering::Relaxed);
                    heard
                })
            })
            .collect();
        let struck = strike(&mut machines, &n_running);
        let heard: Vec<Result<Value>> = clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a client's thread panicked")))
            })
            .collect();
        Ok((heard.into_iter().collect::<Result<Vec<_>>>()?, struck?))
    })?;
    outcome(&heard, struck)
}

/// Strikes a host at random, the same ones in each run, until all clients are done; tells how often.
fn strike(machines: &mut [Machine<'_>], n_running: &AtomicUsize) -> Result<[usize; 2]> {
    let mut state: usize = 0x2545_f491;
    let mut n_struck = [0; 2];
    while n_running.load(Ordering::Relaxed) > 0 {
        thread::sleep(PAUSE);
        // Xorshift: good enough to choose one of four.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let n_machines = machines.len();
        let machine = machines
            .get_mut(state % n_machines)
            .context("no such host")?;
        let is_daemon = (state >> 8).is_multiple_of(2);
        machine.strike(is_daemon)?;
        n_struck[usize::from(is_daemon)] += 1;
    }
    Ok(n_struck)
}

fn stream(guest: &Node<'_>, model: &str, n_streams: usize) -> Result<Value> {
    // A counting model's words begin with the first letter of its name.
    let letter = model.get(..1).context("no name")?;
    // No limit of its time: there are thousands, and those of the script end each.
    let mut command = guest.host.command(tool::python()?);
    command
        .arg(tool::root().join("e2e/bench/streams.py"))
        .args(["ollama.proxima:11434", model, letter])
        .args([n_streams, N_AT_ONCE, N_WORDS].map(|n| n.to_string()));
    let output = command.output()?;
    ensure_success("streams.py", &output)?;
    serde_json::from_slice(&output.stdout).with_context(|| stdout(&output))
}

fn outcome(heard: &[Value], [n_servers, n_daemons]: [usize; 2]) -> Result<Outcome> {
    let sum = |key: &str| -> Result<u64> {
        heard
            .iter()
            .map(|one| {
                one[key]
                    .as_u64()
                    .with_context(|| format!("no {key}: {one}"))
            })
            .sum()
    };
    let (whole, refused, told) = (sum("whole")?, sum("refused")?, sum("told")?);
    let (silent, wrong) = (sum("silent")?, sum("wrong")?);
    let mut text = format!(
        "| streams | whole | refused before the first byte | ended by an error that is told | model servers killed | daemons killed |\n| --- | --- | --- | --- | --- | --- |\n| {} | {whole} | {refused} | {told} | {n_servers} | {n_daemons} |\n",
        whole + refused + told + silent + wrong
    );
    for example in heard.iter().filter_map(|one| one["examples"].as_array()) {
        for example in example {
            text += &format!("\n{example}\n");
        }
    }
    let bar = |what: &str, n: u64| {
        let n = u32::try_from(n).map_or(f64::INFINITY, f64::from);
        Bar::at_most(0.0, "streams", what, vec![Some(n)])
    };
    Ok(Outcome {
        text,
        bars: vec![
            bar(
                "hosts are killed: a word lost, doubled or out of order",
                wrong,
            ),
            bar("hosts are killed: an end without a word of why", silent),
        ],
    })
}
