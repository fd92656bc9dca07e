//! Where programs, tools and models are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let e2e = Path::new(env!("CARGO_MANIFEST_DIR"));
    e2e.parent().unwrap_or(e2e).to_owned()
}

/// A program of this workspace, from the same build as the running one.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("the running program's own path")?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `make build`",
        path.display()
    );
    Ok(path)
}

fn tool(path: &str) -> Result<PathBuf> {
    let path = root().join(".tools").join(path);
    ensure!(
        path.exists(),
        "{} is missing: run `make tools`",
        path.display()
    );
    Ok(path)
}

/// LiteLLM's proxy.
///
/// # Errors
/// When the tools of the benchmarks are not installed.
pub fn litellm() -> Result<PathBuf> {
    tool("litellm/bin/litellm")
}

/// The library that shows a program another wall clock.
///
/// # Errors
/// When the tools are not installed.
pub fn faketime() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").context("/usr/lib")?;
    let path = "faketime/libfaketimeMT.so.1";
    let mut found = folders.filter_map(|folder| Some(folder.ok()?.path().join(path)));
    let library = found.find(|library| library.exists());
    library.context("libfaketime is missing: run `make tools`")
}

/// The Python that has llama.cpp's server and the clients of model servers.
///
/// # Errors
/// When the tools are not installed.
pub fn python() -> Result<PathBuf> {
    tool("venv/bin/python")
}

/// A model file by its short name, such as `tiny`.
///
/// # Errors
/// When the tools are not installed.
pub fn model(name: &str) -> Result<PathBuf> {
    tool(&format!("models/{name}.gguf"))
}

/// A script for a model client.
#[must_use]
pub fn client_script(name: &str) -> PathBuf {
    root().join("e2e/clients").join(name)
}

/// The script that runs llama.cpp's server with the Python of the tools.
#[must_use]
pub fn llama_server_script() -> PathBuf {
    root().join("e2e/models/llama_server.py")
}
