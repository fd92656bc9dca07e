//! The lab itself: a scenario is worth as much as the stage that it plays on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::model::{LlamaServer, Ollama};
use e2e::net::{Lab, is_root, scenario};
use e2e::probe::{Request, ping};
use e2e::process::stdout;
use e2e::wait::wait_until;

#[test]
fn hosts_reach_each_other_until_they_are_cut_off() -> Result<()> {
    scenario(&["one", "two"], |lab| {
        let (one, two) = (lab.host("one")?, lab.host("two")?);
        wait_until("the links are up", Duration::from_secs(5), || {
            ping(one, two.ipv4)?;
            ping(two, one.ipv6)
        })?;
        ensure!(one.sh("hostname")?.trim() == "one", "hosts share a name");
        lab.isolate(two)?;
        ensure!(
            ping(one, two.ipv4).is_err() && ping(one, two.ipv6).is_err(),
            "it is not cut off"
        );
        ensure!(
            two.sh("cat /sys/class/net/eth0/operstate")?.trim() == "up",
            "its link went down"
        );
        lab.heal(two)?;
        ping(one, two.ipv4)?;
        lab.set_link(two, false)?;
        ensure!(ping(one, two.ipv4).is_err(), "its link is up");
        lab.set_link(two, true)?;
        wait_until("the link is up again", Duration::from_secs(5), || {
            ping(one, two.ipv4)
        })?;
        lab.lose(two, 99)?;
        ensure!(ping(one, two.ipv4).is_err(), "nothing is lost");
        one.write_resolv_conf("nameserver 192.0.2.1\n")?;
        ensure!(
            one.sh("cat /etc/resolv.conf")?.contains("192.0.2.1"),
            "not its own resolver"
        );
        Ok(())
    })
}

#[test]
fn nothing_is_left_of_a_lab() -> Result<()> {
    if !is_root() {
        return scenario(&[], |_| Ok(()));
    }
    let lab = Lab::new(&["one"])?;
    let host = lab.host("one")?;
    let mut command = host.command("sleep");
    command.arg("600");
    let sleeper = host.spawn("sleep", command)?;
    let (pid, dir) = (sleeper.pid(), host.dir().to_owned());
    // As when the test's own process dies: nobody drops the child.
    std::mem::forget(sleeper);
    drop(lab);
    ensure!(!dir.exists(), "its folder is left");
    let mark = format!("px{}-", std::process::id());
    for folder in ["/run/netns", "/etc/netns"] {
        let Ok(entries) = Path::new(folder).read_dir() else {
            continue;
        };
        for entry in entries {
            let name = entry?.file_name();
            ensure!(
                !name.to_string_lossy().starts_with(&mark),
                "{folder}/{} is left",
                name.display()
            );
        }
    }
    wait_until("its program is gone", Duration::from_secs(2), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
        Ok(())
    })
}

#[test]
fn the_stand_in_is_as_careless_as_the_real_one() -> Result<()> {
    scenario(&["one"], |lab| {
        let host = lab.host("one")?;
        let tiny = LlamaServer::start(host, "tiny", 9001)?;
        let other = LlamaServer::start(host, "other", 9002)?;
        let ollama = Ollama::start(
            host,
            "127.0.0.1:11434",
            &[("tiny", &tiny), ("other", &other)],
            &[],
        )?;
        let url = "http://127.0.0.1:11434";
        let said = |path: &str, body: &str| -> Result<String> {
            Ok(Request::post(&format!("{url}{path}"), body)
                .send(host)?
                .body)
        };
        let ask = r#""options":{"num_predict":2},"messages":[{"role":"user","content":"hi"}],"stream":false"#;
        let plain = said("/api/chat", &format!(r#"{{"model":"tiny",{ask}}}"#))?;
        ensure!(plain.contains(" t1 t2"), "{plain}");
        for trick in [
            r#""model":"tiny","Model":"other""#,
            r#""MODEL":"library/OTHER""#,
        ] {
            let tricked = said("/api/chat", &format!("{{{trick},{ask}}}"))?;
            ensure!(tricked.contains(" o1 o2"), "{trick}: {tricked}");
        }
        let decoded = Request::get(&format!("{url}/api/%74ags")).send(host)?;
        ensure!(decoded.status == 200, "{decoded:?}");
        let redirected = Request::get(&format!("{url}//api/tags")).send(host)?;
        ensure!(redirected.status == 307, "{redirected:?}");
        let foreign = Request::get(&format!("{url}/api/tags")).header("Host: tiny.proxima");
        ensure!(foreign.send(host)?.status == 403, "any Host is let in");
        ollama.delete("other")?;
        let gone = said("/api/chat", &format!(r#"{{"model":"other",{ask}}}"#))?;
        ensure!(gone.contains("model 'other' not found"), "{gone}");
        ensure!(
            ollama
                .requests()?
                .iter()
                .any(|entry| entry["method"] == "DELETE"),
            "not noted"
        );
        ensure!(
            !stdout(&host.run("ss", &["-ltn"])?).contains("0.0.0.0:11434"),
            "on all addresses"
        );
        Ok(())
    })
}
