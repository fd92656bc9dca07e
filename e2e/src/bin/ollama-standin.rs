//! Runs the stand-in for Ollama: `ollama-standin --listen IP:PORT --log FILE --model NAME=URL… --library NAME=URL…`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use e2e::standin::{Shop, name, serve};

fn main() -> Result<()> {
    let (mut listen, mut log) = (None, None);
    let (mut models, mut library) = (BTreeMap::new(), BTreeMap::new());
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--listen" => listen = Some(value.parse::<SocketAddr>()?),
            "--log" => log = Some(PathBuf::from(value)),
            "--model" => models.extend([model(&value)?]),
            "--library" => library.extend([model(&value)?]),
            other => bail!("unknown argument {other}"),
        }
    }
    let listen = listen.context("--listen is needed")?;
    let log = log.context("--log is needed")?;
    let shop = Shop::new(models, library, listen, &log)?;
    tokio::runtime::Runtime::new()?.block_on(serve(listen, shop))
}

fn model(text: &str) -> Result<(String, SocketAddr)> {
    let (model, url) = text.split_once('=').context("expected NAME=URL")?;
    let model = name::canonical(model).with_context(|| format!("{model}: not a model name"))?;
    let address = url
        .trim_start_matches("http://")
        .parse()
        .with_context(|| url.to_owned())?;
    Ok((model, address))
}
