//! Questions to a mesh of a few nodes, and what is the first thing that fails.

use mesh_proto::filter::{Filter, FilterRule, PortRange, Source};
use mesh_proto::share::HostOffers;

use super::*;
use crate::dns::fixture::{offers, peer, view_of};

fn view() -> View {
    let peers = vec![
        peer(1, "gpu1", offers(&[("llama3.2:1b", 1)])),
        peer(2, "gpu2", HostOffers::default()),
    ];
    view_of(HostOffers::default(), peers)
}

fn ask(from: &str, to: &str, port: u16) -> WhyRequest {
    WhyRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        port,
    }
}

fn pong(view: &View, node: NodeId, path: PathStatus) -> PingReply {
    let peer = &view.netmap.peers[&node];
    PingReply {
        id: node,
        name: peer.name.clone(),
        ip: peer.ipv4.into(),
        path,
        rtt_ms: 1.25,
        path_mtu: None,
    }
}

fn direct() -> PathStatus {
    PathStatus::Direct {
        endpoint: "192.0.2.1:41820".parse().unwrap(),
    }
}

fn silent() -> LocalError {
    LocalError::new(code::TIMEOUT, "no reply from gpu1")
}

fn away() -> ControlError {
    ControlError::Unreachable {
        url: "https://c".to_owned(),
        reason: "refused".to_owned(),
    }
}

/// Each step with its verdict.
fn verdicts(why: &Why) -> Vec<(WhySubject, Verdict)> {
    why.steps
        .iter()
        .map(|step| (step.subject, step.verdict))
        .collect()
}

type Told = Result<Vec<Allow>, ControlError>;
type Probed = Option<Result<PathStatus, LocalError>>;
type Row<'a> = (
    WhyRequest,
    Told,
    Probed,
    &'a [(WhySubject, Verdict)],
    &'a str,
);

fn answer(view: &View, request: &WhyRequest, told: Told, probed: Probed) -> Why {
    let catalog = Catalog::build(view, |_| false);
    match Question::read(view, &catalog, request).unwrap() {
        Read::Answered(why) => why,
        Read::Asks(question) => {
            let policy = question.local_policy().map_or(told, Ok);
            let probed = question.far_end().and_then(|node| {
                let probed = probed?;
                Some(probed.map(|path| pong(view, node, path)))
            });
            question.answer(policy, None, probed)
        }
    }
}

#[test]
fn what_is_right_is_said_in_order_and_the_first_fault_with_its_reason() {
    use Verdict::{Degraded, No, Unknown, Yes};
    use WhySubject::{Name, Offer, Path, Policy};
    let view = view();
    let relayed = PathStatus::Relayed {
        relay: mesh_proto::id::RelayId::from_bytes([7; 10]),
        name: "tokyo".to_owned(),
    };
    let tcp = |port| Ok(vec![Allow::Ping, Allow::Tcp(PortRange::one(port))]);
    let rows: [Row<'_>; 9] = [
        (
            ask("self", "gpu1", 22),
            Ok(vec![Allow::All]),
            Some(Ok(direct())),
            &[(Policy, Yes), (Name, Yes), (Path, Yes)],
            "direct by 192.0.2.1:41820",
        ),
        (
            ask("desk", "gpu1.node.proxima", 22),
            tcp(11434),
            Some(Ok(direct())),
            &[(Policy, No), (Name, Yes), (Path, Yes)],
            "it allows ping, TCP 11434 alone",
        ),
        (
            ask("self", "llama3.2:1b", 11434),
            tcp(11434),
            Some(Ok(relayed)),
            &[(Policy, Yes), (Name, Yes), (Offer, Yes), (Path, Degraded)],
            "by relay tokyo alone",
        ),
        (
            ask("self", "llama3.2.proxima", 11434),
            tcp(11434),
            Some(Err(silent())),
            &[(Policy, Yes), (Name, Yes), (Offer, Yes), (Path, No)],
            "gpu1 does not answer: no reply",
        ),
        (
            ask("self", "10.77.1.2", 11434),
            tcp(11434),
            Some(Ok(direct())),
            &[(Policy, Yes), (Name, Yes), (Offer, No), (Path, Yes)],
            "gpu2 shares no model with desk",
        ),
        (
            ask("self", "mistral", 11434),
            tcp(11434),
            None,
            &[(Name, No)],
            "neither a node nor a shared model `mistral`",
        ),
        (
            ask("self", "gpu1", 80),
            Err(away()),
            Some(Ok(direct())),
            &[(Policy, Unknown), (Name, Yes), (Offer, Yes), (Path, Yes)],
            "only the coordinator knows",
        ),
        (
            ask("gpu2", "gpu1", 22),
            Ok(vec![Allow::All]),
            None,
            &[(Policy, Yes), (Name, Yes), (Path, Unknown)],
            "run this on gpu2",
        ),
        (
            ask("self", "self", 22),
            Err(away()),
            None,
            &[(Policy, Yes), (Name, Yes), (Path, Yes)],
            "does not leave this machine",
        ),
    ];
    for (request, told, probed, expected, said) in rows {
        let why = answer(&view, &request, told, probed);
        assert_eq!(verdicts(&why), expected, "{request:?} {why:?}");
        let is_said = why.steps.iter().any(|step| step.message.contains(said));
        assert!(is_said, "{said}: {why:?}");
    }
}

#[test]
fn who_comes_here_is_judged_by_this_nodes_own_filter() {
    let mut view = view();
    let netmap = std::sync::Arc::make_mut(&mut view.netmap);
    let gpu1 = netmap
        .peers
        .values()
        .find(|peer| peer.name.as_str() == "gpu1");
    netmap.filter = Filter {
        rules: vec![FilterRule {
            src: Source::User(gpu1.unwrap().user),
            allow: vec![Allow::Tcp(PortRange::one(22))],
        }],
    };
    for (from, verdict) in [("gpu1", Verdict::Yes), ("gpu2", Verdict::No)] {
        let why = answer(
            &view,
            &ask(from, "self", 22),
            Err(away()),
            Some(Ok(direct())),
        );
        assert_eq!(why.steps[0].verdict, verdict, "{why:?}");
    }
}

#[test]
fn a_stranger_asks_nothing() {
    let view = view();
    let catalog = Catalog::build(&view, |_| false);
    let err = Question::read(&view, &catalog, &ask("nobody", "gpu1", 22)).unwrap_err();
    assert_eq!(err.code, code::NOT_FOUND);
}
