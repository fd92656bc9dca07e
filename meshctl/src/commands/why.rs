//! `why`: what lies between a node and a port of another, and the first thing that fails.

use std::fmt::Write as _;

use mesh_proto::local::{PATH_WHY, Verdict, Why, WhyRequest, WhyStep, WhySubject};

use crate::args::WhyArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, clean};

pub(super) async fn run(args: WhyArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let request = read(args)?;
    // The other node and the coordinator are asked meanwhile.
    let asking = client.post::<_, Why>(PATH_WHY, &request, PATIENCE);
    let why = output.during("asking", asking).await?;
    output.answer(&why, describe)?;
    Ok(exit_of(&why))
}

/// Longer than meshd itself waits for others.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

fn read(args: WhyArgs) -> Result<WhyRequest, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "`{}` is not a node with a port: write it like gpu1:11434",
            args.to
        ))
    };
    let (to, port) = args.to.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(wrong)?;
    let bare = to
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(to);
    if bare.is_empty() {
        return Err(wrong());
    }
    Ok(WhyRequest {
        from: args.from,
        to: bare.to_owned(),
        port,
    })
}

/// By the first thing that fails; else by what is not as it should be.
fn exit_of(why: &Why) -> Exit {
    match first_fault(why).map(|step| (step.verdict, step.subject)) {
        Some((Verdict::No, WhySubject::Policy)) => Exit::Refused,
        Some((Verdict::No, WhySubject::Name | WhySubject::Offer | WhySubject::Path)) => {
            Exit::NotFound
        }
        Some((Verdict::Degraded | Verdict::Unknown, _)) => Exit::Degraded,
        Some((Verdict::Yes, _)) | None => Exit::Done,
    }
}

/// What fails comes before what is merely not good, wherever it stands.
fn first_fault(why: &Why) -> Option<&WhyStep> {
    let of = |verdict| why.steps.iter().find(move |step| step.verdict == verdict);
    of(Verdict::No)
        .or_else(|| of(Verdict::Unknown))
        .or_else(|| of(Verdict::Degraded))
}

fn describe(why: &Why) -> String {
    let mut text = format!(
        "{} to {}, TCP port {}\n",
        clean(&why.from),
        clean(&why.to),
        why.port
    );
    for step in &why.steps {
        let subject = match step.subject {
            WhySubject::Policy => "policy",
            WhySubject::Name => "name",
            WhySubject::Offer => "offer",
            WhySubject::Path => "path",
        };
        let verdict = match step.verdict {
            Verdict::Yes => "yes",
            Verdict::Degraded => "poor",
            Verdict::No => "NO",
            Verdict::Unknown => "?",
        };
        let _ = writeln!(text, "  {subject:<7} {verdict:<5} {}", clean(&step.message));
    }
    let Some(fault) = first_fault(why) else {
        text.push_str("Nothing stands in the way.\n");
        return text;
    };
    let words = match fault.verdict {
        Verdict::No => "It fails there",
        Verdict::Unknown => "Not all can be known here",
        Verdict::Degraded | Verdict::Yes => "It works, but not as well as it could",
    };
    let _ = writeln!(text, "{words}: {}.", clean(&fault.message));
    if let Some(fix) = &fault.fix {
        let on = match fault.subject {
            WhySubject::Offer => format!(" (on {})", clean(&why.to)),
            WhySubject::Policy | WhySubject::Name | WhySubject::Path => String::new(),
        };
        let _ = writeln!(text, "  to mend it: {}{on}", clean(fix));
    }
    text
}
