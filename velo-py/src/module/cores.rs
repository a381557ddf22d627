//! The cores of this process.

use pyo3::prelude::*;

/// The number of cores that this process may use, within its affinity and cgroup quota. Read once,
/// because the system calls are slow.
#[pyfunction]
pub fn usable_cores() -> usize {
    velo_shm::cores()
}
