//! Numbers of clients and workers, within one supervisor.

/// A connection of a client.
pub(crate) type ClientId = u64;
/// A worker. A number is never used again.
pub(crate) type WorkerId = u32;
