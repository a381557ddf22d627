//! The client's end of process-mode streams: links, the streams on them, journals and backlogs.

mod backlog;
pub mod channel;
pub mod handle;
mod journal;
mod link;
mod log;
pub mod opening;
mod oversubscription;
pub mod ring_stream;
mod slow_steps;
