//! Trace context: what a result is made from tells where its trace began.
//!
//! Where results go to a sink, those of a record with the headers `traceparent` and `tracestate` get
//! these. A table keeps them for the keys whose record in hand has some, and for no other.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use super::table::{Inner, KeyTable};
use crate::codec::Record;
use crate::lane_frames::Name;

/// The headers of W3C's trace context.
const NAMES: [&str; 2] = ["traceparent", "tracestate"];

/// Those headers of an event that is a record; None where it has none.
#[inline]
fn trace_of<'py>(event: &Bound<'py, PyAny>) -> Option<Bound<'py, PyTuple>> {
    let record = event.cast_exact::<Record>().ok()?;
    let headers = record.get().headers.bind(event.py()).clone();
    let headers = headers.cast_into_exact::<PyTuple>().ok()?;
    match headers.is_empty() {
        true => None,
        false => among(&headers),
    }
}

#[cold]
fn among<'py>(headers: &Bound<'py, PyTuple>) -> Option<Bound<'py, PyTuple>> {
    let of_trace = |header: &Bound<'py, PyAny>| {
        let name = header.get_item(0).ok()?.cast_into::<PyString>().ok()?;
        let name = name.to_str().ok()?;
        let is = NAMES.iter().any(|known| name.eq_ignore_ascii_case(known));
        is.then_some(())
    };
    let found: Vec<_> = headers.iter().filter(|h| of_trace(h).is_some()).collect();
    match found.is_empty() {
        true => None,
        false => PyTuple::new(headers.py(), found).ok(),
    }
}

impl Inner {
    /// A key has taken an event.
    #[inline]
    pub(super) fn note_trace(&mut self, py: Python<'_>, id: u32, event: &Py<PyAny>) {
        if !self.terms.traces {
            return;
        }
        match trace_of(event.bind(py)) {
            Some(trace) => drop(self.traces.insert(id, trace.unbind())),
            None => self.forget_trace(id),
        }
    }

    /// A key has no record in hand any more.
    #[inline]
    pub(super) fn forget_trace(&mut self, id: u32) {
        if !self.traces.is_empty() {
            self.traces.remove(&id);
        }
    }
}

impl KeyTable {
    /// A result as it is sent: with the trace context of the record that it was made from.
    #[inline]
    pub(super) fn traced(&self, py: Python<'_>, name: Name, made: Py<PyAny>) -> Py<PyAny> {
        let trace = self.inner.with(py, |inner| {
            // Without a look at the key where there are none.
            inner.traces.get(&name.id).map(|trace| trace.clone_ref(py))
        });
        match trace {
            Ok(Some(trace)) => with_trace(py, made, trace),
            _ => made,
        }
    }
}

#[cold]
fn with_trace(py: Python<'_>, made: Py<PyAny>, trace: Py<PyTuple>) -> Py<PyAny> {
    static TRACED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let traced = TRACED.import(py, "velo.connect.model", "traced");
    match traced.and_then(|traced| traced.call1((&made, trace))) {
        Ok(traced) => traced.unbind(),
        Err(error) => {
            // The result goes on, without its trace.
            error.write_unraisable(py, Some(intern!(py, "trace context").as_any()));
            made
        }
    }
}
