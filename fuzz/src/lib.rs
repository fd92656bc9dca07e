//! Hostile bytes for the packet path, and what must hold whatever they are. Never shipped.
//!
//! A target makes a case out of a [`Tape`] and panics when something does not hold. [`runner`] feeds it seeds by the
//! million, the tests of this crate feed it bytes that shrink, and replay the cases that failed once.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a target stops where it finds nonsense")]

pub mod corpus;
pub mod mutate;
pub mod packet;
pub mod pair;
pub mod reference;
pub mod regression;
pub mod runner;
pub mod tape;
mod target;

pub use tape::Tape;

/// Something that must hold for all cases.
pub trait Target {
    /// Makes a case and tries it.
    ///
    /// # Panics
    /// When it does not hold.
    fn case(&mut self, tape: &mut Tape<'_>);
}

/// A target by its name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name on the command line and in the file of regressions.
    pub name: &'static str,
    /// What it tries, in a line.
    pub about: &'static str,
    /// Makes a fresh one.
    pub make: fn() -> Box<dyn Target>,
}

/// All targets.
pub const TARGETS: [Entry; 10] = [
    Entry {
        name: "merge",
        about: "packets of several flows are merged; split again they are the same, and no broken one is blessed",
        make: || Box::new(target::merge::Merge::default()),
    },
    Entry {
        name: "split",
        about: "super-packets are split as the kernel does it, and merge to what they were",
        make: || Box::new(target::split::Split::default()),
    },
    Entry {
        name: "offload",
        about: "lying offload headers and mangled packets are refused or split within bounds",
        make: || Box::new(target::offload::Offload::default()),
    },
    Entry {
        name: "admit",
        about: "a peer's packets pass exactly where the rules say, as the receiver's kernel will read them",
        make: || Box::new(target::admit::Admission::default()),
    },
    Entry {
        name: "burst",
        about: "packets of a peer judged as a batch get the verdicts and the bytes that each gets by itself",
        make: || Box::new(target::burst::Bursts::default()),
    },
    Entry {
        name: "outbound",
        about: "this machine's packets leave, turn around or stop, and change nowhere but in ports and addresses",
        make: || Box::new(target::outbound::Outward::default()),
    },
    Entry {
        name: "fragment",
        about: "fragments pass only behind a first one that passed",
        make: || Box::new(target::fragment::Fragments::default()),
    },
    Entry {
        name: "datagram",
        about: "only a datagram that was sealed opens, once, whatever stands around it",
        make: || Box::new(target::datagram::Datagrams::default()),
    },
    Entry {
        name: "rubbish",
        about: "an authentic peer seals any bytes; what comes out is what went in, or nothing",
        make: || Box::new(target::rubbish::Rubbish::default()),
    },
    Entry {
        name: "engine",
        about: "the engine takes any datagram from anywhere, and answers nothing that is not WireGuard for it",
        make: || Box::new(target::engine::Control::default()),
    },
];

/// The target of a name.
#[must_use]
pub fn find(name: &str) -> Option<Entry> {
    TARGETS.into_iter().find(|entry| entry.name == name)
}
