//! The worker's end of process-mode streams: rings, control messages, snapshots.

pub mod control_line;
pub mod lane;
pub mod ports;
pub mod ring_port;
mod slow_steps;
pub mod snapshot;
