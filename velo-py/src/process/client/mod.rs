//! The client's end of process-mode streams: links, the streams on them, journals and backlogs.
//!
//! Without process mode, there are stand-ins for what the rest of the crate names.

#[cfg(process_mode)]
mod backlog;
pub mod blame;
#[cfg_attr(not(process_mode), path = "absent/channel.rs")]
pub mod channel;
#[cfg(process_mode)]
pub mod handle;
#[cfg(process_mode)]
pub mod journal;
#[cfg(process_mode)]
pub mod lane;
pub mod lane_messages;
pub mod left_out;
#[cfg_attr(not(process_mode), path = "absent/link.rs")]
pub mod link;
pub mod log;
#[cfg(process_mode)]
pub mod opening;
#[cfg(process_mode)]
pub mod ring_stream;
#[cfg(process_mode)]
mod slow_steps;
pub mod told;
