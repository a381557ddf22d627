//! Looking at several links at once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::{LinkEnd, Spin, Woken, wait_any};

use super::WorkerLink;
use crate::ffi::fd;
use crate::rings::new_spin;

/// More than anybody waits.
const FOREVER: Duration = Duration::from_secs(86_400);

/// Waits, with the GIL released and for as long as it has been paying off, until one of several
/// links has something.
#[pyclass(module = "velo._core")]
pub struct LinkWatch {
    ends: Vec<Arc<LinkEnd>>,
    spin: Spin,
    /// For what a client has announced.
    announced: Spin,
    /// The descriptor of the loop's own selector: what else there may be to do.
    selector: OwnedFd,
}

#[pymethods]
impl LinkWatch {
    #[new]
    fn new(selector: i32) -> PyResult<Self> {
        Ok(LinkWatch {
            ends: Vec::new(),
            spin: new_spin(),
            announced: new_spin(),
            selector: fd::duplicate(selector)?,
        })
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
        spin_on(py, &self.ends, &mut self.spin)
    }

    /// Sleeps until a link or the selector has something, for so many seconds at most. True if the
    /// selector has.
    ///
    /// It is one system call and no Python, because all that runs between being woken and looking
    /// at the rings is waited for.
    #[pyo3(signature = (seconds=None))]
    fn sleep(&mut self, py: Python<'_>, seconds: Option<f64>) -> PyResult<bool> {
        for end in &self.ends {
            end.arm();
        }
        // Once more, now that the doorbells ring: what came before is seen here.
        let woken = match self.ready() {
            true => Ok(Woken::default()),
            false => {
                let timeout = seconds.map(|s| Duration::try_from_secs_f64(s).unwrap_or(FOREVER));
                let bells = self.ends.iter().map(|end| end.doorbell());
                py.detach(|| wait_any(bells, self.selector.as_fd(), timeout))
            }
        };
        for end in &self.ends {
            end.disarm();
        }
        let Woken { rung, other } = woken?;
        if rung && !other && !self.ready() {
            // A client is about to have something, and has woken this worker in time for it.
            spin_on(py, &self.ends, &mut self.announced);
        }
        Ok(other)
    }
}

/// Looks at links that have nothing for as long as it pays, and not at all where a core is wanted by
/// others. True if one has something then.
fn spin_on(py: Python<'_>, ends: &[Arc<LinkEnd>], spin: &mut Spin) -> bool {
    if ends.iter().any(|end| end.is_crowded()) {
        return false;
    }
    let Some(budget) = spin.budget() else {
        return false;
    };
    py.detach(|| spin.spin_for(budget, || ends.iter().any(|end| end.any_ready())))
}
