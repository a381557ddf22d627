//! The function's half of a stream: its port, and the pump that runs it on that port.

pub mod deadline;
pub mod eager;
pub mod events;
pub mod flush_timer;
pub mod key_port;
pub mod port;
pub mod pump;
pub mod session;
pub mod slow_steps;
pub mod source;
pub mod stream_port;
pub mod ticks;
