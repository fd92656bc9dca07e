//! Nodes without an interface and without any privilege: an ordinary user's, by proxies.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::model::LlamaServer;
use e2e::net::{Host, Lab, scenario};
use e2e::probe::{Request, ping};
use e2e::process::{Process, ensure_success, stderr, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::local::{RunState, Status};

const NOBODY: &str = "65534";
const READY: Duration = Duration::from_secs(20);
const SOCKS5: &str = "127.0.0.1:1055";
const HTTP: &str = "127.0.0.1:1056";
const GATEWAY: &str = "http://127.0.0.1:11435";

/// An ordinary user of a host, with a home and the programs in it, and nothing else.
struct User<'lab> {
    host: &'lab Host,
    home: PathBuf,
}

impl<'lab> User<'lab> {
    fn new(host: &'lab Host) -> Result<Self> {
        let home = host.dir().join("home");
        fs::create_dir_all(home.join("bin"))?;
        for program in ["meshd", "meshctl"] {
            fs::copy(tool::program(program)?, home.join("bin").join(program))?;
        }
        let lab = host.dir().parent().context("the lab's folder")?;
        for dir in [lab, host.dir()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        }
        host.sh(&format!("chown -R {NOBODY}:{NOBODY} {}", home.display()))?;
        Ok(Self { host, home })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.host.command("setpriv");
        let ids = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        command.args(ids);
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
        command.arg(self.home.join("bin").join(program));
        command
            .env("HOME", &self.home)
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_STATE_HOME");
        command
    }

    fn ctl(&self, args: &[&str]) -> Result<Output> {
        let output = self.command("meshctl").args(args).output();
        output.with_context(|| format!("meshctl {}", args.join(" ")))
    }

    fn ctl_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.ctl(args)?;
        if let Err(err) = ensure_success(&format!("user: meshctl {}", args.join(" ")), &output) {
            let log = fs::read_to_string(self.home.join(".local/state/proxima/meshd.log"));
            return Err(err.context(log.unwrap_or_default()));
        }
        Ok(stdout(&output) + &stderr(&output))
    }

    fn status(&self) -> Result<Status> {
        let output = self.ctl(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| stderr(&output))
    }

    /// The daemon that `meshctl up` started.
    fn daemon_pid(&self) -> Result<u32> {
        let pids = self.host.sh("ip netns pids $(ip netns identify $$)")?;
        let mut pids = pids.lines().filter_map(|pid| pid.trim().parse().ok());
        let is_daemon = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "meshd")
        };
        pids.find(is_daemon).context("meshd does not run")
    }

    /// Its own curl, with more arguments.
    fn curl(&self, args: &[&str]) -> Result<Output> {
        let mut all = vec!["-sS", "--max-time", "30"];
        all.extend(args);
        self.host.run("curl", &all)
    }
}

/// A user's node, in userspace mode by itself, and one with an interface.
fn two<'lab>(lab: &'lab Lab) -> Result<(Coordinator<'lab>, User<'lab>, Node<'lab>)> {
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let user = User::new(lab.host("beta")?)?;
    let said = user.ctl_ok(&["up", "--auth-key", &key])?;
    ensure!(
        said.contains("userspace mode") && said.contains("ALL_PROXY=socks5h://127.0.0.1:1055"),
        "it did not say how it is: {said}"
    );
    let gamma = Node::join(lab.host("gamma")?, &key)?;
    wait_until("they know each other", READY, || {
        let status = user.status()?;
        ensure!(!status.peers.is_empty(), "{status:?}");
        Ok(())
    })?;
    Ok((coordinator, user, gamma))
}

fn serve(node: &Node<'_>) -> Result<Process> {
    let mut command = node.host.command(tool::program("socks-flow")?);
    command.args(["serve", "0.0.0.0:5201"]);
    let server = node.host.spawn("socks-flow", command)?;
    wait_until("the server listens", READY, || {
        let listeners = stdout(&node.host.run("ss", &["-ltn"])?);
        ensure!(listeners.contains(":5201"), "{listeners}");
        Ok(())
    })?;
    Ok(server)
}

/// A node that joined a moment ago is known to the others a moment later.
fn pinged(by: &Node<'_>, name: &str) -> Result<()> {
    wait_until("a ping is answered", READY, || {
        by.ctl_ok(&["ping", name]).map(drop)
    })
}

const CHAT: &str = r#"{"model":"tiny","stream":false,"options":{"num_predict":2},"messages":[{"role":"user","content":"hi"}]}"#;

#[test]
fn an_ordinary_user_joins_and_reaches_models_by_every_way() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, user, gamma) = two(lab)?;
        let _tiny = LlamaServer::start(gamma.host, "tiny", 8080)?;
        gamma.share()?;
        wait_until("the model is in the catalogue", READY, || {
            let models = user.ctl_ok(&["models"])?;
            ensure!(models.contains("tiny"), "{models}");
            Ok(())
        })?;
        let chat = |args: &[&str]| -> Result<()> {
            let mut all = args.to_vec();
            all.extend(["-H", "Content-Type: application/json", "-d", CHAT]);
            let output = user.curl(&all)?;
            ensure!(stdout(&output).contains(" t1 t2"), "{args:?}: {output:?}");
            Ok(())
        };
        let (direct, own) = (
            "http://tiny.proxima:11434/api/chat",
            "http://ollama.proxima:11434/api/chat",
        );
        chat(&["--socks5-hostname", SOCKS5, direct])?;
        chat(&["--socks5-hostname", SOCKS5, own])?;
        chat(&["--proxy", HTTP, direct])?;
        chat(&["--proxy", HTTP, own])?;
        chat(&["--proxy", HTTP, "--proxytunnel", direct])?;
        chat(&[&format!("{GATEWAY}/api/chat")])?;
        let run = user.ctl_ok(&["run", "tiny", "hi"])?;
        ensure!(run.contains("t1 t2"), "{run}");

        let record = user.ctl_ok(&["dns", "query", "gamma.node.proxima"])?;
        let ip = gamma.ipv4()?.to_string();
        ensure!(record.contains(&ip), "{record}");
        let asked = gamma.ctl_ok(&["dns", "query", "gamma.node.proxima"])?;
        ensure!(asked.contains(&ip), "with an interface too: {asked}");
        let missing = user.ctl(&["dns", "query", "nobody.node.proxima", "AAAA"])?;
        ensure!(missing.status.code() == Some(5), "{missing:?}");

        // What is not of the mesh is no business of a proxy of the mesh.
        let control = lab.host("control")?;
        let outside = format!("http://{}:7443/", control.ipv4);
        let refused = user.curl(&["--socks5-hostname", SOCKS5, &outside])?;
        ensure!(refused.status.code() == Some(97), "{refused:?}");
        ensure!(stderr(&refused).contains("(2)"), "{refused:?}");
        let refused = user.curl(&["--proxy", HTTP, "-w", "%{http_code}", &outside])?;
        ensure!(stdout(&refused).contains("403"), "{refused:?}");
        let page = user.curl(&["-w", "%{http_code}", &format!("http://{HTTP}/")])?;
        ensure!(stdout(&page).contains("400"), "{page:?}");
        for (target, code) in [
            (format!("http://{ip}:9/"), "(5)"),
            ("http://nobody.node.proxima/".to_owned(), "(4)"),
        ] {
            let refused = user.curl(&["--socks5-hostname", SOCKS5, &target])?;
            ensure!(stderr(&refused).contains(code), "{target}: {refused:?}");
        }
        Ok(())
    })
}

#[test]
fn an_ordinary_user_hosts_and_is_pinged() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, user, gamma) = two(lab)?;
        let _tiny = LlamaServer::start(user.host, "tiny", 8080)?;
        user.ctl_ok(&["share", "on"])?;
        gamma.wait_model("tiny", READY)?;
        for url in [
            "http://tiny.proxima:11434/api/chat",
            "http://tiny.proxima/api/chat",
            "http://ollama.proxima:11434/api/chat",
        ] {
            let answer = Request::post(url, CHAT).send(gamma.host)?;
            ensure!(answer.body.contains(" t1 t2"), "{url}: {answer:?}");
        }
        let status = user.status()?;
        let own = status.node.context("not joined")?.ipv4;
        ping(gamma.host, own)?;
        pinged(&gamma, "beta")?;
        user.ctl_ok(&["ping", "gamma"])?;
        // Nothing but the door is there, whatever listens on the machine.
        let closed = gamma
            .host
            .run("curl", &["-sS", "-m", "10", &format!("http://{own}:8080/")])?;
        ensure!(closed.status.code() == Some(7), "{closed:?}");
        Ok(())
    })
}

#[test]
fn halves_end_by_themselves_and_bytes_flow_both_ways_in_little_memory() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, user, gamma) = two(lab)?;
        let server = serve(&gamma)?;
        let dst = format!("{}:5201", gamma.ipv4()?);
        let flow = |args: &[&str]| -> Result<String> {
            let program = tool::program("socks-flow")?;
            let output = user.host.run(program, args)?;
            ensure_success(&format!("socks-flow {args:?}"), &output)?;
            Ok(stdout(&output))
        };
        flow(&["halves", SOCKS5, &dst, "3000000"])?;
        wait_until("the server counted all", READY, || {
            let log = server.log();
            ensure!(log.contains("counted 3000000 after the end"), "{log}");
            Ok(())
        })?;
        for way in ["put", "fetch"] {
            let report = flow(&[way, SOCKS5, &dst, "2"])?;
            let report: serde_json::Value = serde_json::from_str(&report)?;
            let gbps = report["gbps"].as_f64().context("no rate")?;
            // What a broken stack falls to is far below; the bench knows how fast it is.
            ensure!(gbps > 0.02, "{way}: {report}");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", user.daemon_pid()?))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.context("no peak")?.trim().trim_end_matches(" kB");
        let peak: u64 = peak.parse()?;
        ensure!(peak <= 64 << 10, "meshd had {peak} KiB");
        Ok(())
    })
}

#[test]
fn the_mode_is_kept_and_a_busy_port_is_told() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, user, gamma) = two(lab)?;
        let has_problem = |status: &Status| {
            let mut problems = status.problems.iter();
            problems.any(|problem| problem.code == "no_interface")
        };
        ensure!(has_problem(&user.status()?), "nobody asked for it");
        user.ctl_ok(&["up", "--userspace"])?;
        let status = user.status()?;
        ensure!(status.state == RunState::Running, "{status:?}");
        ensure!(!has_problem(&status), "it was asked for: {status:?}");
        let pid = user.daemon_pid()?;
        user.host.sh(&format!("kill -9 {pid}"))?;
        user.ctl_ok(&["up"])?;
        let node = user.status()?.node.context("not joined")?;
        let userspace = node.userspace.context("the mode is forgotten")?;
        ensure!(userspace.socks5 == Some(SOCKS5.parse()?), "{userspace:?}");
        pinged(&gamma, "beta")?;

        user.ctl_ok(&["set", "socks5=1077", "http-proxy=off"])?;
        wait_until("the proxy moved", READY, || {
            let node = user.status()?.node.context("not joined")?;
            let userspace = node.userspace.context("not up")?;
            ensure!(
                userspace.socks5 == Some("127.0.0.1:1077".parse()?),
                "{userspace:?}"
            );
            ensure!(userspace.http_proxy.is_none(), "{userspace:?}");
            Ok(())
        })?;
        let refused = user.ctl(&["set", "socks5=0.0.0.0:1078"])?;
        ensure!(stderr(&refused).contains("loopback"), "{refused:?}");
        user.ctl_ok(&["down"])?;
        let mut command = user.host.command(tool::program("socks-flow")?);
        command.args(["serve", "127.0.0.1:1077"]);
        let _squatter = user.host.spawn("squatter", command)?;
        wait_until("the port is taken", READY, || {
            let listeners = stdout(&user.host.run("ss", &["-ltn"])?);
            ensure!(listeners.contains(":1077"), "{listeners}");
            Ok(())
        })?;
        let busy = user.ctl(&["up"])?;
        ensure!(
            stderr(&busy).contains("127.0.0.1:1077")
                && stderr(&busy).contains("meshctl set socks5=PORT"),
            "{busy:?}"
        );
        user.ctl_ok(&["set", "socks5=1079"])?;
        wait_until("it is up without another word", READY, || {
            let state = user.status()?.state;
            ensure!(state == RunState::Running, "{state:?}");
            Ok(())
        })
    })
}

#[test]
fn a_node_with_an_interface_goes_over_and_comes_back() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        beta.ctl_ok(&["up", "--userspace"])?;
        let node = beta.status()?.node.context("not joined")?;
        ensure!(
            node.userspace.is_some() && node.interface.is_empty(),
            "{node:?}"
        );
        let links = beta.host.sh("ip -o link show")?;
        ensure!(
            !links.contains("proxima0"),
            "the interface is left: {links}"
        );
        pinged(gamma, "beta")?;
        beta.ctl_ok(&["set", "userspace=auto"])?;
        beta.wait_running()?;
        let node = beta.status()?.node.context("not joined")?;
        ensure!(node.userspace.is_none(), "{node:?}");
        wait_until("packets pass again", READY, || {
            ping(beta.host, gamma.ipv4()?)
        })
    })
}

#[test]
fn a_machine_without_the_device_is_no_obstacle_even_to_root() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let gamma = Node::join(lab.host("gamma")?, &key)?;
        let mut beta = Node::start(lab.host("beta")?)?;
        beta.kill();
        let mut command = beta.host.command("unshare");
        let script = "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-ec", script]);
        command
            .arg(tool::program("meshd")?)
            .args(beta.daemon_args());
        let daemon = beta.host.spawn("meshd-bare", command)?;
        wait_until("meshctl reaches meshd", READY, || beta.status().map(drop))?;
        let up = beta.ctl(&["up", "--auth-key", &key])?;
        ensure!(
            up.status.success() && stderr(&up).contains("no network interface"),
            "{up:?}"
        );
        ensure!(daemon.log().contains("userspace mode"), "{}", daemon.log());
        pinged(&gamma, "beta")?;
        // Who insists on an interface is told what is missing.
        beta.ctl_ok(&["set", "userspace=off"])?;
        wait_until("the want of an interface is told", READY, || {
            let status = beta.status()?;
            let mut problems = status.problems.iter();
            let is_told = problems.any(|problem| problem.message.contains("/dev/net/tun"));
            ensure!(is_told, "{status:?}");
            Ok(())
        })
    })
}
