//! House rules that a program can check: layout, dependency edges, pure modules, documented metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// No source file is longer; past 400 lines one should think of a split.
const N_LINES_MAX: usize = 800;
/// No file of tests is longer.
const N_TEST_LINES_MAX: usize = 1_000;
/// Folders below `src/`.
const DEPTH_MAX: usize = 2;

/// Which of our crates each may depend on, tests included. `e2e` runs the programs and links none of them.
const EDGES: &[(&str, &[&str])] = &[
    ("mesh-proto", &[]),
    ("mesh-engine", &["mesh-proto"]),
    ("mesh-io", &[]),
    ("mesh-relay", &["mesh-proto", "mesh-io"]),
    (
        "meshd",
        &["mesh-proto", "mesh-engine", "mesh-io", "mesh-relay"],
    ),
    ("meshctl", &["mesh-proto"]),
    ("coordinator", &["mesh-proto", "mesh-relay"]),
    ("e2e", &["mesh-proto"]),
    ("fuzz", &["mesh-proto", "mesh-engine", "mesh-io"]),
    ("benches", &["mesh-proto", "mesh-engine", "mesh-io"]),
];

/// What a crate of pure logic must not link, directly.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "mesh-engine",
        &[
            "tokio",
            "mio",
            "socket2",
            "hyper",
            "reqwest",
            "sqlx",
            "opentelemetry",
            "getrandom",
            "rand",
            "libc",
            "quinn-udp",
            "tun-rs",
            "rtnetlink",
        ],
    ),
    (
        "mesh-proto",
        &[
            "tokio",
            "mio",
            "socket2",
            "hyper",
            "axum",
            "reqwest",
            "sqlx",
            "getrandom",
            "rand",
            "anyhow",
            "libc",
        ],
    ),
];

/// Calls that a pure module must not make.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "getrandom::",
    "rand::",
    "thread::spawn",
    "thread::sleep",
    "tokio::",
    "std::fs",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::env",
];

/// Sources that are pure by rule: whole crates, and modules of the programs that decide and leave doing to others.
const PURE: &[&str] = &[
    "mesh-proto/src",
    "mesh-engine/src",
    "meshd/src/dns/zone.rs",
    "meshd/src/dns/zone",
    "meshd/src/gateway/admit.rs",
    "meshd/src/gateway/admit",
    "coordinator/src/ipam.rs",
    "coordinator/src/map/build.rs",
    "mesh-relay/src/hub.rs",
    "mesh-relay/src/hub",
    "mesh-relay/src/lane.rs",
    "mesh-relay/src/lane",
    "mesh-relay/src/rate.rs",
    "coordinator/src/state/apply.rs",
];

/// Programs whose metrics are in a `metrics.rs` and described in the guide.
const METRICS: &[(&str, &str)] = &[("meshd", "meshd_"), ("coordinator", "coordinator_")];

/// Programs whose commands and flags are in the guide, each in a section of its name.
const PROGRAMS: &[&str] = &["meshctl", "meshd", "coordinator"];

fn root() -> PathBuf {
    let e2e = Path::new(env!("CARGO_MANIFEST_DIR"));
    e2e.parent().unwrap_or(e2e).to_owned()
}

/// Every Rust file of ours with its path relative to the root.
fn sources() -> Result<Vec<(String, String)>> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let is_ours = !name.starts_with('.') && name != "target" && name != "third-party";
            if path.is_dir() && is_ours {
                walk(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
        Ok(())
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, &mut found)?;
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path)?;
            Ok((
                path.strip_prefix(&root)?.to_string_lossy().into_owned(),
                text,
            ))
        })
        .collect()
}

fn metadata() -> Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version=1",
            "--offline",
            "--locked",
        ])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages() -> Result<BTreeMap<String, Value>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    Ok(packages
        .iter()
        .map(|package| {
            (
                package["name"].as_str().unwrap_or_default().to_owned(),
                package.clone(),
            )
        })
        .collect())
}

fn dependencies(package: &Value) -> BTreeSet<String> {
    let list = package["dependencies"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev") || is_ours(dependency))
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect()
}

fn is_ours(dependency: &Value) -> bool {
    dependency["path"].is_string()
}

/// Fails with one line for each finding.
fn report(findings: &[String]) -> Result<()> {
    ensure!(findings.is_empty(), "\n  {}", findings.join("\n  "));
    Ok(())
}

/// The text without comments, so that a rule may be named where it is explained.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

#[test]
fn crates_depend_only_on_those_they_may_know() -> Result<()> {
    let packages = packages()?;
    let known: BTreeSet<_> = EDGES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let present: BTreeSet<_> = packages.keys().cloned().collect();
    ensure!(
        present == known,
        "a crate came or went: update the edges here and ARCHITECTURE.md: {present:?}"
    );
    let mut findings = Vec::new();
    for (name, allowed) in EDGES {
        for dependency in dependencies(&packages[*name]) {
            if known.contains(&dependency) && !allowed.contains(&dependency.as_str()) {
                findings.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    for (name, forbidden) in FORBIDDEN {
        for dependency in dependencies(&packages[*name]) {
            if forbidden.contains(&dependency.as_str()) {
                findings.push(format!(
                    "{name} is pure and must not depend on {dependency}"
                ));
            }
        }
    }
    report(&findings)
}

#[test]
fn every_crate_inherits_the_lints_and_the_shared_facts() -> Result<()> {
    let mut findings = Vec::new();
    for (name, package) in packages()? {
        let manifest = package["manifest_path"].as_str().context("no manifest")?;
        let text = fs::read_to_string(manifest)?;
        for wanted in [
            "[lints]\nworkspace = true",
            "version.workspace = true",
            "edition.workspace = true",
        ] {
            if !text.contains(wanted) {
                findings.push(format!(
                    "{name}/Cargo.toml lacks `{}`",
                    wanted.replace('\n', " ")
                ));
            }
        }
        for line in text
            .lines()
            .filter(|line| line.contains("version = \"") && line.contains('{'))
        {
            findings.push(format!(
                "{name}/Cargo.toml pins a version by itself: {line}"
            ));
        }
    }
    report(&findings)
}

#[test]
fn files_are_short_shallow_and_say_what_they_own() -> Result<()> {
    let mut findings = Vec::new();
    for (path, text) in sources()? {
        let n_lines = text.lines().count();
        let is_test = path.contains("/tests/") || path.ends_with("/tests.rs");
        let limit = if is_test {
            N_TEST_LINES_MAX
        } else {
            N_LINES_MAX
        };
        if n_lines > limit {
            findings.push(format!(
                "{path}: {n_lines} lines, at most {limit}: split it"
            ));
        }
        if !text.starts_with("//! ") {
            findings.push(format!(
                "{path}: the first line must be a `//!` sentence of what it owns"
            ));
        }
        if path.ends_with("/mod.rs") {
            findings.push(format!(
                "{path}: name it after its folder, beside the folder"
            ));
        }
        if let Some((_, inside)) = path.split_once("/src/")
            && inside.trim_end_matches("/tests.rs").matches('/').count() > DEPTH_MAX
        {
            findings.push(format!(
                "{path}: nested deeper than {DEPTH_MAX} folders below src/"
            ));
        }
    }
    report(&findings)
}

#[test]
fn only_mesh_io_holds_unsafe_code() -> Result<()> {
    let mut findings = Vec::new();
    let sources = sources()?;
    for (name, _) in EDGES.iter().filter(|(name, _)| *name != "mesh-io") {
        for file in ["lib.rs", "main.rs"] {
            let path = format!("{name}/src/{file}");
            let text = sources.iter().find(|(candidate, _)| *candidate == path);
            if text.is_some_and(|(_, text)| !text.contains("#![forbid(unsafe_code)]")) {
                findings.push(format!("{path} lacks #![forbid(unsafe_code)]"));
            }
        }
    }
    report(&findings)
}

#[test]
fn pure_modules_touch_no_clock_no_chance_and_no_system() -> Result<()> {
    let mut findings = Vec::new();
    for (path, text) in sources()? {
        let is_pure = PURE
            .iter()
            .any(|pure| path == *pure || path.starts_with(&format!("{pure}/")));
        if !is_pure || path.ends_with("/tests.rs") {
            continue;
        }
        let body = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (number, line) in code(body) {
            for call in IMPURE.iter().filter(|call| line.contains(**call)) {
                findings.push(format!("{path}:{number}: `{call}` in a pure module"));
            }
        }
    }
    report(&findings)
}

#[test]
fn metrics_are_defined_in_one_file_and_documented() -> Result<()> {
    let guide = fs::read_to_string(root().join("docs/metrics.md")).context("docs/metrics.md")?;
    let mut findings = Vec::new();
    for (program, prefix) in METRICS {
        for (path, text) in sources()?
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("{program}/src/")))
        {
            for (number, line) in code(text) {
                for name in quoted_names(line, prefix) {
                    let is_used = ["counter!(", "gauge!(", "histogram!("]
                        .iter()
                        .any(|word| line.contains(word));
                    if is_used && !path.ends_with("/metrics.rs") && !path.contains("tests") {
                        findings.push(format!(
                            "{path}:{number}: {name} belongs in {program}/src/metrics.rs"
                        ));
                    }
                    if path.ends_with("/metrics.rs") && !guide.contains(&format!("`{name}`")) {
                        findings.push(format!("{name} is not in docs/metrics.md"));
                    }
                }
            }
        }
    }
    report(&findings)
}

/// The string literals of a line that begin with a prefix and look like a metric.
fn quoted_names<'a>(line: &'a str, prefix: &str) -> Vec<&'a str> {
    line.split('"')
        .skip(1)
        .step_by(2)
        .filter(|literal| {
            literal.len() > prefix.len()
                && literal.starts_with(prefix)
                && literal
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

#[test]
fn every_command_and_flag_is_in_the_guide() -> Result<()> {
    let guide = fs::read_to_string(root().join("docs/cli.md")).context("docs/cli.md")?;
    let mut findings = Vec::new();
    for program in PROGRAMS {
        let section = guide
            .split("\n## ")
            .find_map(|section| section.strip_prefix(&format!("{program}\n")))
            .with_context(|| format!("docs/cli.md has no section {program}"))?;
        let mut commands = vec![Vec::new()];
        while let Some(command) = commands.pop() {
            let help = help(program, &command)?;
            let words = [&[(*program).to_owned()], command.as_slice()].concat();
            for flag in help.flags {
                let is_usual = ["--help", "--version"].contains(&flag.as_str());
                if !is_usual && !section.contains(&flag) {
                    findings.push(format!(
                        "`{} {flag}` is not in docs/cli.md",
                        words.join(" ")
                    ));
                }
            }
            for verb in help.verbs {
                if !section.contains(&verb) {
                    findings.push(format!(
                        "`{} {verb}` is not in docs/cli.md",
                        words.join(" ")
                    ));
                }
                commands.push([command.as_slice(), &[verb]].concat());
            }
        }
    }
    report(&findings)
}

/// What a program's help tells of one of its commands.
struct Help {
    verbs: Vec<String>,
    flags: Vec<String>,
}

fn help(program: &str, command: &[String]) -> Result<Help> {
    let output = Command::new(e2e::tool::program(program)?)
        .args(command)
        .arg("--help")
        .output()?;
    ensure!(output.status.success(), "{program} {command:?}: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    let mut help = Help {
        verbs: Vec::new(),
        flags: Vec::new(),
    };
    let mut heading = "";
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if indent == 0 {
            heading = line;
            continue;
        }
        let first = line.split_whitespace().next().unwrap_or_default();
        if heading == "Commands:" && indent == 2 && first != "help" {
            help.verbs.push(first.to_owned());
        } else if heading != "Commands:" && first.starts_with('-') && indent <= 6 {
            let words = line.split([' ', ',', '<', '[', '=']);
            help.flags.extend(
                words
                    .filter(|word| word.len() > 2 && word.starts_with("--"))
                    .take(1)
                    .map(str::to_owned),
            );
        }
    }
    ensure!(
        help.flags.contains(&"--help".to_owned()),
        "{program} {command:?}: no flags in its help:\n{text}"
    );
    Ok(help)
}

#[test]
fn sources_do_not_speak_of_their_own_past() -> Result<()> {
    let mut findings = Vec::new();
    for (path, text) in sources()?
        .iter()
        .filter(|(path, _)| path.as_str() != "e2e/tests/tidy.rs")
    {
        for (index, line) in text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", "HACK"] {
                if line.contains(word) {
                    findings.push(format!("{path}:{}: `{word}`", index + 1));
                }
            }
        }
    }
    report(&findings)
}

#[test]
fn the_architecture_page_is_short_and_names_every_crate() -> Result<()> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    ensure!(
        text.lines().count() < 300,
        "ARCHITECTURE.md is to be read in one sitting: under 300 lines"
    );
    for (name, _) in EDGES {
        ensure!(
            text.contains(&format!("`{name}")),
            "ARCHITECTURE.md does not name {name}"
        );
    }
    Ok(())
}

#[test]
fn migrations_are_numbered_without_gaps() -> Result<()> {
    let folder = root().join("coordinator/src/store/migrations/sqlite");
    if !folder.exists() {
        return Ok(());
    }
    let mut names: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for (index, name) in names.iter().enumerate() {
        ensure!(
            name.starts_with(&format!("{:04}_", index + 1)),
            "{name}: expected number {:04}",
            index + 1
        );
    }
    Ok(())
}
