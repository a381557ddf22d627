//! What a forked child has of its parent.
//!
//! With links, it has a private copy of the memory that the parent shares, and dead doorbells in place of
//! the parent's (`shared.rs`). Without them, forks are only counted (`counted.rs`).

mod generation;

#[cfg(not(all(feature = "links", target_os = "linux")))]
mod counted;
#[cfg(all(feature = "links", target_os = "linux"))]
mod shared;

#[cfg(not(all(feature = "links", target_os = "linux")))]
pub(crate) use counted::watch;
pub use generation::generation;
#[cfg(all(feature = "links", target_os = "linux"))]
pub use shared::{SharedFd, default_in_children};
#[cfg(all(feature = "links", target_os = "linux"))]
pub(crate) use shared::{SharedMap, watch};
