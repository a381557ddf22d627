//! The operating system: processes, descriptors and limits. Nothing here knows of links or streams.

mod calls;
pub(crate) mod clock;
pub(crate) mod dial;
pub(crate) mod exit;
pub(crate) mod fds;
pub(crate) mod limits;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod service_manager;
pub(crate) mod title;

pub(crate) use calls::*;
