//! The port of a stream in process mode, in a build without that.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::Allowance;

use crate::errors::Thrown;
use crate::flow::Next;
use crate::function_side::FunctionSide;
use crate::lane_frames::{Name, Rest};
use crate::wait::Wait;

absent! {
    /// The function's half of a stream in process mode.
    RingPort {
        fn next_event(Python<'_>) -> Result<Next, Thrown>;
        fn wait_event(Python<'_>) -> PyResult<Option<Py<PyAny>>>;
        fn asked(Python<'_>) -> PyResult<()>;
        fn is_at_rest(Python<'_>) -> PyResult<bool>;
        fn event(Python<'_>) -> u64;
        fn allow(Option<Allowance>);
        fn runs_key(u64);
        fn runs_key_within(u64, Option<Allowance>);
        fn is_of_parent() -> bool;
        fn was_slow(Python<'_>, u64);
        fn push(Python<'_>, &Bound<'_, PyAny>) -> PyResult<bool>;
        fn push_named(Python<'_>, u8, Name, Option<&Bound<'_, PyAny>>) -> PyResult<bool>;
        fn push_failure(Python<'_>, u8, (Name, Rest), &PyErr) -> PyResult<bool>;
        fn push_bytes(Python<'_>, u8, &[u8]) -> PyResult<bool>;
        fn flush_results(Python<'_>);
        fn flush(Python<'_>);
        fn wait_space(Python<'_>) -> PyResult<Option<Py<PyAny>>>;
        fn finish(Python<'_>, Result<(), PyErr>);
        fn end(Python<'_>, Result<(), PyErr>);
        fn is_closed(Python<'_>) -> bool;
        fn is_cancelled(Python<'_>) -> bool;
    }
}

/// What gives something away that it holds, or runs a step.
impl RingPort {
    pub fn event_loop(&self) -> &Py<PyAny> {
        match *self {}
    }

    pub fn event_wait(&self) -> &Wait {
        match *self {}
    }

    pub fn space_wait(&self) -> &Wait {
        match *self {}
    }

    pub fn function(&self) -> &Arc<FunctionSide> {
        match *self {}
    }

    pub fn state<'py>(&self, _: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match *self {}
    }

    pub fn observe_step<R>(&self, _: Python<'_>, _: Option<Allowance>, _: impl FnOnce() -> R) -> R {
        match *self {}
    }

    pub fn observe_lane<R>(&self, _: Option<Allowance>, _: impl FnOnce() -> R) -> R {
        match *self {}
    }
}
