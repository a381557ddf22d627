//! The functions and classes of the Python module that open streams and start processes.

pub mod daemon;
pub mod inline_session;
pub mod inline_stream;
pub mod messages;
pub mod placement;
pub mod process_stream;
pub mod serve;
pub mod session;
pub mod standstill;
pub mod supervisor;
pub mod warm;
pub mod watch;
pub mod worker_control;
pub mod worker_link;
