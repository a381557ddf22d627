//! Streams between two processes: rings in shared memory, as the client and the worker use them.

pub mod client;
pub mod control;
pub mod hold;
pub mod loan;
mod ring_frames;
pub mod ring_pair;
pub mod view;
pub mod worker;
