//! Namespaces, links and faults: a router with a network for each host.
//!
//! ```text
//!   host 1  eth0 192.168.1.2/24 ──── h1 192.168.1.1 ┐
//!   host 2  eth0 192.168.2.2/24 ──── h2 192.168.2.1 ┤ router
//!   host 3  eth0 192.168.3.2/24 ──── h3 192.168.3.1 ┘
//! ```
//! IPv6 is `fd00:1ab:N::/64` alike.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::process::{Process, ensure_success, stdout, tail};

pub mod nat;
pub mod sweep;
mod upnp;

/// How long a program of the router may take until it is ready.
const READY: std::time::Duration = std::time::Duration::from_secs(10);
/// No command that is run to its end may take longer.
const RUN_LIMIT_SECONDS: &str = "120";

/// Which congestion controls of TCP namespaces may choose.
const ALLOWED_CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
static N_LABS: AtomicU32 = AtomicU32::new(0);

/// A router and its hosts.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    router: String,
    hosts: Vec<Host>,
    dir: TempDir,
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    /// None for this machine itself.
    namespace: Option<String>,
    /// Its address on the underlay.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    pub ipv6: Ipv6Addr,
    dir: PathBuf,
}

/// Whether this process may make namespaces.
#[must_use]
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt as _;
        meta.uid() == 0
    })
}

/// Runs a test in a lab with named hosts. On failure the ends of all logs are printed and the logs kept.
///
/// Without root it fails on a CI machine, and elsewhere says that it did nothing.
///
/// # Errors
/// What the test says.
pub fn scenario(hosts: &[&str], test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if !is_root() {
        if std::env::var_os("CI").is_some() {
            bail!("the lab needs root");
        }
        report("skipped: the lab needs root");
        return Ok(());
    }
    let lab = Lab::new(hosts)?;
    let result = test(&lab);
    if result.is_err() {
        lab.keep_logs();
    }
    result
}

impl Lab {
    /// Builds the namespaces and their links.
    ///
    /// # Errors
    /// When a command is missing or refused, such as without root.
    pub fn new(hosts: &[&str]) -> Result<Self> {
        sweep::sweep_dead();
        let prefix = format!(
            "px{}-{}-",
            std::process::id(),
            N_LABS.fetch_add(1, Ordering::Relaxed)
        );
        sweep::on_signal(&prefix)?;
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut lab = Self {
            router: format!("{prefix}router"),
            prefix,
            hosts: Vec::new(),
            dir,
        };
        ip(&["netns", "add", &lab.router])?;
        ip(&["-n", &lab.router, "link", "set", "lo", "up"])?;
        lab.router_sh(
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        )?;
        for (index, name) in hosts.iter().enumerate() {
            let number = u8::try_from(index + 1).context("too many hosts")?;
            let host = lab.add_host(name, number)?;
            lab.hosts.push(host);
        }
        Ok(lab)
    }

    /// Hosts that are this machine itself, on loopback: folders and names, and no privilege needed.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn of_this_machine(hosts: &[&str]) -> Result<Self> {
        let prefix = format!(
            "px{}-{}-",
            std::process::id(),
            N_LABS.fetch_add(1, Ordering::Relaxed)
        );
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let host = |name: &&str| {
            let dir = dir.path().join(name);
            fs::create_dir_all(&dir)?;
            Ok(Host {
                name: (*name).to_owned(),
                namespace: None,
                ipv4: Ipv4Addr::LOCALHOST,
                ipv6: Ipv6Addr::LOCALHOST,
                dir,
            })
        };
        let hosts = hosts.iter().map(host).collect::<Result<_>>()?;
        Ok(Self {
            router: String::new(),
            prefix,
            hosts,
            dir,
        })
    }

    fn add_host(&self, name: &str, number: u8) -> Result<Host> {
        let namespace = format!("{}{name}", self.prefix);
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir)?;
        let host = Host {
            name: name.to_owned(),
            ipv4: Ipv4Addr::new(192, 168, number, 2),
            ipv6: Ipv6Addr::new(0xfd00, 0x1ab, u16::from(number), 0, 0, 0, 0, 2),
            dir,
            namespace: Some(namespace.clone()),
        };
        // Without a resolver of its own the host must not ask that of the machine.
        host.write_resolv_conf("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        let (outer, n) = (format!("h{number}"), namespace.as_str());
        let r = self.router.as_str();
        ip(&["netns", "add", n])?;
        ip(&[
            "link", "add", "eth0", "netns", n, "type", "veth", "peer", "name", &outer, "netns", r,
        ])?;
        let v4 = |last: u8| format!("192.168.{number}.{last}/24");
        let v6 = |last: u8| format!("fd00:1ab:{number:x}::{last}/64");
        ip(&["-n", r, "address", "add", &v4(1), "dev", &outer])?;
        ip(&["-n", r, "address", "add", &v6(1), "dev", &outer, "nodad"])?;
        ip(&["-n", n, "address", "add", &v4(2), "dev", "eth0"])?;
        ip(&["-n", n, "address", "add", &v6(2), "dev", "eth0", "nodad"])?;
        ip(&["-n", r, "link", "set", &outer, "up"])?;
        ip(&["-n", n, "link", "set", "lo", "up"])?;
        ip(&["-n", n, "link", "set", "eth0", "up"])?;
        let gateway = format!("192.168.{number}.1");
        ip(&["-n", n, "route", "add", "default", "via", &gateway])?;
        let gateway = format!("fd00:1ab:{number:x}::1");
        ip(&["-n", n, "-6", "route", "add", "default", "via", &gateway])?;
        Ok(host)
    }

    /// Has TCP of all hosts controlled by cubic, as Linux does unless told otherwise: a namespace starts with what the
    /// machine was set to.
    ///
    /// # Errors
    /// When the kernel has no cubic or does not let it be chosen.
    pub fn use_cubic(&self) -> Result<()> {
        // What a namespace may choose is told in the kernel's own one.
        let allowed = fs::read_to_string(ALLOWED_CONGESTION_CONTROL)?;
        if !allowed.split_whitespace().any(|name| name == "cubic") {
            fs::write(
                ALLOWED_CONGESTION_CONTROL,
                format!("{} cubic", allowed.trim()),
            )
            .context("letting namespaces use cubic")?;
        }
        for host in &self.hosts {
            host.sh("echo cubic >/proc/sys/net/ipv4/tcp_congestion_control")?;
        }
        Ok(())
    }

    /// A host by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.with_context(|| format!("the lab has no host {name}"))
    }

    fn number(&self, host: &Host) -> usize {
        let index = self.hosts.iter().position(|other| other.name == host.name);
        index.map_or(0, |index| index + 1)
    }

    fn router_sh(&self, script: &str) -> Result<()> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.router, "sh", "-ec", script])
            .output()?;
        ensure_success(script, &output)
    }

    /// Cuts a host off without a word: its link stays up, and nothing passes.
    ///
    /// # Errors
    /// When the packet filter refuses.
    pub fn isolate(&self, host: &Host) -> Result<()> {
        let n = self.number(host);
        self.router_sh(&format!(
            "nft -f - <<END
table inet isolate{n} {{
    chain in {{ type filter hook prerouting priority -300; iifname \"h{n}\" drop; }}
    chain out {{ type filter hook postrouting priority 300; oifname \"h{n}\" drop; }}
}}
END"
        ))
    }

    /// Ends [`Lab::isolate`].
    ///
    /// # Errors
    /// When the host was not cut off.
    pub fn heal(&self, host: &Host) -> Result<()> {
        self.router_sh(&format!(
            "nft delete table inet isolate{}",
            self.number(host)
        ))
    }

    /// Makes the router lose a share of the packets that a host sends and receives.
    ///
    /// # Errors
    /// When the packet filter refuses.
    pub fn lose(&self, host: &Host, percent: u8) -> Result<()> {
        let n = self.number(host);
        self.router_sh(&format!(
            "nft -f - <<END
table inet lose{n} {{
    chain in {{ type filter hook prerouting priority -299; iifname \"h{n}\" numgen random mod 100 < {percent} drop; }}
    chain out {{ type filter hook postrouting priority 299; oifname \"h{n}\" numgen random mod 100 < {percent} drop; }}
}}
END"
        ))
    }

    /// Has a host's link carry packets of wire size alone, both ways, as a plain network card does.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn cut(&self, host: &Host) -> Result<()> {
        let link = format!("h{}", self.number(host));
        for (namespace, link) in [
            (self.router.as_str(), link.as_str()),
            (host.namespace()?, "eth0"),
        ] {
            ip(&["-n", namespace, "link", "set", link, "gso_max_segs", "1"])?;
        }
        Ok(())
    }

    /// Leads the UDP packets between two hosts through `weather.py`: each comes twice, and those of a block in any order.
    ///
    /// # Errors
    /// When it does not come up, or a command is refused.
    pub fn weather(&self, pair: (&Host, &Host), depth: &str) -> Result<Process> {
        self.lead_through(pair, "ipproto udp", &[depth])
    }

    /// Has each packet between two hosts take so many milliseconds longer, each way.
    ///
    /// # Errors
    /// When it does not come up, or a command is refused.
    pub fn delay(&self, pair: (&Host, &Host), ms: u32) -> Result<Process> {
        self.lead_through(pair, "", &["delay", &ms.to_string()])
    }

    fn lead_through(&self, (a, b): (&Host, &Host), what: &str, args: &[&str]) -> Result<Process> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.router])
            .arg(crate::tool::python()?)
            .arg(crate::tool::root().join("e2e/bench/weather.py"))
            .arg("weather0")
            .args(args);
        let weather = Process::spawn("weather", command, &self.dir.path().join("weather.log"))?;
        crate::wait::wait_until("the weather is there", READY, || {
            anyhow::ensure!(weather.log().contains("ready"), "{}", weather.log());
            Ok(())
        })?;
        self.router_sh("ip route add default dev weather0 table 77; ip -6 route add default dev weather0 table 77")?;
        for (from, to) in [(a, b), (b, a)] {
            let link = format!("h{}", self.number(from));
            self.router_sh(&format!(
                "ip rule add iif {link} {what} to {} table 77
                 ip -6 rule add iif {link} {what} to {} table 77",
                to.ipv4, to.ipv6
            ))?;
        }
        Ok(weather)
    }

    /// Lets no datagram pass to a host that is longer than `mtu` with its headers, and tells no sender of UDP; 1,500 ends it.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn black_hole(&self, host: &Host, mtu: u16) -> Result<()> {
        // By routes, for these look at the segments of a super-packet one by one. TCP of the underlay hears of it.
        let n = self.number(host);
        self.router_sh(&format!(
            "ip route replace 192.168.{n}.0/24 dev h{n} src 192.168.{n}.1 mtu lock {mtu}
ip -6 route replace fd00:1ab:{n:x}::/64 dev h{n} metric 256 mtu lock {mtu}
nft -f - <<END
table inet hole
delete table inet hole
table inet hole {{
    chain output {{
        type filter hook output priority 0;
        icmp type destination-unreachable @nh,296,8 17 drop;
        icmpv6 type packet-too-big @nh,432,8 17 drop;
    }}
}}
END"
        ))
    }

    /// Sets the MTU of a host's link, at both of its ends.
    ///
    /// # Errors
    /// When a command is refused.
    pub fn set_link_mtu(&self, host: &Host, mtu: u16) -> Result<()> {
        let (link, mtu) = (format!("h{}", self.number(host)), mtu.to_string());
        ip(&["-n", &self.router, "link", "set", &link, "mtu", &mtu])?;
        ip(&["-n", host.namespace()?, "link", "set", "eth0", "mtu", &mtu])
    }

    /// Lets no UDP pass between hosts.
    ///
    /// # Errors
    /// When the packet filter refuses.
    pub fn block_udp(&self) -> Result<()> {
        self.router_sh(
            "nft -f - <<END
table inet noudp {
    chain forward { type filter hook forward priority -300; meta l4proto udp drop; }
}
END",
        )
    }

    /// Lets no UDP pass between two hosts; to all others it does.
    ///
    /// # Errors
    /// When the packet filter refuses.
    pub fn block_udp_between(&self, one: &Host, other: &Host) -> Result<()> {
        let (a, b) = (self.number(one), self.number(other));
        self.router_sh(&format!(
            "nft -f - <<END
table inet noudp{a}to{b} {{
    chain forward {{
        type filter hook forward priority -300;
        iifname \"h{a}\" oifname \"h{b}\" meta l4proto udp drop;
        iifname \"h{b}\" oifname \"h{a}\" meta l4proto udp drop;
    }}
}}
END"
        ))
    }

    /// Ends [`Lab::block_udp`].
    ///
    /// # Errors
    /// When it was not blocked.
    pub fn pass_udp(&self) -> Result<()> {
        self.router_sh("nft delete table inet noudp")
    }

    /// Lets a host reach one other and nothing else, as behind a company's proxy.
    ///
    /// # Errors
    /// When the packet filter refuses.
    pub fn confine(&self, host: &Host, to: &Host) -> Result<()> {
        let (n, to_v4) = (self.number(host), to.ipv4);
        self.router_sh(&format!(
            "nft -f - <<END
table inet confine{n} {{
    chain forward {{
        type filter hook forward priority -299;
        iifname \"h{n}\" ip daddr != {to_v4} drop;
        iifname \"h{n}\" meta nfproto ipv6 drop;
        oifname \"h{n}\" ip saddr != {to_v4} drop;
        oifname \"h{n}\" meta nfproto ipv6 drop;
    }}
}}
END"
        ))
    }

    /// Switches a host's link off or on, which the host notices.
    ///
    /// # Errors
    /// When the host has no link.
    pub fn set_link(&self, host: &Host, is_up: bool) -> Result<()> {
        let link = format!("h{}", self.number(host));
        let state = if is_up { "up" } else { "down" };
        ip(&["-n", &self.router, "link", "set", &link, state])
    }

    /// Gives a host a second link to the router, by which nothing is led yet, and tells the router's address on it.
    ///
    /// # Errors
    /// When a command is refused, such as for a second call.
    pub fn add_link(&self, host: &Host) -> Result<Ipv4Addr> {
        let number = u8::try_from(self.number(host))?;
        let (outer, r, n) = (format!("s{number}"), &self.router, host.namespace()?);
        ip(&[
            "link", "add", "eth1", "netns", n, "type", "veth", "peer", "name", &outer, "netns", r,
        ])?;
        let addr = |last: u8| Ipv4Addr::new(192, 168, 100 + number, last);
        let (own, gateway) = (format!("{}/24", addr(2)), addr(1));
        let gateway_addr = format!("{gateway}/24");
        ip(&["-n", r, "address", "add", &gateway_addr, "dev", &outer])?;
        ip(&["-n", n, "address", "add", &own, "dev", "eth1"])?;
        ip(&["-n", r, "link", "set", &outer, "up"])?;
        ip(&["-n", n, "link", "set", "eth1", "up"])?;
        Ok(gateway)
    }

    /// Prints the ends of all logs and copies them to `e2e/out/`.
    pub fn keep_logs(&self) {
        let name = std::thread::current()
            .name()
            .unwrap_or("lab")
            .replace(':', "_");
        let target = crate::tool::root().join("e2e/out").join(name);
        let mut text = String::new();
        for host in &self.hosts {
            for path in host.logs() {
                let bytes = fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&bytes);
                let file = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                text += &format!("--- {} {file}\n{}\n", host.name, tail(&log, 25));
                if fs::create_dir_all(&target).is_ok() {
                    drop(fs::write(
                        target.join(format!("{}-{file}", host.name)),
                        &bytes,
                    ));
                }
            }
        }
        report(&format!("{text}--- logs are kept in {}", target.display()));
    }
}

#[expect(clippy::print_stderr, reason = "a failing test's own words")]
fn report(text: &str) {
    eprintln!("{text}");
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        sweep::sweep(&self.prefix);
    }
}

impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> Result<&str> {
        let namespace = self.namespace.as_deref();
        namespace.context("this machine itself is not the lab's to change")
    }

    /// A folder for its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn logs(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut logs: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort();
        logs
    }

    /// A command that will run on this host, to which arguments can be added.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                // A UTS namespace beside the network one, so that each host has its own host name.
                command
                    .args(["netns", "exec", namespace, "unshare", "--uts", "sh", "-c"])
                    .args([
                        "ulimit -n $(ulimit -Hn); hostname \"$0\" && exec \"$@\"",
                        &self.name,
                    ])
                    .arg(program);
                command
            }
        };
        command.env_remove("http_proxy").env_remove("https_proxy");
        command.env_remove("HTTP_PROXY").env_remove("HTTPS_PROXY");
        command.env_remove("ALL_PROXY").env_remove("all_proxy");
        command
    }

    /// Runs a program on this host to its end, with a limit of its time.
    ///
    /// # Errors
    /// When it cannot be started. An exit status is not an error here.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Output> {
        let mut command = self.command("timeout");
        command
            .args(["-k", "1", RUN_LIMIT_SECONDS])
            .arg(&program)
            .args(args);
        let output = command.output();
        output.with_context(|| format!("{} on {}", program.as_ref().display(), self.name))
    }

    /// Runs a shell script on this host, which must succeed, and gives its standard output.
    ///
    /// # Errors
    /// When it fails, with its outputs.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run("sh", &["-ec", script])?;
        ensure_success(script, &output)?;
        Ok(stdout(&output))
    }

    /// Starts a program made with [`Host::command`], with its log beside its files.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(name, command, &self.dir.join(format!("{name}.log")))
    }

    /// What `/etc/resolv.conf` says on this host.
    ///
    /// # Errors
    /// When `/etc/netns` cannot be written.
    pub fn write_resolv_conf(&self, text: &str) -> Result<()> {
        let folder = Path::new(sweep::ETC_NETNS).join(self.namespace()?);
        fs::create_dir_all(&folder)?;
        // Written in place: running programs see the same file through their bind mounts.
        fs::write(folder.join("resolv.conf"), text)?;
        Ok(())
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip")?;
    ensure_success(&format!("ip {}", args.join(" ")), &output)
}
