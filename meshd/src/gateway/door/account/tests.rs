//! Who pays, and which limits bind whom.

use mesh_proto::share::HostOffers;

use super::*;
use crate::dns::fixture::{peer, view_of};

/// This node is of the user of peer 1.
fn view() -> (View, Vec<NodeId>) {
    let mut own = peer(1, "own-too", HostOffers::default());
    let mut anna = peer(2, "anna-laptop", HostOffers::default());
    let mut tagged = peer(3, "ci", HostOffers::default());
    let mut view = view_of(HostOffers::default(), Vec::new());
    let owner = (view.netmap.node.user, view.netmap.node.user_name.clone());
    (own.1.user, own.1.user_name) = owner.clone();
    (anna.1.user, anna.1.user_name) = (UserId(owner.0.0 + 7), "anna".parse().unwrap());
    (tagged.1.user, tagged.1.user_name) = owner;
    tagged.1.tags = vec!["tag:ci".parse().unwrap()];
    let peers = [own, anna, tagged];
    let ids = peers.iter().map(|(id, _)| *id).collect();
    let netmap = std::sync::Arc::make_mut(&mut view.netmap);
    netmap.peers = peers.into_iter().collect();
    (view, ids)
}

fn limit(who: &str, models: &str, n_concurrent: u32) -> Limit {
    Limit {
        who: who.parse().unwrap(),
        models: models.to_owned(),
        concurrent: Some(n_concurrent),
        per_minute: None,
        tokens_per_day: None,
    }
}

#[test]
fn a_user_pays_for_all_its_nodes_and_a_tagged_node_for_itself() {
    let (view, ids) = view();
    let account = |node| Asker::of(&view, node).unwrap().account;
    assert_eq!(account(None), Account::Owner);
    assert_eq!(account(Some(ids[0])), Account::Owner);
    assert!(matches!(account(Some(ids[1])), Account::User(_)));
    assert_eq!(
        account(Some(ids[2])),
        Account::Tagged(ids[2]),
        "not its registrar's"
    );
    assert_eq!(Asker::of(&view, Some(NodeId::from_bytes([9; 10]))), None);
    let names = [None, Some(ids[1]), Some(ids[2])].map(|node| name_of(Some(&view), account(node)));
    assert_eq!(names, ["owner", "anna", "ci"]);
    assert_eq!(name_of(None, Account::User(UserId(9))), "user 9");
}

#[test]
fn a_limit_for_a_user_stands_in_the_place_of_that_for_each() {
    let (view, ids) = view();
    let policy = DoorPolicy {
        limits: vec![
            limit("all", "*", 9),
            limit("each", "*", 1),
            limit("each", "llama3*", 2),
            limit("user:anna", "*", 3),
            limit("user:bob", "*", 4),
        ],
        caps: Caps {
            images: Some(1),
            ..Caps::default()
        },
        ..DoorPolicy::default()
    };
    let bounds = |node, model: &str| {
        let asker = Asker::of(&view, node).unwrap();
        let bounds = asker.limits(&policy, model);
        let each = bounds
            .iter()
            .map(|bound| (bound.gate().unwrap().n_max, bound.account.is_some()));
        each.collect::<Vec<_>>()
    };
    assert_eq!(bounds(Some(ids[1]), "tiny:latest"), [(9, false), (3, true)]);
    assert_eq!(
        bounds(Some(ids[1]), "llama3.2:1b"),
        [(9, false), (2, true), (3, true)]
    );
    assert_eq!(bounds(Some(ids[2]), "tiny:latest"), [(9, false), (1, true)]);
    assert_eq!(bounds(None, "tiny:latest"), []);
    assert_eq!(
        bounds(Some(ids[0]), "tiny:latest"),
        [],
        "the owner's own node"
    );
    let caps = |node| Asker::of(&view, node).unwrap().caps(&policy).images;
    assert_eq!((caps(Some(ids[1])), caps(Some(ids[0]))), (Some(1), None));
}

#[test]
fn uses_are_counted_apart_by_limit_and_guest() {
    let each = limit("each", "*", 1);
    let other = limit("each", "llama3*", 1);
    let key = |limit, n| {
        let account = Some(Account::User(UserId(n)));
        Bound { limit, account }.key()
    };
    assert_eq!(key(&each, 1), key(&each, 1));
    assert_ne!(key(&each, 1), key(&each, 2));
    assert_ne!(key(&each, 1), key(&other, 1));
}
