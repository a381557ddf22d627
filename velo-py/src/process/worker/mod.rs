//! The worker's end of process-mode streams: rings, control messages, snapshots.
//!
//! Without process mode, there is a stand-in for what the rest of the crate names.

#[cfg(process_mode)]
pub mod control_line;
pub mod due;
#[cfg(process_mode)]
pub mod lane;
#[cfg(process_mode)]
pub mod ports;
#[cfg_attr(not(process_mode), path = "absent/ring_port.rs")]
pub mod ring_port;
#[cfg(process_mode)]
mod slow_steps;
#[cfg(process_mode)]
pub mod snapshot;
