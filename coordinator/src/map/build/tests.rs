//! Tests of map building: whatever happens, a full map with all deltas applied is the full map of the end.

use std::time::{Duration, Instant};

use mesh_proto::id::UserId;
use mesh_proto::share::Audience;
use proptest::prelude::*;

use super::*;
use crate::state::tests::{hosting, record, state, user};
use crate::store::NodeRecord;

#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    Rename(u8, u8),
    Share(u8, u8),
    Give(u8, u8),
    Remove(u8),
    RenameUser(u8),
    Open(u8),
    Close(u8),
    Beat(u8),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 1_u8..6;
    let step = prop_oneof![
        node.clone().prop_map(Step::Put),
        (node.clone(), 0_u8..4).prop_map(|(n, name)| Step::Rename(n, name)),
        (node.clone(), 0_u8..4).prop_map(|(n, audience)| Step::Share(n, audience)),
        (node.clone(), 1_u8..3).prop_map(|(n, user)| Step::Give(n, user)),
        node.clone().prop_map(Step::Remove),
        (0_u8..3).prop_map(Step::RenameUser),
        node.clone().prop_map(Step::Open),
        node.clone().prop_map(Step::Close),
        node.prop_map(Step::Beat),
        (0_u16..5000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..60)
}

struct World {
    state: State,
    now: Instant,
    now_ms: u64,
}

impl World {
    fn change(&mut self, n: u8, change: impl FnOnce(&mut NodeRecord)) {
        if let Some(node) = self.state.node(&record(n).id) {
            let mut changed = node.record.clone();
            change(&mut changed);
            self.state.put_node(changed, self.now, self.now_ms);
        }
    }

    fn take(&mut self, step: Step) {
        let (now, now_ms) = (self.now, self.now_ms);
        match step {
            Step::Put(n) if self.state.node(&record(n).id).is_none() => {
                self.state.put_node(record(n), now, now_ms)
            }
            Step::Put(_) => {}
            Step::Rename(n, name) => self.change(n, |node| {
                node.name = format!("name-{name}").parse().unwrap()
            }),
            Step::Share(n, audience) => self.change(n, |node| {
                let mut offers = mesh_proto::share::HostOffers::clone(&hosting(n).offers);
                match audience {
                    0 => offers.models.clear(),
                    1 => offers.audience = Audience::Mine,
                    2 => offers.audience = Audience::Everyone,
                    _ => offers.audience = Audience::Users(vec!["bob".parse().unwrap()]),
                }
                node.offers = offers.into();
            }),
            Step::Give(n, user) => self.change(n, |node| node.user = UserId(i64::from(user))),
            Step::Remove(n) => {
                self.state.remove_node(record(n).id);
            }
            Step::RenameUser(n) => self
                .state
                .put_user(user(1, ["anna", "hanna", "johanna"][usize::from(n)])),
            Step::Open(n) => self.state.on_stream_opened(&record(n).id, now, now_ms),
            Step::Close(n) => self.state.on_stream_closed(&record(n).id, now, now_ms),
            Step::Beat(n) => self.state.on_beat(&record(n).id, now, now_ms),
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms.into());
                self.now_ms += u64::from(ms);
                self.state.on_tick(self.now, self.now_ms, 1_000_000);
            }
        }
    }
}

proptest! {
    #[test]
    fn deltas_lead_where_a_full_map_is(steps in steps(), every in 1_usize..7) {
        let now = Instant::now();
        let mut world = World { state: state(now), now, now_ms: 1_000_000 };
        let viewer = record(9);
        world.state.put_node(viewer.clone(), now, 1_000_000);
        let mut netmap = full(&world.state, &viewer.id).unwrap();
        let mut has = world.state.revision();
        for (n, step) in steps.into_iter().enumerate() {
            world.take(step);
            if n % every == 0 {
                netmap.apply(delta(&world.state, &viewer.id, has).unwrap());
                has = world.state.revision();
                prop_assert_eq!(&netmap, &full(&world.state, &viewer.id).unwrap());
            }
        }
        netmap.apply(delta(&world.state, &viewer.id, has).unwrap());
        prop_assert_eq!(&netmap, &full(&world.state, &viewer.id).unwrap());
    }
}

#[test]
fn a_delta_holds_what_changed_and_nothing_else() {
    let now = Instant::now();
    let mut state = state(now);
    for n in 1..=200 {
        state.put_node(record(n), now, 10);
    }
    let has = state.revision();
    state.put_node(
        NodeRecord {
            name: "gpu".parse().unwrap(),
            ..record(7)
        },
        now,
        20,
    );
    state.remove_node(record(8).id);
    let change = delta(&state, &record(1).id, has).unwrap();
    assert_eq!(
        change.peers.keys().copied().collect::<Vec<_>>(),
        [record(7).id]
    );
    assert_eq!(change.removed, [record(8).id]);
    assert!(change.node.is_none() && change.filter.is_none() && change.network.is_none());
    assert!(
        delta(&state, &record(8).id, has).is_none(),
        "a deleted node is told nothing"
    );
}
