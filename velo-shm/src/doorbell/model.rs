//! The doorbell of a model: loom sees each waiter, wakes it for no reason now and then, and reports
//! a wake-up that never comes.

use loom::sync::{Arc, Notify};

/// Rings within one model execution.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Notify>);

impl Doorbell {
    /// A bell that was not rung.
    pub fn create() -> std::io::Result<Self> {
        Ok(Doorbell(Arc::new(Notify::new())))
    }

    /// Wakes the waiter, or the next one.
    pub fn ring(&self) {
        self.0.notify();
    }

    /// Blocks until it rings, and silences it; may return early, as an event loop's wait does.
    pub fn wait(&self) {
        self.0.wait();
    }

    /// Nothing is left to silence: waiting did it.
    pub fn drain(&self) -> bool {
        true
    }
}
