//! Mapped memory that two processes share. It knows nothing of its content.

mod base;
#[cfg(target_os = "linux")]
mod memfd;
#[cfg(feature = "named")]
mod named;
#[cfg(target_os = "linux")]
mod pages;

pub use base::{Segment, SegmentError};
#[cfg(target_os = "linux")]
pub use memfd::MemfdSegment;
#[cfg(feature = "named")]
pub use named::NamedSegment;
