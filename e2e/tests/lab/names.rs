//! What the resolver says, to plain `dig`.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::model::LlamaServer;
use e2e::net::scenario;
use e2e::probe::dig;
use e2e::process::ensure_success;
use e2e::wait::wait_until;

use crate::{ensure_gone, ensure_resolves, mesh};

const PROMISED: Duration = Duration::from_secs(5);

#[test]
fn rename_and_delete_reach_dns_in_five_seconds() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        wait_until("the name is there", PROMISED, || {
            ensure_resolves(gamma, "beta.node.proxima", beta)
        })?;
        let renamed = coordinator.admin(&["node", "rename", "beta", "delta"])?;
        ensure_success("rename", &renamed)?;
        wait_until("the new name is there", PROMISED, || {
            ensure_resolves(gamma, "delta.node.proxima", beta)?;
            ensure_gone(gamma, "beta.node.proxima")
        })?;
        ensure_success("delete", &coordinator.admin(&["node", "delete", "delta"])?)?;
        wait_until("the deleted name is gone", PROMISED, || {
            ensure_gone(gamma, "delta.node.proxima")
        })
    })
}

#[test]
fn dig_reads_every_kind_of_record_by_udp_and_tcp() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let _model = LlamaServer::start(gamma.host, "tiny", 8080)?;
        gamma.share()?;
        beta.wait_model("tiny", PROMISED)?;
        let host = gamma.status()?.node.context("not joined")?;
        let own = beta.status()?.node.context("not joined")?;
        let service_v6 = dig(beta.host, None, "ollama.proxima", "AAAA", false)?;
        let service_v6: IpAddr = service_v6.data.first().context("no AAAA")?.parse()?;
        let (v4, v6) = (host.ipv4.to_string(), host.ipv6.to_string());
        for (server, is_tcp) in [
            (IpAddr::V4(own.service_ipv4), false),
            (IpAddr::V4(own.service_ipv4), true),
            (service_v6, false),
            (service_v6, true),
        ] {
            let ask = |name: &str, kind: &str| dig(beta.host, Some(server), name, kind, is_tcp);
            for name in [
                "tiny.proxima",
                "TINY.Proxima",
                "tiny.proxima.internal",
                "gamma.node.proxima",
            ] {
                ensure!(
                    ask(name, "A")?.data == [v4.clone()],
                    "{name}: {:?}",
                    ask(name, "A")?
                );
                ensure!(
                    ask(name, "AAAA")?.data == [v6.clone()],
                    "{name}: {:?}",
                    ask(name, "AAAA")?
                );
            }
            let one_host = ask("tiny.gamma.node.proxima", "A")?;
            ensure!(one_host.data == std::slice::from_ref(&v4), "{one_host:?}");
            let service = own.service_ipv4.to_string();
            for name in ["ollama.proxima", "api.proxima"] {
                ensure!(ask(name, "A")?.data == [service.clone()], "{name}");
            }
            let text = ask("tiny.proxima", "TXT")?.data.join(" ");
            ensure!(
                text.contains("model=tiny") && text.contains("hosts=1"),
                "{text}"
            );
            let browse = ask("_ollama._tcp.proxima", "PTR")?.data;
            ensure!(!browse.is_empty(), "nothing to browse");
            let srv = ask("_ollama._tcp.tiny.proxima", "SRV")?.data;
            ensure!(srv.len() == 1 && srv[0].contains("11434"), "{srv:?}");
            let reverse = ask(&reverse_name(&host.ipv4.octets()), "PTR")?.data;
            ensure!(reverse == ["gamma.node.proxima."], "{reverse:?}");

            let missing = ask("no-such-model.proxima", "A")?;
            ensure!(missing.status == "NXDOMAIN", "{missing:?}");
            let other_kind = ask("tiny.proxima", "HTTPS")?;
            ensure!(
                other_kind.status == "NOERROR" && other_kind.data.is_empty(),
                "{other_kind:?}"
            );
        }
        Ok(())
    })
}

fn reverse_name(octets: &[u8; 4]) -> String {
    let [a, b, c, d] = octets;
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}
