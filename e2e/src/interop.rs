//! A stock WireGuard in the mesh, and steady traffic whose every gap is noticed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::net::Host;
use crate::process::{Process, ensure_success, stdout};
use crate::tool;
use crate::wait::wait_until;

const READY: Duration = Duration::from_secs(15);
const PORT: u16 = 51820;

/// `wireguard-go` on a host, registered as a node by [`crate::control`].
#[derive(Debug)]
pub struct StockPeer<'lab> {
    host: &'lab Host,
    interface: String,
    wireguard: Process,
    registration: Process,
    key_file: PathBuf,
    /// Its IPv4 overlay address.
    pub ipv4: std::net::Ipv4Addr,
}

impl<'lab> StockPeer<'lab> {
    /// Starts it, registers its key and configures it with the peers of the map.
    ///
    /// # Errors
    /// When it does not come up or is refused.
    pub fn join(host: &'lab Host, auth_key: &str) -> Result<Self> {
        Self::join_program(host, auth_key, Path::new("wireguard-go"))
    }

    /// As [`StockPeer::join`], with another build of it.
    ///
    /// # Errors
    /// As [`StockPeer::join`].
    pub fn join_program(host: &'lab Host, auth_key: &str, program: &Path) -> Result<Self> {
        // Its control socket is in one folder for the whole machine, so the name must be its own.
        let interface = format!("wgpx{}", std::process::id());
        let mut command = host.command(program);
        command.args(["-f", &interface]);
        let wireguard = host.spawn("wireguard-go", command)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        wait_until("wireguard-go is up", READY, || {
            ensure!(socket.exists(), "no socket");
            Ok(())
        })?;
        let private = stdout(&Command::new("wg").arg("genkey").output()?);
        let key_file = host.dir().join("wg.key");
        std::fs::write(&key_file, &private)?;
        let public = host.sh(&format!("wg pubkey <{}", key_file.display()))?;
        let endpoint = format!("{}:{PORT}", host.ipv4);
        let mut command = host.command(tool::program("stock-peer")?);
        command.args([auth_key, host.name(), public.trim(), &endpoint]);
        let mut registration = host.spawn("stock-peer", command)?;
        let map = wait_until("the map of the stock peer", READY, || {
            registration.ensure_runs()?;
            let log = registration.log();
            let (lines, _) = log.rsplit_once('\n').context("no map")?;
            let last = lines.lines().next_back().context("no map")?;
            let map: Value = serde_json::from_str(last)?;
            let peers = map["peers"].as_array().context("no peers")?;
            let is_reachable = |peer: &Value| {
                peer["endpoints"]
                    .as_array()
                    .is_some_and(|all| !all.is_empty())
            };
            ensure!(
                !peers.is_empty() && peers.iter().all(is_reachable),
                "no endpoints: {map}"
            );
            Ok(map)
        })?;
        let ipv4 = map["ipv4"].as_str().context("no address")?.parse()?;
        let peer = Self {
            host,
            interface,
            wireguard,
            registration,
            key_file,
            ipv4,
        };
        peer.configure(&map)?;
        Ok(peer)
    }

    fn configure(&self, map: &Value) -> Result<()> {
        let (host, interface) = (self.host, &self.interface);
        let key = self.key_file.display();
        host.sh(&format!(
            "wg set {interface} listen-port {PORT} private-key {key}"
        ))?;
        for peer in map["peers"].as_array().context("no peers")? {
            let text = |key: &str| peer[key].as_str().with_context(|| format!("no {key}"));
            let endpoints = peer["endpoints"].as_array().context("no endpoints")?;
            let endpoint = endpoints
                .iter()
                .filter_map(Value::as_str)
                .find(|endpoint| endpoint.starts_with("192.168."))
                .context("no endpoint on the underlay")?;
            host.sh(&format!(
                "wg set {interface} peer {} endpoint {endpoint} allowed-ips {}/32,{}/128",
                text("public_key")?,
                text("ipv4")?,
                text("ipv6")?
            ))?;
        }
        let text = |key: &str| map[key].as_str().with_context(|| format!("no {key}"));
        host.sh(&format!(
            "ip address add {}/32 dev {interface}
             ip address add {}/128 dev {interface} nodad
             ip link set {interface} mtu 1280 up
             ip route add {} dev {interface}
             ip route add {} dev {interface}",
            text("ipv4")?,
            text("ipv6")?,
            text("ipv4_pool")?,
            text("ipv6_prefix")?
        ))?;
        Ok(())
    }

    /// Makes it forget its sessions, so that it begins a new handshake with its next packet.
    ///
    /// # Errors
    /// When it does not take the change.
    pub fn force_rekey(&self) -> Result<()> {
        // Setting another key ends every session; setting the first one again lets them come about anew.
        let (interface, key) = (&self.interface, self.key_file.display());
        self.host.sh(&format!(
            "wg genkey >{key}.other
             wg set {interface} private-key {key}.other
             wg set {interface} private-key {key}"
        ))?;
        Ok(())
    }

    /// When its last handshake was, Unix seconds; 0 before the first.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn last_handshake(&self) -> Result<u64> {
        let text = self
            .host
            .sh(&format!("wg show {} latest-handshakes", self.interface))?;
        let times = text.split_whitespace().filter_map(|word| word.parse().ok());
        times.max().context("no peer")
    }

    /// Fails when one of its programs has ended.
    ///
    /// # Errors
    /// With the end of the log.
    pub fn ensure_runs(&mut self) -> Result<()> {
        self.wireguard.ensure_runs()?;
        self.registration.ensure_runs()
    }
}

impl Drop for StockPeer<'_> {
    fn drop(&mut self) {
        self.wireguard.kill();
        // wireguard-go removes it only when asked to end.
        drop(std::fs::remove_file(format!(
            "/var/run/wireguard/{}.sock",
            self.interface
        )));
    }
}

/// One echo request each fifth of a second, each answer with its time.
#[derive(Debug)]
pub struct Traffic {
    ping: Process,
}

/// What became of the traffic.
#[derive(Debug, Clone, Copy)]
pub struct Gaps {
    /// Answers that came.
    pub n_answers: usize,
    /// The longest time between two answers.
    pub longest: Duration,
}

impl Traffic {
    /// Starts it.
    ///
    /// # Errors
    /// When `ping` cannot be started.
    pub fn start(host: &Host, target: std::net::Ipv4Addr) -> Result<Self> {
        let mut command = host.command("ping");
        command.args(["-n", "-D", "-O", "-i", "0.2", &target.to_string()]);
        let ping = host.spawn(&format!("traffic-{}", host.name()), command)?;
        Ok(Self { ping })
    }

    /// What became of it so far.
    ///
    /// # Errors
    /// When there was no answer at all.
    pub fn gaps(&self) -> Result<Gaps> {
        let log = self.ping.log();
        let times: Vec<f64> = log.lines().filter_map(answer_time).collect();
        ensure!(times.len() > 1, "no answers: {log}");
        let steps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let longest = steps.fold(0.0, f64::max);
        Ok(Gaps {
            n_answers: times.len(),
            longest: Duration::from_secs_f64(longest),
        })
    }

    /// Ends it, and says what became of it.
    ///
    /// # Errors
    /// When there was no answer at all.
    pub fn finish(mut self) -> Result<Gaps> {
        self.ping.kill();
        self.gaps()
    }
}

/// The time of an answer in a line such as `[1795440170.123456] 64 bytes from …`.
fn answer_time(line: &str) -> Option<f64> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
    rest.contains("bytes from").then(|| time.parse().ok())?
}

/// Waits until two hosts reach each other.
///
/// # Errors
/// When they do not in time.
pub fn wait_both_ways(
    a: (&Host, std::net::Ipv4Addr),
    b: (&Host, std::net::Ipv4Addr),
) -> Result<()> {
    for (from, to) in [(a.0, b.1), (b.0, a.1)] {
        wait_until("the other side answers", READY, || {
            let output = from.run(
                "ping",
                &["-n", "-i", "0.2", "-c", "1", "-w", "3", &to.to_string()],
            )?;
            ensure_success("ping", &output)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::answer_time;

    #[test]
    fn only_answers_count() {
        let answer = "[1795440170.250000] 64 bytes from 10.1.2.3: icmp_seq=1 ttl=64 time=0.4 ms";
        assert_eq!(answer_time(answer), Some(1_795_440_170.25));
        assert_eq!(
            answer_time("[1795440170.25] no answer yet for icmp_seq=3"),
            None
        );
        assert_eq!(
            answer_time("PING 10.1.2.3 (10.1.2.3) 56(84) bytes of data."),
            None
        );
    }
}
