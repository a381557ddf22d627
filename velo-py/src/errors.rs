//! The exceptions of `velo.errors`, as Rust makes them. Their classes are written in Python.

use std::ops::Deref;

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
#[cfg(process_mode)]
use velo_shm::RingCorrupted;

/// An exception in one word. It keeps small the results that every event passes on: moving the room of a
/// whole exception costs more than some of those steps.
#[derive(Debug)]
pub struct Thrown(Box<PyErr>);

impl Deref for Thrown {
    type Target = PyErr;

    fn deref(&self) -> &PyErr {
        &self.0
    }
}

impl From<PyErr> for Thrown {
    #[cold]
    fn from(error: PyErr) -> Self {
        Thrown(Box::new(error))
    }
}

impl From<Thrown> for PyErr {
    #[cold]
    fn from(thrown: Thrown) -> Self {
        *thrown.0
    }
}

macro_rules! exception {
    ($function:ident, $class:literal) => {
        #[doc = concat!("A `velo.errors.", $class, "` with this message.")]
        pub fn $function(message: impl Into<String>) -> PyErr {
            static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
            let message = message.into();
            Python::attach(|py| match CLASS.import(py, "velo.errors", $class) {
                Ok(class) => PyErr::from_type(class.clone(), (message,)),
                Err(error) => error,
            })
        }
    };
}

exception!(velo, "VeloError");
exception!(closed, "StreamClosed");
exception!(busy, "StreamBusy");
exception!(too_large, "EventTooLarge");
exception!(corrupted, "RingCorrupted");
exception!(pool, "PoolError");

/// A `PoolError` that says what another error says.
pub fn pool_error(error: impl std::fmt::Display) -> PyErr {
    pool(error.to_string())
}

/// A `velo.errors.RingCorrupted`: another process wrote over a ring.
#[cold]
#[cfg(process_mode)]
pub fn ring_corrupted(found: &RingCorrupted) -> PyErr {
    corrupted(format!(
        "{found}; another process wrote over this stream's memory, its events are lost"
    ))
}

/// A `velo.errors.StreamClosed` for a process that a stream function has forked.
#[cold]
pub fn of_worker() -> PyErr {
    closed(
        "this process was forked by a stream function: the streams of its worker, their events and \
         their results are the worker's alone; hand over what the child needs before it is forked, \
         and let it end by itself",
    )
}

/// A `velo.errors.EventTimeout`: the function of `stream` was longer than `seconds` at its event.
pub fn event_timeout(py: Python<'_>, stream: &str, event: u64, seconds: f64) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "velo.errors", "EventTimeout") {
        Ok(class) => PyErr::from_type(class.clone(), (stream.to_owned(), event, seconds)),
        Err(error) => error,
    }
}

/// A `velo.errors.BufferFull`: `sent` events of a batch went in, `event` did not.
pub fn buffer_full(stream: &str, sent: u64, event: &Bound<'_, PyAny>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(event.py(), "velo.errors", "BufferFull") {
        Ok(class) => PyErr::from_type(
            class.clone(),
            (stream.to_owned(), sent, event.clone().unbind()),
        ),
        Err(error) => error,
    }
}

/// A `velo.errors.JournalFull`: `size` of `limit` bytes are taken.
#[cold]
pub fn journal_full(stream: &str, size: usize, limit: usize) -> PyErr {
    Python::attach(|py| make(py, "JournalFull", (stream, size, limit)))
}

/// Whether this is a `velo.errors.JournalFull`.
#[cold]
pub fn is_journal_full(py: Python<'_>, error: &PyErr) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "velo.errors", "JournalFull");
    class.is_ok_and(|class| error.is_instance(py, class))
}

/// A `velo.errors.ReplayDiverged`: the result of this number is another one, or there is none.
#[cold]
pub fn diverged(stream: &str, result: u64, differs: bool) -> PyErr {
    Python::attach(|py| make(py, "ReplayDiverged", (stream, result, differs)))
}

fn make<'py>(py: Python<'py>, class: &str, args: impl PyCallArgs<'py>) -> PyErr {
    let made = py
        .import("velo.errors")
        .and_then(|errors| errors.getattr(class)?.call1(args));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// The exception of a function, which has travelled as `velo._function.exceptions.pack` made it.
pub fn unpack(py: Python<'_>, packed: Py<PyAny>) -> PyErr {
    static UNPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let unpacked = UNPACK
        .import(py, "velo._function.exceptions", "unpack")
        .and_then(|unpack| unpack.call1((packed,)));
    unpacked.map_or_else(|error| error, PyErr::from_value)
}
