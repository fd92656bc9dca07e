//! The rules in a network namespace, beside those of others.

use super::*;
use crate::os::linux::namespace;

const OTHERS: &str = "\
table ip filter {
  chain INPUT { type filter hook input priority filter; policy drop; iifname \"lo\" accept; }
}
table inet firewalld {
  chain filter_INPUT { type filter hook input priority filter + 10; policy accept; ct state established accept; reject; }
}
table inet open {
  chain input { type filter hook input priority filter + 20; policy accept; tcp dport 22 drop; }
}
";

fn firewall() -> Firewall {
    Firewall::new(
        "proxima0",
        "10.77.0.0/16".parse().unwrap(),
        "fdab:abab:abab::/48".parse().unwrap(),
    )
}

async fn ruleset() -> String {
    nft(&["--stateless", "list", "ruleset"], "").await.unwrap()
}

#[test]
fn rules_are_set_once_and_leave_nothing_behind() {
    namespace::run("os::linux::firewall::tests::inner_rules");
}

#[test]
fn names_that_nft_would_read_otherwise_are_left_alone() {
    let rule = |table: &str| serde_json::json!({"family": "ip", "table": table, "name": "INPUT"});
    assert_eq!(
        chain_path(&rule("filter"), "name").as_deref(),
        Some("ip filter INPUT")
    );
    for table in ["a b", "x; flush ruleset", "\"", "", "{"] {
        assert_eq!(chain_path(&rule(table), "name"), None, "{table}");
    }
}

#[test]
fn a_missing_program_is_a_problem_with_a_remedy() {
    let problem = problem(&io::Error::from(io::ErrorKind::NotFound));
    assert_eq!(
        (problem.code.as_str(), problem.fix.as_deref()),
        ("firewall_unavailable", Some("apt install nftables"))
    );
}

#[tokio::test]
#[ignore = "runs in a namespace"]
async fn inner_rules() {
    Firewall::undo().await.unwrap();
    nft(&["-f", "-"], OTHERS).await.unwrap();
    let before = ruleset().await;

    assert_eq!(firewall().apply().await, None);
    let first = ruleset().await;
    assert_eq!(first.matches(MARK).count(), 2, "{first}");
    assert!(
        first.contains("ip saddr 10.77.0.0/16") && first.contains("ip6 daddr fdab:abab:abab::/48"),
        "{first}"
    );
    // A second start, as after a crash, changes nothing.
    assert_eq!(firewall().apply().await, None);
    assert_eq!(ruleset().await, first);

    Firewall::undo().await.unwrap();
    assert_eq!(ruleset().await, before);
    Firewall::undo().await.unwrap();
}
