//! Each way in, against stand-ins on a bus of our own and in a root of our own; undoing; repair after a crash.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

struct Machine {
    folder: TempDir,
    bus: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(bus) = &mut self.bus {
            let _ = bus.kill();
            let _ = bus.wait();
        }
    }
}

impl Machine {
    fn new(resolv_conf: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "etc/NetworkManager/dnsmasq.d",
            "usr/sbin",
            "sys/class/net/proxima0",
            "state",
        ] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("etc/resolv.conf"), resolv_conf).unwrap();
        fs::write(folder.path().join("sys/class/net/proxima0/ifindex"), "7\n").unwrap();
        Self { folder, bus: None }
    }

    fn with_bus(resolv_conf: &str) -> Self {
        let mut machine = Self::new(resolv_conf);
        let config = machine.folder.path().join("bus.conf");
        let socket = machine.folder.path().join("bus");
        fs::write(
            &config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy \
                 context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
                 <allow own=\"*\"/></policy></busconfig>",
                socket.display()
            ),
        )
        .unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is needed: apt install dbus");
        // The address is printed once the bus listens.
        let mut line = String::new();
        io::BufRead::read_line(
            &mut io::BufReader::new(bus.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        machine.bus = Some(bus);
        machine
    }

    fn system(&self) -> System {
        System {
            root: self.folder.path().to_owned(),
            bus: Some(format!(
                "unix:path={}",
                self.folder.path().join("bus").display()
            )),
            journal: self.folder.path().join("state/names.json"),
            root_side: None,
        }
    }

    /// The same machine, as a process sees it that is not root.
    fn system_of_a_user(&self) -> System {
        System {
            root_side: Some(self.folder.path().join("orders")),
            ..self.system()
        }
    }

    /// Does what the units `meshd-names` do: each connection is one order, carried out as root.
    fn serve_orders(&self) -> tokio::task::JoinHandle<()> {
        let system = self.system();
        let listener = tokio::net::UnixListener::bind(self.folder.path().join("orders")).unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (input, output) = stream.into_split();
                order::answer(&system, input, output).await.unwrap();
            }
        })
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join(path)).ok()
    }

    /// A resolvconf that keeps records as files, as both real ones do.
    fn install_resolvconf(&self) {
        let path = self.folder.path().join("usr/sbin/resolvconf");
        let records = self.folder.path().join("state");
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in -f) echo unknown option >&2; exit 1;; -a) cat > {0}/record.$2;; -d) rm -f \
             {0}/record.$2;; esac\n",
            records.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn wire(&self) -> NameWiring {
        NameWiring::detect_and_apply(self.system(), plan()).await
    }
}

fn plan() -> Plan {
    Plan {
        interface: "proxima0".to_owned(),
        index: 7,
        servers: vec![
            "10.77.0.53".parse().unwrap(),
            "fdab:abab:abab::53".parse().unwrap(),
        ],
        domains: ["proxima", "proxima.internal", "77.10.in-addr.arpa"]
            .map(str::to_owned)
            .to_vec(),
    }
}

/// systemd-resolved's manager, as far as it is called; it notes the calls.
#[derive(Clone, Default)]
struct FakeResolved {
    calls: Arc<Mutex<Vec<String>>>,
    link: FakeLink,
    refuses: bool,
}

type Servers = Vec<(i32, Vec<u8>)>;

/// What systemd-resolved has for the link 7.
#[derive(Clone, Default)]
struct FakeLink {
    servers: Arc<Mutex<Servers>>,
    domains: Arc<Mutex<Vec<(String, bool)>>>,
}

impl FakeLink {
    fn set_servers(&self, servers: Servers) {
        *self.servers.lock().unwrap() = servers;
    }

    fn forget(&self) {
        self.servers.lock().unwrap().clear();
        self.domains.lock().unwrap().clear();
    }
}

#[zbus::interface(name = "org.freedesktop.resolve1.Link")]
impl FakeLink {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Servers {
        self.servers.lock().unwrap().clone()
    }

    #[zbus(property)]
    fn domains(&self) -> Vec<(String, bool)> {
        self.domains.lock().unwrap().clone()
    }
}

impl FakeResolved {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl FakeResolved {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, addrs: Vec<(i32, Vec<u8>)>) -> zbus::fdo::Result<()> {
        if self.refuses {
            return Err(zbus::fdo::Error::AccessDenied("polkit says no".to_owned()));
        }
        let lens: Vec<(i32, usize)> = addrs
            .iter()
            .map(|(family, bytes)| (*family, bytes.len()))
            .collect();
        self.note(format!("dns {index} {lens:?}"));
        self.link.set_servers(addrs);
        Ok(())
    }

    fn set_link_domains(&self, index: i32, domains: Vec<(String, bool)>) {
        self.note(format!("domains {index} {domains:?}"));
        *self.link.domains.lock().unwrap() = domains;
    }

    fn get_link(&self, index: i32) -> zbus::OwnedObjectPath {
        assert_eq!(index, 7);
        LINK_PATH.try_into().unwrap()
    }

    fn set_link_default_route(&self, index: i32, is_default: bool) {
        self.note(format!("default {index} {is_default}"));
    }

    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, _index: i32, _mode: String) {}

    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, _index: i32, _mode: String) {}

    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, _index: i32, _mode: String) {}

    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, _index: i32, _mode: String) {}

    fn revert_link(&self, index: i32) {
        self.link.forget();
        self.note(format!("revert {index}"));
    }

    fn flush_caches(&self) {
        self.note("flush".to_owned());
    }
}

const LINK_PATH: &str = "/org/freedesktop/resolve1/link/_37";

async fn serve(machine: &Machine, fake: &FakeResolved) -> Connection {
    let address = machine.system().bus.unwrap();
    zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.resolve1")
        .serve_at("/org/freedesktop/resolve1", fake.clone())
        .serve_at(LINK_PATH, fake.link.clone())
        .build()
        .await
        .unwrap()
}

const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";

fn expected_calls() -> Vec<String> {
    vec![
        "dns 7 [(2, 4), (10, 16)]".to_owned(),
        "domains 7 [(\"proxima\", true), (\"proxima.internal\", true), (\"77.10.in-addr.arpa\", true)]".to_owned(),
        "default 7 false".to_owned(),
        "flush".to_owned(),
    ]
}

#[tokio::test]
async fn resolved_is_told_told_again_when_it_restarts_and_reverted() {
    let machine = Machine::with_bus(STUB);
    let fake = FakeResolved::default();
    let service = serve(&machine, &fake).await;
    let wiring = machine.wire().await;
    assert_eq!(
        wiring.status(),
        WiringStatus {
            manager: "systemd-resolved",
            is_wired: true,
            hint: None
        }
    );
    assert_eq!(fake.take(), expected_calls());
    assert!(wiring.upstreams().is_empty());

    drop(service);
    let _service = serve(&machine, &fake).await;
    let renewed = async {
        while fake.calls.lock().unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), renewed)
        .await
        .unwrap();
    assert_eq!(fake.take(), expected_calls());

    wiring.undo().await.unwrap();
    assert_eq!(fake.take(), ["revert 7", "flush"]);
    assert_eq!(machine.text("state/names.json"), None);
    assert_eq!(machine.text("etc/resolv.conf").as_deref(), Some(STUB));
}

#[tokio::test]
async fn what_a_crash_left_in_resolved_is_reverted_unless_the_link_is_another() {
    let machine = Machine::with_bus(STUB);
    let fake = FakeResolved::default();
    let _service = serve(&machine, &fake).await;
    drop(machine.wire().await);
    assert!(machine.text("state/names.json").is_some());
    fake.take();
    undo_leftovers(&machine.system()).await.unwrap();
    assert_eq!(fake.take(), ["revert 7", "flush"]);
    assert_eq!(machine.text("state/names.json"), None);

    drop(machine.wire().await);
    fake.take();
    fs::write(
        machine.folder.path().join("sys/class/net/proxima0/ifindex"),
        "8\n",
    )
    .unwrap();
    undo_leftovers(&machine.system()).await.unwrap();
    assert_eq!(fake.take(), Vec::<String>::new());
    assert_eq!(machine.text("state/names.json"), None);
}

#[tokio::test]
async fn resolved_that_forgot_the_link_is_noticed() {
    let machine = Machine::with_bus(STUB);
    let fake = FakeResolved::default();
    let service = serve(&machine, &fake).await;
    let wiring = machine.wire().await;
    let watch = wiring.watch();
    assert!(!watch.is_stale().await);
    // What NetworkManager does to the link of a device that it comes to know.
    fake.link.forget();
    assert!(watch.is_stale().await);

    let wiring = machine.wire().await;
    let watch = wiring.watch();
    assert!(!watch.is_stale().await);
    // One that is away has forgotten nothing yet.
    drop(service);
    assert!(!watch.is_stale().await);
}

#[tokio::test]
async fn a_resolver_that_becomes_another_one_is_noticed() {
    let machine = Machine::with_bus("nameserver 192.0.2.1\n");
    let fake = FakeResolved::default();
    let wiring = machine.wire().await;
    let watch = wiring.watch();
    assert_eq!(wiring.status().manager, "none");
    assert!(!watch.is_stale().await);

    // systemd-resolved is installed: the file is there before the service.
    fs::write(machine.folder.path().join("etc/resolv.conf"), STUB).unwrap();
    assert!(watch.is_stale().await);
    let wiring = machine.wire().await;
    assert!(wiring.status().hint.unwrap().contains("does not run"));
    assert!(wiring.watch().is_stale().await);
    let _service = serve(&machine, &fake).await;
    assert_eq!(machine.wire().await.status().manager, "systemd-resolved");
}

#[tokio::test]
async fn a_refusal_of_resolved_is_told_with_its_reason() {
    let machine = Machine::with_bus(STUB);
    let fake = FakeResolved {
        refuses: true,
        ..FakeResolved::default()
    };
    let _service = serve(&machine, &fake).await;
    let status = machine.wire().await.status();
    assert_eq!((status.manager, status.is_wired), ("none", false));
    let hint = status.hint.unwrap();
    assert!(
        hint.contains("polkit says no") && hint.contains("apt install polkitd"),
        "{hint}"
    );
}

#[tokio::test]
async fn resolved_that_nobody_asks_is_not_used() {
    let machine = Machine::with_bus("nameserver 192.0.2.1\n");
    let fake = FakeResolved::default();
    let _service = serve(&machine, &fake).await;
    assert_eq!(machine.wire().await.status().manager, "none");
    fs::write(
        machine.folder.path().join("etc/nsswitch.conf"),
        "hosts: files resolve [!UNAVAIL=return] dns\n",
    )
    .unwrap();
    assert_eq!(machine.wire().await.status().manager, "systemd-resolved");
}

struct FakeNetworkManager(Arc<Mutex<Vec<String>>>);

#[zbus::interface(name = "org.freedesktop.NetworkManager")]
impl FakeNetworkManager {
    fn reload(&self, flags: u32) {
        self.0.lock().unwrap().push(format!("reload {flags}"));
    }
}

struct FakeDnsManager(&'static str);

#[zbus::interface(name = "org.freedesktop.NetworkManager.DnsManager")]
impl FakeDnsManager {
    #[zbus(property)]
    fn mode(&self) -> String {
        self.0.to_owned()
    }
}

async fn serve_network_manager(
    machine: &Machine,
    mode: &'static str,
    calls: &Arc<Mutex<Vec<String>>>,
) -> Connection {
    let address = machine.system().bus.unwrap();
    zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.NetworkManager")
        .serve_at(
            "/org/freedesktop/NetworkManager",
            FakeNetworkManager(Arc::clone(calls)),
        )
        .serve_at(
            "/org/freedesktop/NetworkManager/DnsManager",
            FakeDnsManager(mode),
        )
        .build()
        .await
        .unwrap()
}

#[tokio::test]
async fn network_manager_with_dnsmasq_gets_a_file_of_ours() {
    const FILE: &str = "etc/NetworkManager/dnsmasq.d/proxima.conf";
    let machine = Machine::with_bus("# Generated by NetworkManager\nnameserver 127.0.0.1\n");
    let calls = Arc::default();
    let _service = serve_network_manager(&machine, "dnsmasq", &calls).await;
    let wiring = machine.wire().await;
    assert_eq!(wiring.status().manager, "NetworkManager");
    assert!(!wiring.watch().is_stale().await);
    let rules = machine.text(FILE).unwrap();
    assert!(
        rules.contains("server=/proxima/10.77.0.53\n")
            && rules.contains("server=/77.10.in-addr.arpa/"),
        "{rules}"
    );
    wiring.undo().await.unwrap();
    assert_eq!(machine.text(FILE), None);

    drop(machine.wire().await);
    undo_leftovers(&machine.system()).await.unwrap();
    assert_eq!(
        (machine.text(FILE), machine.text("state/names.json")),
        (None, None)
    );
    assert_eq!(*calls.lock().unwrap(), ["reload 4"; 4]);
}

#[tokio::test]
async fn network_manager_alone_is_left_alone() {
    let text = "# Generated by NetworkManager\nnameserver 192.168.1.1\n";
    let machine = Machine::with_bus(text);
    let calls = Arc::default();
    let _service = serve_network_manager(&machine, "default", &calls).await;
    let wiring = machine.wire().await;
    let status = wiring.status();
    assert!(!status.is_wired && status.hint.unwrap().contains("NetworkManager"));
    assert_eq!(wiring.upstreams(), ["192.168.1.1:53".parse().unwrap()]);
    assert_eq!(machine.text("etc/resolv.conf").as_deref(), Some(text));
}

#[tokio::test]
async fn resolvconf_gets_a_record_that_goes_away_again() {
    let machine =
        Machine::new("# Generated by resolvconf\nnameserver 10.77.0.53\nnameserver 192.0.2.1\n");
    machine.install_resolvconf();
    let wiring = machine.wire().await;
    assert_eq!(wiring.status().manager, "resolvconf");
    let record = machine.text("state/record.tun0-proxima").unwrap();
    assert_eq!(
        record,
        "nameserver 10.77.0.53\nnameserver fdab:abab:abab::53\n"
    );
    assert_eq!(wiring.upstreams(), ["192.0.2.1:53".parse().unwrap()]);
    wiring.undo().await.unwrap();
    assert_eq!(machine.text("state/record.tun0-proxima"), None);

    drop(machine.wire().await);
    assert!(machine.text("state/record.tun0-proxima").is_some());
    undo_leftovers(&machine.system()).await.unwrap();
    assert_eq!(machine.text("state/record.tun0-proxima"), None);
    assert_eq!(machine.text("state/names.json"), None);
}

#[tokio::test]
async fn what_only_root_may_is_done_by_root_side() {
    const FILE: &str = "etc/NetworkManager/dnsmasq.d/proxima.conf";
    let machine = Machine::with_bus("# Generated by resolvconf\nnameserver 10.77.0.53\n");
    machine.install_resolvconf();
    let orders = machine.serve_orders();
    let wire = || NameWiring::detect_and_apply(machine.system_of_a_user(), plan());
    let wiring = wire().await;
    assert_eq!(wiring.status().manager, "resolvconf");
    assert!(machine.text("state/record.tun0-proxima").is_some());
    wiring.undo().await.unwrap();
    assert_eq!(machine.text("state/record.tun0-proxima"), None);

    let calls = Arc::default();
    let _service = serve_network_manager(&machine, "dnsmasq", &calls).await;
    drop(wire().await);
    assert!(machine.text(FILE).is_some());
    undo_leftovers(&machine.system_of_a_user()).await.unwrap();
    assert_eq!(machine.text(FILE), None);
    assert_eq!(*calls.lock().unwrap(), ["reload 4"; 2]);
    orders.abort();
}

#[tokio::test]
async fn without_root_side_the_owner_is_told_and_it_is_tried_again() {
    let machine = Machine::new("# Generated by resolvconf\nnameserver 192.0.2.1\n");
    machine.install_resolvconf();
    let wire = || NameWiring::detect_and_apply(machine.system_of_a_user(), plan());
    let wiring = wire().await;
    let status = wiring.status();
    assert_eq!((status.manager, status.is_wired), ("none", false));
    let hint = status.hint.unwrap();
    assert!(
        hint.contains("systemctl start meshd-names.socket"),
        "{hint}"
    );
    assert!(wiring.watch().is_stale().await);

    let orders = machine.serve_orders();
    let wiring = wire().await;
    assert_eq!(wiring.status().manager, "resolvconf");
    orders.abort();
}

#[tokio::test]
async fn a_file_of_unknown_hand_is_left_alone_and_the_owner_told() {
    let machine = Machine::new("nameserver 192.0.2.1\n");
    let wiring = machine.wire().await;
    let status = wiring.status();
    assert_eq!((status.manager, status.is_wired), ("none", false));
    assert!(
        status
            .hint
            .unwrap()
            .lines()
            .any(|line| line.starts_with("in /etc/resolv.conf")
                && line.ends_with("  nameserver 10.77.0.53"))
    );
    fs::write(
        machine.folder.path().join("etc/resolv.conf"),
        "nameserver 10.77.0.53\nnameserver 192.0.2.1\n",
    )
    .unwrap();
    assert_eq!(
        wiring.status(),
        WiringStatus {
            manager: "none",
            is_wired: true,
            hint: None
        }
    );
    wiring.undo().await.unwrap();
    assert!(machine.text("etc/resolv.conf").is_some());
}
