//! The user's half of an inline stream.

use std::ops::Deref;
use std::sync::Arc;

use pyo3::prelude::*;

use super::queues::InlineStream;
use crate::flow::Interest;
use crate::function_side::Runner;

/// Detaches an inline stream from the session that it is attached to.
pub trait LeaveSession: Send + Sync {
    /// Lets the function handle the sent events, and drops their results.
    fn leave(&self, py: Python<'_>) -> PyResult<()>;
}

/// The user's half of an inline stream.
pub struct InlineChannel {
    stream: Arc<InlineStream>,
    /// Runs the function in the user's turn. None when the function failed before it began.
    eager: Option<Arc<dyn Runner>>,
    /// Of a stream that is attached to a session.
    session: Option<Box<dyn LeaveSession>>,
}

impl InlineChannel {
    /// The user's half of `stream`.
    pub fn new(stream: Arc<InlineStream>, eager: Option<Arc<dyn Runner>>) -> Self {
        InlineChannel {
            stream,
            eager,
            session: None,
        }
    }

    /// The user's half of `stream`, which is attached to a session.
    pub fn attached(
        stream: Arc<InlineStream>,
        eager: Option<Arc<dyn Runner>>,
        session: Box<dyn LeaveSession>,
    ) -> Self {
        InlineChannel {
            stream,
            eager,
            session: Some(session),
        }
    }

    /// See [`Channel::detach`](crate::user::channel::Channel::detach).
    pub fn detach(&self, py: Python<'_>) -> PyResult<bool> {
        if let Some(session) = &self.session {
            session.leave(py)?;
        }
        Ok(true)
    }

    /// See [`Channel::spin`](crate::user::channel::Channel::spin).
    pub fn spin(&self, py: Python<'_>, _interest: Interest) -> PyResult<u64> {
        if let Some(eager) = &self.eager {
            eager.run(py)?;
        }
        Ok(0)
    }
}

impl Deref for InlineChannel {
    type Target = InlineStream;

    fn deref(&self) -> &InlineStream {
        &self.stream
    }
}
