//! The user's half of a stream: its channel, and the awaitables that users wait for.

pub mod batch;
pub mod channel;
pub mod function_stats;
pub mod group;
pub mod meter;
pub mod operation;
pub mod results;
pub mod run;
pub mod state;
pub mod stream;
pub mod turn_budget;
