//! The lab: hosts as network namespaces around a router, the real programs in them, and the means to watch and to hurt them.
//!
//! A [`net::Lab`] is a router namespace and any number of [`net::Host`]s. [`mesh`] runs `coordinator`, `meshd` and
//! `meshctl` on hosts, [`model`] runs model servers there, [`probe`] asks questions from a host as its users would.
//! [`control`] speaks the control protocol by itself, for nodes that are not `meshd`; [`disk`] is soon full. Waiting is always for a condition
//! with a deadline ([`wait`]), never for a time.
//!
//! Everything needs root. What a lab made goes away with it: on drop, on a panic, on Ctrl-C, and what a killed process
//! left is swept by the next lab.
#![forbid(unsafe_code)]

pub mod bench;
pub mod control;
pub mod disk;
pub mod interop;
pub mod mesh;
pub mod model;
pub mod net;
pub mod probe;
pub mod process;
pub mod standin;
pub mod stream;
pub mod tool;
pub mod wait;
