//! The programs under test: `coordinator`, `meshd`, and `meshctl` to talk to it.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_proto::admin::NodeInfo;
use mesh_proto::local::{Models, NetCheck, PathStatus, RunState, Status};
use serde_json::Value;

use crate::net::{Host, Lab};
use crate::process::{Process, ensure_success, stdout};
use crate::tool;
use crate::wait::{time_until, wait_until};

/// How long a program may take until it is ready. Long, because debug builds on a busy machine start slowly.
pub const READY: Duration = Duration::from_secs(20);
const PORT: u16 = 7443;

/// Joins nodes on the named hosts to a coordinator on the host `control`.
///
/// # Errors
/// When one does not come up or is refused.
pub fn join_all<'lab>(
    lab: &'lab Lab,
    hosts: &[&str],
) -> Result<(Coordinator<'lab>, Vec<Node<'lab>>)> {
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let nodes = hosts
        .iter()
        .map(|name| Node::join(lab.host(name)?, &key).with_context(|| format!("joining {name}")))
        .collect::<Result<Vec<_>>>()?;
    Ok((coordinator, nodes))
}

/// A coordinator on a host.
#[derive(Debug)]
pub struct Coordinator<'lab> {
    host: &'lab Host,
    process: Option<Process>,
    state_dir: PathBuf,
    /// Where nodes reach it.
    pub url: String,
    /// The one-use auth key that its first run printed.
    pub first_key: String,
}

impl<'lab> Coordinator<'lab> {
    /// Starts one with fresh state and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &'lab Host) -> Result<Self> {
        let mut coordinator = Self {
            host,
            process: None,
            state_dir: host.dir().join("coordinator"),
            url: format!("https://{}:{PORT}", host.ipv4),
            first_key: String::new(),
        };
        coordinator.launch()?;
        coordinator.first_key = wait_until("the first run prints an auth key", READY, || {
            find_auth_key(&coordinator.log()).context("no auth key in the log")
        })?;
        coordinator.wait_ready()?;
        Ok(coordinator)
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = self.host.command(tool::program("coordinator")?);
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(["--listen", &format!("{}:{PORT}", self.host.ipv4)])
            .args(["--url", &self.url]);
        self.process = Some(self.host.spawn("coordinator", command)?);
        Ok(())
    }

    /// All that it wrote, in this life and those before.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When it was killed, or cannot be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        let process = self.process.as_mut().context("it was killed")?;
        process.has_ended()
    }

    /// The running program.
    ///
    /// # Errors
    /// When it was killed.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the coordinator was killed")
    }

    /// Waits until it answers its administrator.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_until("the coordinator answers", READY, || {
            if let Some(process) = &mut self.process {
                process.ensure_runs()?;
            }
            ensure_success("coordinator health", &self.admin(&["health"])?)
        })
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again with the state that it left, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        self.launch()
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        self.wait_ready()
    }

    /// Runs one of its own commands against its local socket.
    ///
    /// # Errors
    /// When it cannot be run. An exit status is not an error here.
    pub fn admin(&self, args: &[&str]) -> Result<Output> {
        let mut args = args.to_vec();
        let socket = self.state_dir.join("coordinator.sock");
        let socket = socket.to_string_lossy();
        args.extend(["--socket", socket.as_ref()]);
        self.host.run(tool::program("coordinator")?, &args)
    }

    /// Starts a relay of its own on a host and waits until the mesh has it and these nodes know of it.
    ///
    /// # Errors
    /// When it is refused or does not come up, or is not known, within the limit.
    pub fn start_relay(
        &self,
        host: &Host,
        name: &str,
        nodes: &[Node<'_>],
        limit: Duration,
    ) -> Result<Process> {
        let created = self.admin_json(&["relay", "add", name])?;
        let key = created["key"].as_str().context("no key")?;
        let mut command = host.command(tool::program("coordinator")?);
        command
            .args(["relay", "--auth-key", key])
            .args(["--listen", &format!("{}:443", host.ipv4)])
            .args(["--url", &format!("https://{}", host.ipv4)])
            .arg("--state-dir")
            .arg(host.dir().join("relay"));
        let relay = host.spawn("relay", command)?;
        wait_until("the mesh knows the relay", limit, || {
            let relays = self.admin_json(&["relay", "list"])?;
            ensure!(relays["items"][0]["id"].is_string(), "{relays}");
            for node in nodes {
                ensure!(node.knows_relay(name)?, "a node does not know it");
            }
            Ok(())
        })?;
        Ok(relay)
    }

    /// As [`Coordinator::admin`] with `--json`, which must succeed.
    ///
    /// # Errors
    /// When it fails, with its outputs.
    pub fn admin_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let output = self.admin(&all)?;
        ensure_success(&format!("coordinator {}", args.join(" ")), &output)?;
        serde_json::from_slice(&output.stdout).with_context(|| stdout(&output))
    }

    /// Makes an auth key; `options` are those of `coordinator key create`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn key(&self, options: &[&str]) -> Result<String> {
        let mut args = vec!["key", "create"];
        args.extend(options);
        let answer = self.admin_json(&args)?;
        ensure!(answer["schema_version"] == 1, "no schema version: {answer}");
        let key = answer["key"].as_str().context("no key in the answer")?;
        Ok(key.to_owned())
    }

    /// The nodes that it knows.
    ///
    /// # Errors
    /// When the answer is not a list of nodes.
    pub fn nodes(&self) -> Result<Vec<NodeInfo>> {
        let mut answer = self.admin_json(&["node", "list"])?;
        let nodes = answer["items"].take();
        serde_json::from_value(nodes).context("the list of nodes")
    }

    /// Its database file.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}

fn find_auth_key(log: &str) -> Option<String> {
    let start = log.find("pxk_")?;
    let rest = log.get(start..)?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
    // Only a line that has ended is known to be whole.
    let key = rest.get(..end?)?;
    Some(key.to_owned())
}

/// A node on a host: `meshd`, and `meshctl` beside it.
#[derive(Debug)]
pub struct Node<'lab> {
    /// The host that it runs on.
    pub host: &'lab Host,
    process: Option<Process>,
    /// The HTTP proxy of its environment.
    proxy: Option<String>,
    /// By how much its wall clock is off.
    clock: Option<String>,
}

impl<'lab> Node<'lab> {
    /// Starts `meshd` and waits until `meshctl` reaches it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &'lab Host) -> Result<Self> {
        Self::start_behind(host, None)
    }

    /// Starts `meshd` with an HTTP proxy (`http://HOST:PORT`) in its environment.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_behind(host: &'lab Host, proxy: Option<String>) -> Result<Self> {
        let mut node = Self {
            host,
            process: None,
            proxy,
            clock: None,
        };
        node.restart()?;
        Ok(node)
    }

    /// Starts a node and joins it with an auth key.
    ///
    /// # Errors
    /// When it is refused or does not come up.
    pub fn join(host: &'lab Host, auth_key: &str) -> Result<Self> {
        let node = Self::start(host)?;
        node.ctl_ok(&["up", "--auth-key", auth_key])?;
        node.use_mesh_dns()?;
        Ok(node)
    }

    /// Starts `meshd` with the state that it left.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        wait_until("meshctl reaches meshd", READY, || {
            if let Some(process) = &mut self.process {
                process.ensure_runs()?;
            }
            self.status().map(drop)
        })
    }

    /// Starts `meshd` with the state that it left, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.host.command(tool::program("meshd")?);
        command.args(self.daemon_args());
        if let Some(proxy) = &self.proxy {
            command.env("HTTPS_PROXY", proxy);
        }
        if let Some(offset) = &self.clock {
            command.env("LD_PRELOAD", tool::faketime()?);
            command.env("FAKETIME", offset);
            // A machine's monotonic clock is never set.
            command.env("DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.process = Some(self.host.spawn("meshd", command)?);
        Ok(())
    }

    /// From its next start on the wall clock of `meshd` is off by so much, such as `-3650d`.
    pub fn set_clock(&mut self, offset: &str) {
        self.clock = Some(offset.to_owned());
    }

    /// The arguments of its `meshd`.
    #[must_use]
    pub fn daemon_args(&self) -> Vec<OsString> {
        let state_dir = self.host.dir().join("meshd");
        let words = ["--state-dir", "--socket", "--interface", "proxima0"].map(OsString::from);
        let [state_option, socket_option, interface_option, interface] = words;
        vec![
            state_option,
            state_dir.into(),
            socket_option,
            self.socket().into(),
            interface_option,
            interface,
            // The machine's own resolver is not the lab's to change.
            "--no-dns".into(),
        ]
    }

    /// Kills `meshd` without a word.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When it was killed.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("meshd does not run")
    }

    /// Where `meshctl` finds it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.host.dir().join("meshd.sock")
    }

    /// A `meshctl` command line, to which arguments can be added.
    ///
    /// # Errors
    /// When `meshctl` is not built.
    pub fn ctl_command(&self) -> Result<Command> {
        let mut command = self.host.command(tool::program("meshctl")?);
        command.arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// Runs `meshctl`.
    ///
    /// # Errors
    /// When it cannot be run. An exit status is not an error here.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        let output = self.ctl_command()?.args(args).output();
        output.with_context(|| format!("meshctl {}", args.join(" ")))
    }

    /// Runs `meshctl`, which must succeed, and gives its standard output.
    ///
    /// # Errors
    /// When it fails, with its outputs.
    pub fn ctl_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.ctl(args)?;
        ensure_success(
            &format!("{}: meshctl {}", self.host.name(), args.join(" ")),
            &output,
        )?;
        Ok(stdout(&output))
    }

    /// What `meshctl status` knows.
    ///
    /// # Errors
    /// When the daemon is not reached.
    pub fn status(&self) -> Result<Status> {
        let output = self.ctl(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "meshctl status: {}: {}",
                output.status,
                crate::process::stderr(&output)
            )
        })
    }

    /// The value of one of its metrics, named with its labels; 0 when it is not told.
    ///
    /// # Errors
    /// When the daemon is not reached.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.ctl_ok(&["metrics"])?;
        let values = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = values.map(str::parse).next();
        value.unwrap_or(Ok(0.0)).with_context(|| name.to_owned())
    }

    /// What `meshctl models` knows.
    ///
    /// # Errors
    /// When the daemon is not reached.
    pub fn models(&self) -> Result<Models> {
        let text = self.ctl_ok(&["models", "--json"])?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Waits until the overlay works.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_running(&self) -> Result<()> {
        wait_until("the node runs", READY, || {
            let state = self.status()?.state;
            ensure!(state == RunState::Running, "it is {state:?}");
            Ok(())
        })
    }

    /// How it reaches a peer.
    ///
    /// # Errors
    /// When it knows of no such peer.
    pub fn path(&self, to: Ipv4Addr) -> Result<PathStatus> {
        let status = self.status()?;
        let peer = status.peers.iter().find(|peer| peer.ipv4 == to);
        Ok(peer.context("no such peer")?.path.clone())
    }

    /// Whether the way to a peer is direct.
    ///
    /// # Errors
    /// When it knows of no such peer.
    pub fn is_direct(&self, to: Ipv4Addr) -> Result<bool> {
        Ok(matches!(self.path(to)?, PathStatus::Direct { .. }))
    }

    /// Waits until the way to a peer is direct, and says how long that took.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_direct(&self, to: Ipv4Addr, limit: Duration) -> Result<Duration> {
        let (_, took) = time_until("the path is direct", limit, || {
            ensure!(self.is_direct(to)?, "{:?}", self.path(to)?);
            Ok(())
        })?;
        Ok(took)
    }

    /// Whether it knows of a relay of that name.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn knows_relay(&self, name: &str) -> Result<bool> {
        let said = self.ctl(&["netcheck", "--json"])?;
        let check: NetCheck = serde_json::from_slice(&said.stdout)?;
        Ok(check.relays.iter().any(|relay| relay.name == name))
    }

    /// Its IPv4 overlay address.
    ///
    /// # Errors
    /// When it has not joined.
    pub fn ipv4(&self) -> Result<Ipv4Addr> {
        Ok(self.status()?.node.context("not joined")?.ipv4)
    }

    /// The IPv4 service address of its mesh.
    ///
    /// # Errors
    /// When it has not joined.
    pub fn service_ipv4(&self) -> Result<Ipv4Addr> {
        Ok(self.status()?.node.context("not joined")?.service_ipv4)
    }

    /// Points the host's plain resolver at the mesh, as the program's hint says where no manager is found.
    ///
    /// # Errors
    /// When the node has not joined.
    pub fn use_mesh_dns(&self) -> Result<()> {
        let service = self.service_ipv4()?;
        self.host.write_resolv_conf(&format!(
            "nameserver {service}\noptions timeout:2 attempts:2\n"
        ))
    }

    /// Switches sharing on.
    ///
    /// # Errors
    /// When it is refused.
    pub fn share(&self) -> Result<()> {
        self.ctl_ok(&["share", "on"]).map(drop)
    }

    /// Waits until this node's catalogue has a model.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_model(&self, model: &str, limit: Duration) -> Result<()> {
        wait_until(&format!("{model} is in the catalogue"), limit, || {
            let models = self.models()?.models;
            let names: Vec<_> = models.iter().map(|model| model.model.as_str()).collect();
            let is_served = models
                .iter()
                .any(|entry| entry.model == model && !entry.hosts.is_empty());
            ensure!(is_served, "only {names:?}");
            Ok(())
        })
    }
}
