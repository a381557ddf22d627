//! Looking at several links at once.

use std::sync::Arc;

use pyo3::prelude::*;
use velo_shm::{LinkEnd, Spin};

use super::WorkerLink;

/// Waits, with the GIL released and for as long as it has been paying off, until one of several
/// links has something.
#[pyclass(module = "velo._core")]
pub struct LinkWatch {
    ends: Vec<Arc<LinkEnd>>,
    spin: Spin,
}

#[pymethods]
impl LinkWatch {
    #[new]
    fn new() -> Self {
        LinkWatch {
            ends: Vec::new(),
            spin: Spin::new(),
        }
    }

    /// Watches these links from now on.
    fn watch(&mut self, links: Vec<Bound<'_, WorkerLink>>) {
        self.ends = links
            .iter()
            .map(|link| link.get().link.end.clone())
            .collect();
    }

    /// Whether a link has something.
    fn ready(&self) -> bool {
        self.ends.iter().any(|end| end.any_ready())
    }

    /// Whether a link has something after a short look.
    fn look(&mut self, py: Python<'_>) -> bool {
        if self.ready() {
            return true;
        }
        let LinkWatch { ends, spin } = self;
        let Some(budget) = spin.budget() else {
            return false;
        };
        py.detach(|| spin.spin_for(budget, || ends.iter().any(|end| end.any_ready())))
    }

    /// Has every doorbell ring from now on. True if something is there already: do not sleep.
    fn arm(&self) -> bool {
        for end in &self.ends {
            end.arm();
        }
        self.ready()
    }

    /// Awake: no doorbell needs to ring.
    fn disarm(&self) {
        for end in &self.ends {
            end.disarm();
        }
    }

    /// Empties the doorbells.
    fn drain(&self) {
        for end in &self.ends {
            end.doorbell().drain();
        }
    }
}
