//! What keeps a part of a ring taken while Python objects point into it.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use velo_shm::Lease;

/// What views point into: a frame, whose lease comes when the frame itself is done with; or a loan,
/// which has its lease from the beginning.
#[derive(Default)]
pub struct Hold {
    lease: OnceLock<Lease>,
}

impl Hold {
    /// A hold on a loan.
    pub fn of(lease: Lease) -> Arc<Hold> {
        Arc::new(Hold {
            lease: OnceLock::from(lease),
        })
    }

    /// Gives a frame's hold its lease.
    pub fn set(&self, lease: Lease) {
        let _ = self.lease.set(lease); // a frame is done with once
    }

    /// The lease, once there is one.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.get()
    }
}

/// An end of a stream that gives the room of dropped views back.
pub trait Sweep: Send + Sync {
    /// Gives back the room of the views that were dropped.
    fn sweep(&self, py: Python<'_>);
}
