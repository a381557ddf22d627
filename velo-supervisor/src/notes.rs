//! What the program around a standalone supervisor adds to its status and its log.

use std::sync::{Arc, Mutex, PoisonError};

/// Notes that the program around a supervisor writes and viewers read. Copies share them.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    checkpoint: Arc<Mutex<String>>,
}

impl Notes {
    /// Says what is kept of sessions in a checkpoint, as JSON.
    pub fn tell_checkpoint(&self, text: String) {
        *self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Writes a line to the supervisor's log.
    pub fn log(&self, failure: bool, text: &str) {
        match failure {
            true => tracing::warn!("{text}"),
            false => tracing::info!("{text}"),
        }
    }

    pub(crate) fn checkpoint(&self) -> String {
        self.checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
