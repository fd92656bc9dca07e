//! The mesh as a pure state machine: peers, sessions, paths, packet filter. No socket, clock, task or random source.
//!
//! [`Engine`] is the control side: one owner, who tells it what happened and then drains it. [`Plane`] is the data
//! side: shared by all packet threads, lock-free but for one lock around a peer's session that is taken once a batch.
//!
//! After each `handle_*` call and after [`Engine::ping`] the owner drains [`Engine::poll_transmit`] and
//! [`Engine::poll_event`], then waits until [`Engine::poll_timeout`].
//!
//! A packet thread does this:
//!
//! ```text
//! TUN packet   → plane.outbound ┬ Peer(peer) → peer.way(): what is longer goes by plane.fit
//!                               │              peer.seal(): per segment seal → to way.dst; finish
//!                               └ Reflect    → back to the TUN
//! UDP datagram → plane.inbound  ┬ Data(peer) → peer.open(): open; finish; plane.admitter(): admit → TUN
//!                               └ Control    → Engine::handle_udp
//! relay frame  → plane.inbound  ┬ Data(peer) → peer.open(): open_relayed → plane.admit → TUN; finish
//!                               └ Control    → Engine::handle_relay
//! ```
//!
//! and passes what `finish` and [`Admit::Consumed`] give to [`Engine::handle_plane`]. A batch's lock is dropped by
//! `finish` and must not be held while the same peer is locked again.
//!
//! The one thing that is not pure sits inside boringtun: keys and nonces of handshakes come from the system's random
//! source, and its session timers read the system's clock.
#![forbid(unsafe_code)]

mod config;
mod echo;
mod engine;
mod event;
mod filter;
mod fit;
mod nat;
mod netcheck;
mod noise;
mod packet;
mod path;
mod peer;
mod plane;
mod relay;
mod route;
mod seed;
mod service;
mod shard;
mod timers;

pub use engine::{Engine, EngineConfig};
pub use event::{
    Admit, ChecksumState, Destination, DropReason, Event, Inbound, Opened, Outbound, PeerStats,
    PingToken, PlaneEvent, Sealed, TimerReason, Transmit, Update, UpnpOrder, Way,
};
pub use fit::{Fit, Fragments, TooBig};
pub use netcheck::{NetReport, RelayReport};
pub use peer::{Opener, PeerHandle, Sealer};
pub use plane::{Admitter, Plane};
pub use service::{ServicePort, ServicePorts, Transport};

/// By how much a datagram can be longer than the packet in it: header, tag and padding.
pub const SEAL_OVERHEAD: usize = 16 + 16 + 15;

/// The least length of a buffer that is sealed into.
pub const SEAL_BUFFER_MIN: usize = 148;
