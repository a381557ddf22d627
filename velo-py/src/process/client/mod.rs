//! The client's end of process-mode streams: links, the streams on them, journals and backlogs.

mod backlog;
pub mod blame;
pub mod channel;
pub mod handle;
pub mod journal;
pub mod lane;
pub mod left_out;
pub mod link;
pub mod log;
pub mod opening;
pub mod ring_stream;
mod slow_steps;
