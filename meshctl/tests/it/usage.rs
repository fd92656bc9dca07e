//! What was used of this machine.

use insta::assert_snapshot;
use mesh_proto::local::PATH_USAGE;
use mesh_proto::usage::{UsageReport, UsageRow, UsageSum};

use crate::fake::Fake;

fn row(day: &str, guest: &str, is_owner: bool, model: &str, n: u64) -> UsageRow {
    UsageRow {
        day: day.to_owned(),
        guest: guest.to_owned(),
        is_owner,
        model: model.to_owned(),
        sum: UsageSum {
            n_requests: n,
            n_broken: n / 10,
            n_doubtful: 0,
            prompt_tokens: n * 100,
            output_tokens: n * 20,
            n_bytes: n * 4_096,
            work_ms: n * 9_000,
        },
    }
}

fn report() -> UsageReport {
    UsageReport {
        n_days: 7,
        rows: vec![
            row("2026-11-22", "bob", false, "tiny:latest", 4),
            row("2026-11-23", "anna", true, "llama3.2:1b", 900),
            row("2026-11-23", "bob", false, "llama3.2:1b", 12),
            row("2026-11-23", "bob", false, "tiny:latest", 30),
        ],
        n_unwritten: 0,
    }
}

#[test]
fn usage_is_added_up_by_what_was_asked_for() {
    let fake = Fake::running().json("GET", PATH_USAGE, &report()).start();
    let mut all = fake.both(&["usage", "--days", "7"]);
    for by in ["guest", "model", "day"] {
        all.push_str(&fake.meshctl(&["usage", "--by", by]));
    }
    assert_snapshot!("usage", all);
}

#[test]
fn what_an_owner_should_look_at_is_said() {
    let mut doubtful = report();
    doubtful.rows[0].sum.n_doubtful = 2;
    doubtful.n_unwritten = 3;
    let fake = Fake::running().json("GET", PATH_USAGE, &doubtful).start();
    assert_snapshot!("usage_doubtful", fake.meshctl(&["usage"]));
    let fake = Fake::running()
        .json("GET", PATH_USAGE, &UsageReport::default())
        .start();
    assert_snapshot!("usage_none", fake.both(&["usage"]));
}
