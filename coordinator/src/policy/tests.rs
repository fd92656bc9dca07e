//! Tests of the default policy.

use std::sync::Arc;

use mesh_proto::id::UserId;
use mesh_proto::share::{BackendApi, Offer};

use super::*;
use crate::state::tests::record;

fn host(audience: Audience) -> NodeRecord {
    let offer = Offer {
        model: "m".to_owned(),
        digest: None,
        api: BackendApi::Ollama,
        size_bytes: 0,
        family: String::new(),
        parameter_size: String::new(),
        quantization: String::new(),
        context_length: 0,
        capabilities: vec![],
        is_loaded: false,
        modified_at: String::new(),
    };
    let offers = HostOffers {
        models: vec![offer],
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
