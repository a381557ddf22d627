//! The functions and classes of the Python module that open streams and start processes.

pub mod cores;
#[cfg(process_mode)]
pub mod daemon;
pub mod inline_session;
pub mod inline_stream;
#[cfg(process_mode)]
pub mod lane_relay;
#[cfg(process_mode)]
pub mod messages;
#[cfg(process_mode)]
pub mod placement;
#[cfg(process_mode)]
pub mod process_stream;
#[cfg(process_mode)]
pub mod serve;
pub mod session;
pub mod standstill;
#[cfg(process_mode)]
pub mod supervisor;
#[cfg(process_mode)]
pub mod warm;
#[cfg(process_mode)]
pub mod watch;
#[cfg(process_mode)]
pub mod worker_control;
#[cfg(process_mode)]
pub mod worker_link;
