//! What guests are granted: limits, quiet hours, caps; read from options, and shown.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::door::{
    Caps, Closed, DoorChange, DoorStatus, Guests, Limit, QueueStatus, QuietHours,
};

use crate::args::{LimitArgs, ShareOptions, Switch};
use crate::exit::Failure;
use crate::output::{clean, plural};

/// The change that options ask for, if they ask for any.
pub(super) fn change(options: &ShareOptions) -> Result<Option<DoorChange>, Failure> {
    let quiet = options
        .quiet
        .as_ref()
        .map(|spans| parse_quiet(spans))
        .transpose()?;
    let change = DoorChange {
        limit: None,
        quiet,
        pauses_on_gpu_use: options.pause_on_gpu_use.map(|switch| switch == Switch::On),
        caps: Caps {
            output_tokens: options.max_output,
            context_tokens: options.max_context,
            images: options.max_images,
            body_mib: options.max_body,
        },
    };
    Ok((change != DoorChange::default()).then_some(change))
}

fn parse_quiet(spans: &[String]) -> Result<Vec<QuietHours>, Failure> {
    if let [only] = spans
        && matches!(only.trim(), "none" | "off")
    {
        return Ok(Vec::new());
    }
    let parse = |span: &String| {
        span.parse().map_err(|err| {
            Failure::usage(format!("`{span}`: {err}"))
                .with_fix("meshctl share set --quiet 22:00-07:00")
        })
    };
    spans.iter().map(parse).collect()
}

/// The change that sets one limit, or takes it away.
pub(super) fn limit(args: LimitArgs) -> Result<DoorChange, Failure> {
    let who: Guests = args.who.parse().map_err(|err| {
        Failure::usage(format!("`{}`: {err}", args.who))
            .with_fix("meshctl share limit each --concurrent 2")
    })?;
    let models = match args.models.trim() {
        "all" => "*".to_owned(),
        models => models.to_owned(),
    };
    let limit = Limit {
        who,
        models,
        concurrent: args.concurrent,
        per_minute: args.per_minute,
        tokens_per_day: args.tokens_per_day,
    };
    if limit.is_empty() != args.none {
        return Err(Failure::usage("no bound was named")
            .with_fix(
                "meshctl share limit each --concurrent 2 --per-minute 30 --tokens-per-day 200000",
            )
            .with_fix("meshctl share limit each --none"));
    }
    Ok(DoorChange {
        limit: Some(limit),
        ..DoorChange::default()
    })
}

/// Adds what is set, and how the door stands.
pub(super) fn describe(door: &DoorStatus, text: &mut String) {
    let policy = &door.policy;
    for limit in &policy.limits {
        let _ = writeln!(text, "Limit:     {}", clean(&limit_words(limit)));
    }
    if !policy.caps.is_empty() {
        let _ = writeln!(text, "Requests:  {}", caps_words(&policy.caps));
    }
    if !policy.quiet.is_empty() {
        let spans: Vec<String> = policy.quiet.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "Quiet:     {}", spans.join("; "));
    }
    if policy.pauses_on_gpu_use {
        text.push_str("Pause:     while other programs of yours use the GPU\n");
    }
    if let Some(closed) = &door.closed {
        let _ = writeln!(
            text,
            "Closed:    {}",
            closed_words(closed, SystemTime::now())
        );
    }
    for guest in &door.queue {
        let _ = writeln!(text, "Guest:     {}", clean(&queue_words(guest)));
    }
}

fn limit_words(limit: &Limit) -> String {
    let who = match &limit.who {
        Guests::All => "all guests together".to_owned(),
        Guests::Each => "each guest".to_owned(),
        Guests::User(name) => name.to_string(),
    };
    let models = if limit.models == "*" {
        String::new()
    } else {
        format!(" with {}", limit.models)
    };
    let bounds = [
        limit.concurrent.map(|n| format!("{n} at once")),
        limit.per_minute.map(|n| format!("{n} a minute")),
        limit.tokens_per_day.map(|n| format!("{n} tokens a day")),
    ];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    format!("{who}{models}: {}", bounds.join(", "))
}

fn caps_words(caps: &Caps) -> String {
    let words = [
        caps.output_tokens.map(|n| format!("{n} output tokens")),
        caps.context_tokens
            .map(|n| format!("{n} tokens of context")),
        caps.images.map(|n| plural(u64::from(n), "image")),
        caps.body_mib.map(|n| format!("{n} MiB")),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    format!("of guests have at most {}", words.join(", "))
}

fn closed_words(closed: &Closed, now: SystemTime) -> String {
    match closed {
        Closed::Quiet { until_ms } => {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            let left = Duration::from_millis(*until_ms).saturating_sub(now);
            let minutes = left.as_secs().div_ceil(60);
            format!(
                "to guests, for {} more of quiet hours",
                plural(minutes, "minute")
            )
        }
        Closed::GpuInUse => "to guests, while the GPU is in use".to_owned(),
    }
}

fn queue_words(guest: &QueueStatus) -> String {
    let mut words = format!(
        "{}, {} running, {} waiting",
        guest.guest, guest.n_active, guest.n_waiting
    );
    if let Some(position) = guest.position {
        let _ = write!(words, " from place {position}");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_told_in_minutes() {
        let now = UNIX_EPOCH + Duration::from_secs(600);
        for (until_ms, want) in [
            (660_000, "to guests, for 1 minute more of quiet hours"),
            (721_000, "to guests, for 3 minutes more of quiet hours"),
            (0, "to guests, for 0 minutes more of quiet hours"),
        ] {
            assert_eq!(closed_words(&Closed::Quiet { until_ms }, now), want);
        }
    }
}
