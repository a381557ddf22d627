//! What can go wrong in either direction, one type per operation.

use pyo3::exceptions::{PyException, PyImportError, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use thiserror::Error;

/// The value does not fit the memory that it should go to.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the value needs at least `{at_least}` bytes")]
pub struct Overflow {
    /// How many bytes are needed at the least, counted from the start of the value. The value may
    /// turn out larger, so room that is tried next had better grow by a factor as well.
    pub at_least: usize,
}

/// Why a value was not encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The value does not fit; encode it again into more room.
    #[error("the value needs at least `{at_least}` bytes")]
    Overflow {
        /// See [`Overflow::at_least`].
        at_least: usize,
    },
    /// The exception to raise: a `TypeError` that names the path to what cannot be pickled, or
    /// whatever the value's own methods raised.
    #[error("{0}")]
    Python(PyErr),
}

impl From<Overflow> for EncodeError {
    fn from(full: Overflow) -> Self {
        Self::Overflow {
            at_least: full.at_least,
        }
    }
}

/// Why bytes were not decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The bytes are no encoded value: their writer is broken.
    #[error("not an encoded value: {what} at byte `{at}`")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where, counted from the start of the payload.
        at: usize,
    },
    /// The bytes are in order, but the object cannot be made in this process: its class is not
    /// importable here, its `__setstate__` raised, memory ran out, or the exception came from
    /// [`super::memory::Memory`].
    #[error("{0}")]
    Python(PyErr),
}

impl From<PyErr> for DecodeError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// Why the native form of a value was given up while it was being written.
pub enum Stop {
    /// No more room.
    Full(Overflow),
    /// The value holds something whose meaning only one pickle of the whole keeps.
    Whole,
    /// An exception to pass on; boxed, as it is large and rare.
    Raised(Box<PyErr>),
    /// Pickle's exception for an object that cannot be pickled.
    Refused(Box<PyErr>),
}

impl From<Overflow> for Stop {
    #[inline]
    fn from(full: Overflow) -> Self {
        Self::Full(full)
    }
}

impl From<PyErr> for Stop {
    #[cold]
    fn from(error: PyErr) -> Self {
        Self::Raised(Box::new(error))
    }
}

/// The error for an object that was changed by Python code that ran while it was being written.
#[cold]
pub fn changed(what: &str) -> Stop {
    PyRuntimeError::new_err(format!("a `{what}` was changed while it was being sent")).into()
}

/// [`DecodeError`] while the place is still known from the decoder; small, as every step may return
/// it.
pub enum Fault {
    /// See [`DecodeError::Malformed`].
    Malformed(&'static str),
    /// See [`DecodeError::Python`].
    Raised(Box<PyErr>),
}

impl From<PyErr> for Fault {
    #[cold]
    fn from(error: PyErr) -> Self {
        Self::Raised(Box::new(error))
    }
}

/// The bytes are wrong: `what`.
#[cold]
pub fn fault<T>(what: &'static str) -> Result<T, Fault> {
    Err(Fault::Malformed(what))
}

/// Tells an exception that bad bytes caused from one that this process caused.
#[cold]
pub fn judge(py: Python<'_>, error: PyErr, what: &'static str) -> Fault {
    let ours = !error.is_instance_of::<PyException>(py)
        || error.is_instance_of::<PyMemoryError>(py)
        || error.is_instance_of::<PyImportError>(py);
    if ours {
        error.into()
    } else {
        Fault::Malformed(what)
    }
}
