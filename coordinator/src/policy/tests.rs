//! Tests of the default policy.

use std::sync::Arc;

use mesh_proto::id::UserId;
use mesh_proto::share::{BackendApi, Offer};

use super::*;
use crate::state::tests::record;

fn host(audience: Audience) -> NodeRecord {
    let offer = Offer::new("m", BackendApi::Ollama);
    let offers = HostOffers {
        models: vec![offer.into()],
        audience,
        ..HostOffers::default()
    };
    NodeRecord {
        offers: Arc::new(offers),
        ..record(1)
    }
}

fn allows(filter: &Filter, guest: &NodeRecord, wanted: &Allow) -> bool {
    let of_guest = |rule: &&FilterRule| rule.src.matches(&guest.id, guest.user, &guest.tags);
    filter
        .rules
        .iter()
        .filter(of_guest)
        .any(|rule| rule.allow.contains(wanted))
}

#[test]
fn own_nodes_reach_each_other_fully_and_others_models_alone() {
    let filter = filter_for(&record(1));
    let own = record(2);
    let other = NodeRecord {
        user: UserId(2),
        ..record(3)
    };
    let tagged = NodeRecord {
        tags: vec!["tag:lab".parse().unwrap()],
        ..record(4)
    };
    assert!(allows(&filter, &own, &Allow::All));
    for guest in [&other, &tagged] {
        assert!(!allows(&filter, guest, &Allow::All));
        assert!(allows(&filter, guest, &Allow::Ping));
        assert!(allows(
            &filter,
            guest,
            &Allow::Tcp(PortRange::one(MODEL_PORT))
        ));
        assert!(allows(
            &filter,
            guest,
            &Allow::Tcp(PortRange::one(WEB_PORT))
        ));
    }
}

#[test]
fn a_tagged_node_belongs_to_its_tags_and_to_no_user() {
    let lab = vec!["tag:lab".parse().unwrap()];
    let filter = filter_for(&NodeRecord {
        tags: lab.clone(),
        ..record(1)
    });
    assert!(allows(
        &filter,
        &NodeRecord {
            tags: lab,
            ..record(2)
        },
        &Allow::All
    ));
    assert!(!allows(&filter, &record(3), &Allow::All));
    assert!(allows(&filter, &record(3), &Allow::Ping));
}

#[test]
fn offers_follow_their_audience() {
    let (anna, bob): (UserName, UserName) = ("anna".parse().unwrap(), "bob".parse().unwrap());
    let own = record(2);
    let other = NodeRecord {
        user: UserId(2),
        ..record(3)
    };
    let tagged = NodeRecord {
        tags: vec!["tag:lab".parse().unwrap()],
        ..record(4)
    };
    let n = |viewer, name, audience| offers_for(viewer, name, &host(audience)).models.len();
    assert_eq!(n(&own, &anna, Audience::Mine), 1);
    assert_eq!(n(&other, &bob, Audience::Mine), 0);
    assert_eq!(n(&tagged, &anna, Audience::Mine), 0);
    assert_eq!(n(&other, &bob, Audience::Everyone), 1);
    assert_eq!(n(&tagged, &anna, Audience::Everyone), 1);
    assert_eq!(n(&other, &bob, Audience::Users(vec![bob.clone()])), 1);
    assert_eq!(
        n(&other, &anna, Audience::Users(vec!["bob".parse().unwrap()])),
        0
    );
}

#[test]
fn what_a_node_may_open_is_what_the_filter_of_the_other_lets_in() {
    let (host, own) = (record(1), record(2));
    let other = NodeRecord {
        user: UserId(2),
        ..record(3)
    };
    let may = |from: &NodeRecord, port| {
        let allow = allowed(from, &host).allow;
        allow.iter().any(|allow| allow.has_tcp(port))
    };
    assert!(may(&own, 22) && may(&own, MODEL_PORT));
    assert!(!may(&other, 22) && may(&other, MODEL_PORT));
    assert!(
        allowed(&host, &host).allow.is_empty(),
        "it does not see itself"
    );
}

#[test]
fn a_node_asks_for_itself_and_for_others_of_its_user() {
    let tagged = |node: NodeRecord| NodeRecord {
        tags: vec!["tag:gpu".parse().unwrap()],
        ..node
    };
    let other = NodeRecord {
        user: UserId(2),
        ..record(3)
    };
    assert!(may_ask_for(&record(1), &record(1)));
    assert!(may_ask_for(&record(1), &record(2)));
    assert!(!may_ask_for(&record(1), &other));
    assert!(
        !may_ask_for(&tagged(record(1)), &record(2)),
        "it acts as its tag"
    );
    assert!(!may_ask_for(&record(1), &tagged(record(2))));
    assert!(may_ask_for(&tagged(record(1)), &tagged(record(1))));
}
