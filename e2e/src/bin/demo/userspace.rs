//! The demo without any privilege: every node in userspace mode, on loopback ports of its own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::model::LlamaServer;
use e2e::net::{Host, Lab};

use crate::{MODEL, ask, curl};

const MODEL_PORT: u16 = 18_080;
/// Ports of the first node; those of the next begin ten higher.
const FIRST_PORT: u16 = 21_055;

pub(crate) fn show(lab: &Lab, say: &dyn Fn(&str)) -> Result<()> {
    say("no root: control, laptop, desktop and gpu are programs of this user, in userspace mode");
    let coordinator = Coordinator::start(lab.host("control")?)?;
    say(&format!("control: coordinator serve → {}", coordinator.url));
    let key = coordinator.key(&["--reusable"])?;
    // The slow start of the model server goes on while the nodes join.
    let gpu_host = lab.host("gpu")?;
    let (model, nodes) = std::thread::scope(|scope| {
        let model = scope.spawn(|| LlamaServer::start(gpu_host, MODEL, MODEL_PORT));
        let nodes = join_all(lab, &key, say);
        let model = model
            .join()
            .map_err(|_| anyhow::anyhow!("the model server's thread died"));
        (model, nodes)
    });
    let (model, nodes) = (model??, nodes?);
    say("gpu: llama-server has loaded SmolLM2 135M, on loopback alone");
    let [laptop, desktop, gpu] = nodes.as_slice() else {
        unreachable!("three nodes were joined")
    };
    gpu.ctl_ok(&["share", "on", "--backend", model.url()])?;
    laptop.wait_model(MODEL, Duration::from_secs(20))?;
    desktop.wait_model(MODEL, Duration::from_secs(20))?;
    say("gpu: meshctl share on → the model is in everybody's catalogue");

    let name = format!("{MODEL}.proxima");
    let answer = laptop.ctl_ok(&["dns", "query", &name])?;
    say(&format!(
        "laptop: meshctl dns query {name} → {}",
        answer.trim()
    ));
    ensure!(
        answer.contains(&gpu.ipv4()?.to_string()),
        "not gpu's address"
    );

    let status = laptop.status()?;
    let userspace = status.node.and_then(|node| node.userspace);
    let userspace = userspace.context("laptop is not in userspace mode")?;
    let proxy = userspace.socks5.context("no proxy")?.to_string();
    let url = format!("http://{name}:11434/v1/chat/completions");
    say(&format!("laptop: curl --socks5-hostname {proxy} {url}"));
    // The harness's own curl ignores proxies; that is taken back.
    let by_proxy = ["--noproxy", "", "--socks5-hostname", proxy.as_str()];
    let n_pieces = curl(laptop, &url, &by_proxy)?;
    say(&format!("it streamed in {n_pieces} pieces"));

    let url = format!("http://{}/v1/chat/completions", userspace.gateway);
    say(&format!("laptop: curl {url}, its own gateway"));
    curl(laptop, &url, &[])?;

    say(&format!(
        "desktop: meshctl run {MODEL} '{}'",
        crate::QUESTION
    ));
    ask(desktop)?;
    say("taking it all down");
    Ok(())
}

fn join_all<'lab>(lab: &'lab Lab, key: &str, say: &dyn Fn(&str)) -> Result<Vec<Node<'lab>>> {
    let names = ["laptop", "desktop", "gpu"];
    let ports = (FIRST_PORT..).step_by(10);
    let nodes = names
        .into_iter()
        .zip(ports)
        .map(|(name, port)| join(lab.host(name)?, key, port, say));
    nodes.collect()
}

fn join<'lab>(host: &'lab Host, key: &str, port: u16, say: &dyn Fn(&str)) -> Result<Node<'lab>> {
    let node = Node::start(host)?;
    let settings = [
        format!("socks5={port}"),
        format!("http-proxy={}", port + 1),
        format!("gateway={}", port + 2),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    node.ctl_ok(&[&["set"], settings.as_slice()].concat())?;
    let up = [
        "up",
        "--userspace",
        "--auth-key",
        key,
        "--hostname",
        host.name(),
    ];
    node.ctl_ok(&up)?;
    say(&format!(
        "{}: meshctl up --userspace --auth-key pxk_… → {}, SOCKS5 at 127.0.0.1:{port}",
        host.name(),
        node.ipv4()?
    ));
    Ok(node)
}
