//! Streams in inline mode: two queues in one event loop.

mod channel;
mod queues;

pub use channel::{InlineChannel, LeaveSession};
pub use queues::InlineStream;
