//! Part of the daemon.
