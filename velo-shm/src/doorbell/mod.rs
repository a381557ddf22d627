//! A file descriptor that becomes readable when the other side has something to say.
//!
//! It carries no message and counts nothing: many rings before one look are one ring. Whether it
//! needs to be rung at all is decided by the sleeping flag of the [link](crate::Link).

mod bells;
#[cfg(not(loom))]
mod fd;
#[cfg(loom)]
mod model;

pub use bells::Bells;
#[cfg(not(loom))]
pub use fd::{Doorbell, Woken, wait_any};
#[cfg(loom)]
pub use model::Doorbell;
