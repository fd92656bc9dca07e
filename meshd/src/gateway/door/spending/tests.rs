//! Limits by the minute and by the day, with a clock of the tests' own.

use mesh_proto::door::Limit;
use mesh_proto::id::UserId;

use super::*;

const ANNA: Account = Account::User(UserId(2));
const BOB: Account = Account::User(UserId(3));

/// Seconds after a midnight.
fn at(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(20_000 * DAY + secs)
}

fn limit(who: &str, models: &str, per_minute: Option<u32>, tokens_per_day: Option<u64>) -> Limit {
    Limit {
        who: who.parse().unwrap(),
        models: models.to_owned(),
        concurrent: None,
        per_minute,
        tokens_per_day,
    }
}

fn of(limit: &Limit, account: Account) -> Bound<'_> {
    let account = (limit.who != mesh_proto::door::Guests::All).then_some(account);
    Bound { limit, account }
}

fn ask(spending: &Arc<Spending>, who: Account, limit: &Limit, secs: u64) -> Result<Reserved, Over> {
    spending.admit(who, "tiny:latest", &[of(limit, who)], 10, 100, at(secs))
}

#[test]
fn so_many_requests_a_minute_and_no_more() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "*", Some(3), None);
    for secs in [30, 31, 32] {
        ask(&spending, ANNA, &limit, secs).unwrap();
    }
    let refused = ask(&spending, ANNA, &limit, 33).unwrap_err();
    let secs = refused.retry_secs();
    assert!((27..=60).contains(&secs), "{secs}");
    assert!(
        refused.to_string().contains("3 requests a minute"),
        "{refused}"
    );
    ask(&spending, BOB, &limit, 33).unwrap();
    let then = 33 + u64::from(secs);
    assert!(
        ask(&spending, ANNA, &limit, then - 1).is_err(),
        "not before it was told"
    );
    ask(&spending, ANNA, &limit, then).unwrap();
    for secs in [500, 501, 502] {
        ask(&spending, ANNA, &limit, secs).unwrap();
    }
}

#[test]
fn no_sixty_seconds_hold_much_more_than_the_limit() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "*", Some(30), None);
    let mut times = Vec::new();
    for secs in 0..600 {
        for _ in 0..2 {
            if ask(&spending, ANNA, &limit, secs).is_ok() {
                times.push(secs);
            }
        }
    }
    for from in 0..540 {
        let n = times
            .iter()
            .filter(|at| (from..from + 60).contains(*at))
            .count();
        assert!(n <= 45, "{n} within a minute from {from}");
    }
    assert!(times.len() >= 250, "{} in ten minutes", times.len());
}

#[test]
fn the_tokens_of_a_day_are_shared_by_nobody_and_come_back_at_midnight() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "*", None, Some(1_000));
    let reserved = ask(&spending, ANNA, &limit, 100).unwrap();
    reserved.spend(999, at(101));
    drop(reserved);
    let last = ask(&spending, ANNA, &limit, 102).unwrap();
    let refused = ask(&spending, ANNA, &limit, 103).unwrap_err();
    assert_eq!(refused.retry_secs(), 86_400 - 103);
    ask(&spending, BOB, &limit, 103).unwrap();
    drop(last);
    ask(&spending, ANNA, &limit, 104).unwrap();
    spending.add(ANNA, "tiny:latest", 1, at(105));
    assert!(ask(&spending, ANNA, &limit, 106).is_err());
    ask(&spending, ANNA, &limit, 86_400).unwrap();
}

#[test]
fn requests_in_work_count_before_they_are_over() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "*", None, Some(1_000));
    let held: Vec<_> = (0..20)
        .map_while(|n| ask(&spending, ANNA, &limit, n).ok())
        .collect();
    assert_eq!(held.len(), 10, "each may come to 110 tokens");
    drop(held);
    ask(&spending, ANNA, &limit, 30).unwrap();
}

#[test]
fn a_limit_for_all_counts_all_guests_and_not_the_owner() {
    let spending = Arc::new(Spending::default());
    let limit = limit("all", "*", Some(100), Some(1_000));
    spending.add(Account::Owner, "tiny:latest", 5_000, at(1));
    ask(&spending, ANNA, &limit, 2).unwrap();
    spending.add(ANNA, "tiny:latest", 600, at(3));
    spending.add(BOB, "other:latest", 400, at(3));
    let refused = ask(&spending, BOB, &limit, 4).unwrap_err();
    assert!(matches!(refused, Over::TokensOfAll { .. }), "{refused}");
}

#[test]
fn a_limit_for_some_models_leaves_the_others_free() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "llama3*", None, Some(100));
    spending.add(ANNA, "tiny:latest", 5_000, at(1));
    let llama = |secs| spending.admit(ANNA, "llama3.2:1b", &[of(&limit, ANNA)], 1, 1, at(secs));
    drop(llama(2).unwrap());
    spending.add(ANNA, "llama3.2:1b", 100, at(3));
    assert!(llama(4).is_err());
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_back() {
    let spending = Arc::new(Spending::default());
    let limit = limit("each", "*", Some(1), Some(100));
    spending.add(ANNA, "tiny:latest", 100, at(10));
    let yesterday = UNIX_EPOCH + Duration::from_secs(20_000 * DAY - 10);
    let asked = spending.admit(ANNA, "tiny:latest", &[of(&limit, ANNA)], 1, 1, yesterday);
    assert!(asked.is_err());
}

#[test]
fn what_is_refused_counts_for_nothing() {
    let spending = Arc::new(Spending::default());
    let (rate, tokens) = (
        limit("each", "*", Some(5), None),
        limit("each", "tiny*", None, Some(1)),
    );
    spending.add(ANNA, "tiny:latest", 1, at(0));
    for secs in 0..20 {
        let bounds = [of(&rate, ANNA), of(&tokens, ANNA)];
        let refused = spending
            .admit(ANNA, "tiny:latest", &bounds, 1, 1, at(secs))
            .unwrap_err();
        assert!(matches!(refused, Over::Tokens { .. }), "{refused}");
    }
}
