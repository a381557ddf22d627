//! The errors of encoding and decoding, one type per operation.

use pyo3::exceptions::{PyException, PyImportError, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use thiserror::Error;

/// The value does not fit the memory that it should go to.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the value needs at least `{at_least}` bytes")]
pub struct Overflow {
    /// A lower bound of the needed bytes, counted from the start of the value. The value may be
    /// larger, so the next attempt should grow the room by a factor as well.
    pub at_least: usize,
}

/// The reason why a value was not encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The value does not fit; encode it again into more room.
    #[error("the value needs at least `{at_least}` bytes")]
    Overflow {
        /// See [`Overflow::at_least`].
        at_least: usize,
    },
    /// The exception to raise: a `TypeError` that names the path to the part that cannot be pickled,
    /// or an exception of the value's own methods.
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

/// The reason why bytes were not decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The bytes are no encoded value: their writer is broken.
    #[error("not an encoded value: {what} at byte `{at}`")]
    Malformed {
        /// The fault, in words.
        what: &'static str,
        /// The place of the fault, counted from the start of the payload.
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

/// The reason to give up the native form of a value while it is written.
pub enum Stop {
    /// No more room.
    Full(Overflow),
    /// The value holds identities that only one pickle of the whole value keeps.
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

/// A fault of the bytes.
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
