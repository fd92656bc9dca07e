//! `make demo`: a coordinator and three nodes on one machine, a real model on one of them, answers on another. As root each
//! is in a namespace of its own, with an interface; an ordinary user's are in userspace mode, on loopback.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::model::LlamaServer;
use e2e::net::{Lab, is_root};
use e2e::probe::{Request, dig};
use e2e::wait::wait_until;
use serde_json::{Value, json};

#[path = "demo/userspace.rs"]
mod userspace;

const MODEL: &str = "smollm2";
const QUESTION: &str = "In one short sentence: what is a mesh network?";

fn main() -> ExitCode {
    let start = Instant::now();
    // The lab is gone before the last line is printed; Ctrl-C takes it down too.
    match run(start) {
        Ok(()) => {
            println!(
                "\ndone in {:.1} s; nothing is left behind",
                start.elapsed().as_secs_f32()
            );
            ExitCode::SUCCESS
        }
        Err(err) => {
            println!(
                "\nthe demo failed after {:.1} s: {err:#}",
                start.elapsed().as_secs_f32()
            );
            ExitCode::FAILURE
        }
    }
}

fn run(start: Instant) -> Result<()> {
    let say = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f32());
    let hosts = ["control", "laptop", "desktop", "gpu"];
    let is_root = is_root() && !std::env::args().any(|arg| arg == "--userspace");
    let (lab, result) = if is_root {
        let lab = Lab::new(&hosts)?;
        let result = show(&lab, &say);
        (lab, result)
    } else {
        let lab = Lab::of_this_machine(&hosts)?;
        let result = userspace::show(&lab, &say);
        (lab, result)
    };
    if result.is_err() {
        lab.keep_logs();
    }
    result
}

fn show(lab: &Lab, say: &dyn Fn(&str)) -> Result<()> {
    say("four hosts are there: control, laptop, desktop, gpu");

    let coordinator = Coordinator::start(lab.host("control")?)?;
    say(&format!(
        "control: coordinator serve → {}, and a one-use auth key",
        coordinator.url
    ));

    // The slow start of the model server goes on while the nodes join.
    let gpu_host = lab.host("gpu")?;
    let (model, nodes) = std::thread::scope(|scope| {
        let model = scope.spawn(|| LlamaServer::start(gpu_host, MODEL, 8080));
        let nodes = join_all(lab, &coordinator, say);
        let model = model
            .join()
            .map_err(|_| anyhow::anyhow!("the model server's thread died"));
        (model, nodes)
    });
    let (_model, nodes) = (model??, nodes?);
    say("gpu: llama-server has loaded SmolLM2 135M, on loopback alone");
    let [laptop, desktop, gpu] = nodes.as_slice() else {
        unreachable!("three nodes were joined")
    };

    gpu.share()?;
    laptop.wait_model(MODEL, Duration::from_secs(10))?;
    say("gpu: meshctl share on → the model is in everybody's catalogue");

    let name = format!("{MODEL}.proxima");
    let address = wait_until("the name resolves", Duration::from_secs(5), || {
        let answer = dig(laptop.host, None, &name, "A", false)?;
        let address = answer.data.first().with_context(|| format!("{answer:?}"))?;
        ensure!(*address == gpu.ipv4()?.to_string(), "{answer:?}");
        Ok(address.clone())
    })?;
    say(&format!(
        "laptop: dig +short {name} → {address}, the overlay address of gpu"
    ));

    let url = format!("http://{name}:11434/v1/chat/completions");
    say(&format!("laptop: curl {url}"));
    let n_pieces = curl(laptop, &url, &[])?;
    say(&format!("it streamed in {n_pieces} pieces"));

    say(&format!("desktop: meshctl run {MODEL} '{QUESTION}'"));
    ask(desktop)?;
    say("taking it all down");
    Ok(())
}

fn ask(node: &Node<'_>) -> Result<()> {
    let mut run = node.ctl_command()?;
    let status = run
        .args(["run", MODEL, QUESTION])
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "meshctl run: {status}");
    println!();
    Ok(())
}

fn join_all<'lab>(
    lab: &'lab Lab,
    coordinator: &Coordinator<'_>,
    say: &dyn Fn(&str),
) -> Result<Vec<Node<'lab>>> {
    let mut nodes = Vec::new();
    for name in ["laptop", "desktop", "gpu"] {
        let key = if nodes.is_empty() {
            coordinator.first_key.clone()
        } else {
            coordinator.key(&[])?
        };
        let node = Node::join(lab.host(name)?, &key)?;
        say(&format!(
            "{name}: meshctl up --auth-key pxk_… → {}",
            node.ipv4()?
        ));
        nodes.push(node);
    }
    Ok(nodes)
}

/// Streams an answer to standard output; gives the number of its pieces.
fn curl(node: &Node<'_>, url: &str, more: &[&str]) -> Result<usize> {
    let body = json!({ "model": MODEL, "stream": true, "max_tokens": 60,
                       "messages": [{ "role": "user", "content": QUESTION }] });
    let request = Request::post(url, &body.to_string());
    let mut command = request.command(node.host);
    command.args(more).args([
        "-H",
        "Content-Type: application/json",
        "--data-binary",
        &body.to_string(),
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let answer = BufReader::new(child.stdout.take().context("no output")?);
    let (mut n_pieces, mut rest) = (0, String::new());
    print!("          ");
    for line in answer.lines() {
        let line = line?;
        let event = line
            .strip_prefix("data: ")
            .and_then(|data| serde_json::from_str::<Value>(data).ok());
        let Some(event) = event else {
            rest += &line;
            continue;
        };
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            print!("{text}");
            std::io::stdout().flush()?;
            n_pieces += 1;
        }
    }
    println!();
    ensure!(
        child.wait()?.success() && n_pieces > 1,
        "no stream came: {rest}"
    );
    Ok(n_pieces)
}
