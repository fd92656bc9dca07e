//! What each kind of name is answered with, and that no name breaks the zone.

use std::str::FromStr;

use proptest::prelude::*;

use super::*;
use crate::dns::fixture::{digest, offers, peer, view, view_of};

fn zone() -> Zone {
    zone_of(&view())
}

fn zone_of(view: &View) -> Zone {
    Zone::build(view, Arc::new(Catalog::build(view, |_| false)))
}

/// The records as `rdata` texts, sorted where the order is free; `NXDOMAIN`, `NODATA` or `FOREIGN` alone otherwise.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> Vec<String> {
    let name = Name::from_str(&format!("{name}.")).unwrap();
    let Some(reply) = zone.answer(&name, kind) else {
        return vec!["FOREIGN".to_owned()];
    };
    if !reply.answers.is_empty() {
        assert_eq!(
            (reply.code, reply.authorities.len()),
            (ResponseCode::NoError, 0)
        );
        assert!(
            reply
                .answers
                .iter()
                .all(|record| record.name == name && record.ttl == 5)
        );
        return reply
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
    }
    let [soa] = reply.authorities.as_slice() else {
        panic!("a negative answer has one SOA: {reply:?}")
    };
    assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 2));
    assert!(soa.name.zone_of(&name), "{} is no zone of {name}", soa.name);
    let word = if reply.code == ResponseCode::NXDomain {
        "NXDOMAIN"
    } else {
        "NODATA"
    };
    vec![word.to_owned()]
}

#[test]
fn names_and_their_records() {
    use RecordType::{A, AAAA, ANY, HTTPS, MX, NS, PTR, SOA, SRV, TXT};
    let zone = zone();
    let id12 = format!("{}.id.proxima", digest(2).short());
    let reverse6 = "3.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.b.a.b.a.b.a.b.a.b.a.d.f.ip6.arpa";
    let table: &[(&str, RecordType, &[&str])] = &[
        ("llama3.proxima", A, &["10.77.1.1"]),
        ("LLAMA3.Proxima", A, &["10.77.1.1"]),
        ("llama3.proxima.internal", A, &["10.77.1.1"]),
        ("nomic-embed-text-v1.5.proxima", A, &["10.77.1.2"]),
        (
            "1b.llama3.2.proxima.internal",
            TXT,
            &[&format!("v=1model=llama3.2:1bdigest={}hosts=2", digest(1))],
        ),
        ("llama3.proxima", HTTPS, &["NODATA"]),
        ("llama3.proxima", MX, &["NODATA"]),
        ("llama3.proxima", ANY, &["RFC8482 "]),
        ("smollm2.proxima", A, &["10.77.0.53"]),
        ("smollm2.proxima", AAAA, &["fdab:abab:abab::53"]),
        ("nothing.proxima", A, &["NXDOMAIN"]),
        ("nothing.proxima", HTTPS, &["NXDOMAIN"]),
        ("nothing.proxima", ANY, &["NXDOMAIN"]),
        ("gone.proxima", A, &["NXDOMAIN"]),
        ("secret.proxima", A, &["NXDOMAIN"]),
        ("twin.proxima", A, &["NODATA"]),
        ("twin.proxima", AAAA, &["NODATA"]),
        (&id12, A, &["10.77.1.1"]),
        ("000000000000.id.proxima", A, &["NXDOMAIN"]),
        ("x.y.id.proxima", A, &["NXDOMAIN"]),
        ("id.proxima", A, &["NODATA"]),
        ("node.proxima", A, &["NODATA"]),
        ("ollama.proxima", A, &["10.77.0.53"]),
        ("api.proxima", AAAA, &["fdab:abab:abab::53"]),
        ("ns.proxima", A, &["10.77.0.53"]),
        ("www.proxima", A, &["NXDOMAIN"]),
        ("x.ollama.proxima", A, &["NXDOMAIN"]),
        ("gpu1.node.proxima", A, &["10.77.1.1"]),
        ("Off.Node.Proxima", A, &["10.77.1.4"]),
        ("desk.node.proxima", A, &["10.77.1.9"]),
        ("gpu1.node.proxima", TXT, &["NODATA"]),
        ("gpu9.node.proxima", A, &["NXDOMAIN"]),
        ("llama3.gpu1.node.proxima", A, &["10.77.1.1"]),
        ("llama3.2.1b.gpu2.node.proxima", A, &["10.77.1.2"]),
        ("twin.gpu2.node.proxima", A, &["10.77.1.2"]),
        ("twin.gpu3.node.proxima", A, &["10.77.1.3"]),
        ("twin.gpu1.node.proxima", A, &["NXDOMAIN"]),
        ("smollm2.desk.node.proxima", A, &["10.77.0.53"]),
        ("proxima", A, &["NODATA"]),
        ("proxima", NS, &["ns.proxima."]),
        ("proxima.internal", NS, &["ns.proxima.internal."]),
        (
            "proxima",
            SOA,
            &["ns.proxima. hostmaster.proxima. 7 3600 600 86400 2"],
        ),
        (
            "_ollama._tcp.llama3.proxima",
            SRV,
            &["0 0 11434 gpu1.node.proxima."],
        ),
        (
            "llama3._ollama._tcp.proxima",
            SRV,
            &["0 0 11434 gpu1.node.proxima."],
        ),
        (
            "_ollama._tcp.smollm2.proxima",
            SRV,
            &["0 0 11434 ollama.proxima."],
        ),
        (
            "_ollama._tcp.ollama.proxima",
            SRV,
            &["0 0 11434 ollama.proxima."],
        ),
        ("_ollama._tcp.llama3.proxima", A, &["NODATA"]),
        ("_ollama._tcp.twin.proxima", SRV, &["NODATA"]),
        ("_ollama._tcp.nothing.proxima", SRV, &["NXDOMAIN"]),
        ("_tcp.llama3.proxima", SRV, &["NODATA"]),
        ("_tcp.nothing.proxima", SRV, &["NXDOMAIN"]),
        ("_http._tcp.llama3.proxima", SRV, &["NXDOMAIN"]),
        ("_tcp.proxima", PTR, &["NODATA"]),
        (
            "_services._dns-sd._udp.proxima",
            PTR,
            &["_ollama._tcp.proxima."],
        ),
        (
            "_llama3._sub._ollama._tcp.proxima",
            PTR,
            &["llama3._ollama._tcp.proxima."],
        ),
        ("_nothing._sub._ollama._tcp.proxima", PTR, &["NXDOMAIN"]),
        ("1.1.77.10.in-addr.arpa", PTR, &["gpu1.node.proxima."]),
        ("53.0.77.10.in-addr.arpa", PTR, &["ollama.proxima."]),
        ("9.9.77.10.in-addr.arpa", PTR, &["NXDOMAIN"]),
        ("1.1.77.10.in-addr.arpa", A, &["NODATA"]),
        ("77.10.in-addr.arpa", SOA, &["NODATA"]),
        (reverse6, PTR, &["ollama.proxima."]),
        ("10.in-addr.arpa", PTR, &["FOREIGN"]),
        ("example.com", A, &["FOREIGN"]),
        ("internal", A, &["FOREIGN"]),
        ("proxima.example", A, &["FOREIGN"]),
        ("notproxima", A, &["FOREIGN"]),
    ];
    for (name, kind, expected) in table {
        assert_eq!(ask(&zone, name, *kind), *expected, "{name} {kind}");
    }
}

#[test]
fn several_hosts_answer_with_at_most_four_addresses() {
    let peers = (1..=6)
        .map(|n| peer(n, &format!("gpu{n}"), offers(&[("m", 1)])))
        .collect();
    let zone = zone_of(&view_of(offers(&[]), peers));
    assert_eq!(ask(&zone, "m.proxima", RecordType::A).len(), 4);
    assert_eq!(ask(&zone, "m.proxima", RecordType::AAAA).len(), 4);
    assert_eq!(
        ask(&zone, "_ollama._tcp.m.proxima", RecordType::SRV).len(),
        4
    );
}

#[test]
fn an_ambiguous_name_lists_its_candidates() {
    let texts = ask(&zone(), "twin.proxima", RecordType::TXT);
    assert_eq!(texts.len(), 2);
    assert!(
        texts
            .iter()
            .zip([5, 7])
            .all(|(text, n)| text.contains(&digest(n).to_string())),
        "{texts:?}"
    );
}

#[test]
fn a_model_whose_hosts_are_all_down_has_no_data() {
    let view = view();
    let zone = Zone::build(&view, Arc::new(Catalog::build(&view, |_| true)));
    assert_eq!(ask(&zone, "llama3.proxima", RecordType::A), ["NODATA"]);
    assert_eq!(ask(&zone, "smollm2.proxima", RecordType::A), ["10.77.0.53"]);
}

#[test]
fn in_gateway_mode_model_names_are_the_gateway() {
    let mut view = view();
    view.settings.names = NameMode::Gateway;
    let zone = zone_of(&view);
    assert_eq!(ask(&zone, "llama3.proxima", RecordType::A), ["10.77.0.53"]);
    assert_eq!(
        ask(&zone, "_ollama._tcp.llama3.proxima", RecordType::SRV),
        ["0 0 11434 ollama.proxima."]
    );
    assert_eq!(
        ask(&zone, "llama3.gpu1.node.proxima", RecordType::A),
        ["10.77.1.1"]
    );
    assert_eq!(ask(&zone, "nothing.proxima", RecordType::A), ["NXDOMAIN"]);
    assert_eq!(
        ask(&zone, "gpu1.node.proxima", RecordType::A),
        ["10.77.1.1"]
    );
}

#[test]
fn browsing_lists_every_model_once() {
    let names = ask(&zone(), "_ollama._tcp.proxima", RecordType::PTR);
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(names.contains(&"llama3-2-1b._ollama._tcp.proxima.".to_owned()));
}

#[test]
fn a_service_brings_its_addresses() {
    let name = Name::from_str("_ollama._tcp.llama3-2-1b.proxima.").unwrap();
    let reply = zone().answer(&name, RecordType::SRV).unwrap();
    assert_eq!((reply.answers.len(), reply.additionals.len()), (2, 4));
}

#[test]
fn a_suffix_of_several_labels_works() {
    let mut view = view();
    let mut netmap = (*view.netmap).clone();
    netmap.network.suffix = "ai.example.org".to_owned();
    view.netmap = Arc::new(netmap);
    let zone = zone_of(&view);
    assert_eq!(
        ask(&zone, "llama3.ai.example.org", RecordType::A),
        ["10.77.1.1"]
    );
    assert_eq!(ask(&zone, "llama3.proxima", RecordType::A), ["FOREIGN"]);
    assert_eq!(
        ask(&zone, "llama3.proxima.internal", RecordType::A),
        ["10.77.1.1"]
    );
    assert_eq!(
        ask(&zone, "1.1.77.10.in-addr.arpa", RecordType::PTR),
        ["gpu1.node.ai.example.org."]
    );
}

#[test]
fn mesh_addresses_are_known_in_every_form() {
    let zone = zone();
    for (ip, is_mesh) in [
        ("10.77.200.1", true),
        ("10.78.0.1", false),
        ("fdab:abab:abab::1", true),
        ("fdab:abab:abac::1", false),
        ("::ffff:10.77.0.1", true),
        ("::ffff:192.0.2.1", false),
    ] {
        assert_eq!(zone.is_mesh_addr(ip.parse().unwrap()), is_mesh, "{ip}");
    }
}

fn label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..63),
        "[a-z0-9._-]{1,20}".prop_map(String::into_bytes),
        prop_oneof![
            Just("node"),
            Just("id"),
            Just("_tcp"),
            Just("_ollama"),
            Just("_sub"),
            Just("gpu1"),
            Just("llama3"),
            Just("_udp"),
            Just("arpa"),
            Just("in-addr"),
            Just("ip6"),
            Just("10"),
            Just("77"),
            Just("internal")
        ]
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

proptest! {
    #[test]
    fn no_name_breaks_the_zone_and_none_under_it_is_foreign(
        labels in proptest::collection::vec(label(), 0..6),
        is_under in any::<bool>(),
        kind in any::<u16>(),
    ) {
        let mut labels = labels;
        if is_under {
            labels.push(b"proxima".to_vec());
        }
        if let Ok(mut name) = Name::from_labels(labels) {
            name.set_fqdn(true);
            let reply = zone().answer(&name, RecordType::from(kind));
            prop_assert!(!is_under || reply.is_some());
            if let Some(reply) = reply {
                prop_assert_eq!(reply.answers.is_empty(), reply.authorities.len() == 1);
            }
        }
    }
}
