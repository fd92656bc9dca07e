//! Spans of hours, guests and changes, as texts and values.

use super::*;

#[test]
fn hours_are_read_and_written() {
    for (text, written) in [
        ("22:00-07:00", "22:00-07:00"),
        ("00:00-24:00", "00:00-24:00"),
        ("mon-fri 09:00-18:00", "mon,tue,wed,thu,fri 09:00-18:00"),
        ("Sat,SUN 00:00-24:00", "sat,sun 00:00-24:00"),
        ("sat-mon 10:30-11:00", "mon,sat,sun 10:30-11:00"),
        ("mon-sun 08:00-09:00", "08:00-09:00"),
    ] {
        let hours: QuietHours = text.parse().unwrap();
        assert_eq!(hours.to_string(), written, "{text}");
        assert_eq!(written.parse::<QuietHours>().unwrap(), hours);
    }
    for text in [
        "",
        "22",
        "22:00",
        "22:00-",
        "22:00-22:00",
        "24:00-07:00",
        "22:60-07:00",
        "9:00-10:00",
        "xyz 09:00-10:00",
        "mon- 09:00-10:00",
        "22:00-24:01",
        "-1:00-02:00",
        "+1:00-02:00",
    ] {
        assert!(text.parse::<QuietHours>().is_err(), "{text:?}");
    }
}

#[test]
fn a_span_over_midnight_belongs_to_the_day_on_which_it_begins() {
    let hours: QuietHours = "fri 22:00-07:00".parse().unwrap();
    let at = |day, hour: u16, minute: u16| hours.minutes_left(day, hour * 60 + minute);
    assert_eq!(at(4, 21, 59), None);
    assert_eq!(at(4, 22, 0), Some(9 * 60));
    assert_eq!(at(4, 23, 59), Some(7 * 60 + 1));
    assert_eq!(at(5, 6, 59), Some(1));
    assert_eq!(at(5, 7, 0), None);
    assert_eq!(at(5, 22, 0), None, "Saturday is not named");
    assert_eq!(at(4, 3, 0), None, "Thursday is not named");
    let sunday: QuietHours = "sun 23:00-01:00".parse().unwrap();
    assert_eq!(sunday.minutes_left(0, 30), Some(30));
    let all_day: QuietHours = "00:00-24:00".parse().unwrap();
    assert_eq!(all_day.minutes_left(3, 0), Some(1_440));
}

#[test]
fn guests_are_read_and_written() {
    for text in ["all", "each", "user:anna"] {
        assert_eq!(text.parse::<Guests>().unwrap().to_string(), text);
    }
    for text in ["", "anna", "user:", "user:An na", "All"] {
        assert!(text.parse::<Guests>().is_err(), "{text:?}");
    }
}

fn limit(who: &str, models: &str) -> Limit {
    Limit {
        who: who.parse().unwrap(),
        models: models.to_owned(),
        concurrent: Some(2),
        per_minute: None,
        tokens_per_day: None,
    }
}

fn with(limit: Limit) -> DoorChange {
    DoorChange {
        limit: Some(limit),
        ..DoorChange::default()
    }
}

#[test]
fn a_limit_replaces_the_one_for_the_same_guests_and_models() {
    let policy = DoorPolicy::default();
    let policy = policy.changed(with(limit("each", "*"))).unwrap();
    let policy = policy.changed(with(limit("user:anna", "*"))).unwrap();
    let more = Limit {
        concurrent: None,
        per_minute: Some(9),
        ..limit("each", "*")
    };
    let policy = policy.changed(with(more.clone())).unwrap();
    assert_eq!(policy.limits, [more, limit("user:anna", "*")]);
    let none = Limit {
        concurrent: None,
        ..limit("each", "*")
    };
    let policy = policy.changed(with(none)).unwrap();
    assert_eq!(policy.limits, [limit("user:anna", "*")]);
}

#[test]
fn terms_that_cannot_be_kept_are_refused() {
    let policy = DoorPolicy::default();
    let zero = Limit {
        concurrent: Some(0),
        ..limit("each", "*")
    };
    assert_eq!(policy.changed(with(zero)), Err(TermsError::Zero));
    for pattern in ["", "a b", &"x".repeat(257)] {
        let refused = policy.changed(with(limit("each", pattern)));
        assert!(matches!(refused, Err(TermsError::Pattern(_))), "{pattern}");
    }
    let mut full = policy.clone();
    for n in 0..N_LIMITS_MAX {
        full = full.changed(with(limit("each", &format!("m{n}")))).unwrap();
    }
    assert_eq!(
        full.changed(with(limit("each", "one-more"))),
        Err(TermsError::Limits)
    );
    let caps = DoorChange {
        caps: Caps {
            images: Some(N_IMAGES_MAX + 1),
            ..Caps::default()
        },
        ..DoorChange::default()
    };
    assert!(matches!(policy.changed(caps), Err(TermsError::Cap { .. })));
    let quiet = DoorChange {
        quiet: Some(vec!["00:00-01:00".parse().unwrap(); N_QUIET_MAX + 1]),
        ..DoorChange::default()
    };
    assert_eq!(policy.changed(quiet), Err(TermsError::Quiet));
}

#[test]
fn zero_sets_a_cap_back() {
    let mut caps = Caps::default();
    caps.take(&Caps {
        output_tokens: Some(100),
        images: Some(1),
        ..Caps::default()
    });
    caps.take(&Caps {
        output_tokens: Some(0),
        ..Caps::default()
    });
    let left = Caps {
        images: Some(1),
        ..Caps::default()
    };
    assert_eq!(caps, left);
}
