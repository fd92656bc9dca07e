//! What a relay counts. The program around it has the metrics.

use std::fmt::Debug;

use mesh_proto::relay::Denial;

/// Takes what a relay counts; called from many threads, a few times a batch.
pub trait Meter: Debug + Send + Sync {
    /// A node has connected.
    fn entered(&self);
    /// Its connection ended.
    fn left(&self);
    /// A node was turned away.
    fn refused(&self, reason: Denial);
    /// So many bytes wait for nodes.
    fn queued(&self, n_bytes: usize);
    /// So many datagrams, of so many bytes, were taken in.
    fn forwarded(&self, n_datagrams: usize, n_bytes: usize);
    /// So many of them went on by UDP.
    fn forwarded_by_udp(&self, n_datagrams: usize);
    /// So many were dropped: `full`, `not_here` or `rate`.
    fn dropped(&self, reason: &'static str, n_datagrams: usize);
    /// A STUN request was answered.
    fn stun_answered(&self);
}
