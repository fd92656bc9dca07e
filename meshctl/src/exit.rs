//! The documented exit codes, and a failure with the words that go with it.

use std::process::ExitCode;

use mesh_proto::control::code;

/// How a command ended. The numbers are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line was not understood.
    Usage = 2,
    /// `meshd` does not answer.
    NotRunning = 3,
    /// The node must log in, or be approved, first.
    NeedsLogin = 4,
    /// No reply, or no such thing.
    NotFound = 5,
    /// Refused by policy or for want of rights.
    Refused = 6,
    /// It answers, but not as asked: stale map, by a relay alone, switched off, still starting.
    Degraded = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What went wrong, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable, for programs.
    pub(crate) code: String,
    /// What happened and why.
    pub(crate) message: String,
    /// What mends it.
    pub(crate) fix: Vec<Fix>,
}

/// An exact command, and what there is to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fix {
    pub(crate) command: String,
    pub(crate) note: Option<&'static str>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            message: message.into(),
            fix: Vec::new(),
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "failed", message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, code::NOT_FOUND, message)
    }

    /// Nobody reads the output any more: an end like any other, and nothing to say to anybody.
    pub(crate) fn closed_pipe() -> Self {
        Self::new(Exit::Done, CLOSED_PIPE, "")
    }

    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.code == CLOSED_PIPE
    }

    /// An error that `meshd` answered.
    pub(crate) fn from_daemon(error_code: &str, message: impl Into<String>) -> Self {
        let failure = Self::new(exit_of(error_code), error_code, message);
        match error_code {
            code::NEEDS_LOGIN
            | code::AUTH_KEY_UNKNOWN
            | code::AUTH_KEY_SPENT
            | code::AUTH_KEY_EXPIRED
            | code::AUTH_KEY_REVOKED
            | code::NOT_REGISTERED
            | code::NODE_EXPIRED => failure.with_login_fix(),
            _ => failure,
        }
    }

    pub(crate) fn with_fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(Fix {
            command: command.into(),
            note: None,
        });
        self
    }

    pub(crate) fn with_fix_note(mut self, command: impl Into<String>, note: &'static str) -> Self {
        self.fix.push(Fix {
            command: command.into(),
            note: Some(note),
        });
        self
    }

    pub(crate) fn with_login_fix(self) -> Self {
        self.with_fix_note(
            "coordinator key create",
            "on the coordinator; prints an auth key",
        )
        .with_fix("meshctl up --auth-key pxk_…")
    }
}

const CLOSED_PIPE: &str = "closed_pipe";

fn exit_of(error_code: &str) -> Exit {
    match error_code {
        code::NEEDS_LOGIN
        | code::AUTH_KEY_UNKNOWN
        | code::AUTH_KEY_SPENT
        | code::AUTH_KEY_EXPIRED
        | code::AUTH_KEY_REVOKED
        | code::NOT_REGISTERED
        | code::NODE_EXPIRED => Exit::NeedsLogin,
        code::BAD_REQUEST => Exit::Usage,
        code::NOT_FOUND | code::TIMEOUT => Exit::NotFound,
        code::REFUSED | code::FORBIDDEN | code::UNAUTHORIZED => Exit::Refused,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_ends_as_the_guide_says() {
        for (codes, exit) in [
            (
                &[
                    code::NEEDS_LOGIN,
                    code::AUTH_KEY_UNKNOWN,
                    code::AUTH_KEY_SPENT,
                    code::AUTH_KEY_EXPIRED,
                    code::AUTH_KEY_REVOKED,
                    code::NOT_REGISTERED,
                    code::NODE_EXPIRED,
                ][..],
                Exit::NeedsLogin,
            ),
            (&[code::BAD_REQUEST], Exit::Usage),
            (&[code::NOT_FOUND, code::TIMEOUT], Exit::NotFound),
            (
                &[code::REFUSED, code::FORBIDDEN, code::UNAUTHORIZED],
                Exit::Refused,
            ),
            (
                &[
                    code::BAD_PROOF,
                    code::BAD_NONCE,
                    code::CONFLICT,
                    code::RATE_LIMITED,
                    code::POOL_EXHAUSTED,
                    code::UNAVAILABLE,
                    code::INTERNAL,
                    "a_code_of_a_newer_daemon",
                ],
                Exit::Failed,
            ),
        ] {
            for error_code in codes {
                assert_eq!(exit_of(error_code), exit, "{error_code}");
            }
        }
    }
}
