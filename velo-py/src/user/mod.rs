//! The user's half of a stream: its channel, and the awaitables that users wait for.

pub mod batch;
pub mod channel;
pub mod feed_source;
pub mod function_stats;
pub mod key_counts;
pub mod meter;
pub mod operation;
mod owner;
pub mod read_ahead;
mod receiving;
pub mod results;
pub mod run;
mod sending;
pub mod source;
pub mod state;
pub mod stream;
pub mod stuck_sender;
pub mod turn_budget;
