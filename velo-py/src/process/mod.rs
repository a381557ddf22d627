//! Streams between two processes: rings in shared memory, as the client and the worker use them.

#[cfg(not(process_mode))]
#[macro_use]
mod absent;
pub mod client;
#[cfg(process_mode)]
pub mod control;
#[cfg(process_mode)]
pub mod hold;
#[cfg(process_mode)]
pub mod loan;
#[cfg(process_mode)]
mod ring_frames;
#[cfg(process_mode)]
pub mod ring_pair;
#[cfg(process_mode)]
pub mod view;
pub mod worker;
