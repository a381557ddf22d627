//! The functions and classes of the Python module that open streams and start processes.

pub mod daemon;
pub mod inline_session;
pub mod inline_stream;
pub mod supervisor;
pub mod warm;
