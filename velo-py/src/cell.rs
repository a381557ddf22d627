//! Interior mutability guarded by the GIL, with a check instead of trust.
//!
//! State that is shared between Python objects lives in a [`GilCell`]. It is entered with the GIL
//! held; while it is entered, anything that comes back to it (another thread while the GIL is
//! released, or Python code that runs in the middle of encoding an event) gets [`Busy`] instead of
//! a second mutable reference.

use std::cell::{Cell, UnsafeCell};
use std::time::Duration;

use pyo3::prelude::*;

use crate::errors::{self, Thrown};

/// The state is in use further up the stack or on another thread.
#[derive(Debug)]
pub struct Busy;

impl From<Busy> for PyErr {
    fn from(_: Busy) -> PyErr {
        errors::busy(
            "this stream is in use by another thread, or from within the encoding of its own event; \
             use one stream from one thread at a time",
        )
    }
}

impl From<Busy> for Thrown {
    fn from(busy: Busy) -> Thrown {
        PyErr::from(busy).into()
    }
}

/// A value that is entered by one caller at a time.
#[derive(Debug, Default)]
pub struct GilCell<T> {
    entered: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: `entered` and `value` are only touched by `with`, whose caller holds the GIL when it
// looks at and sets `entered`. The GIL may be released while the value is entered, and then
// `entered` keeps every other thread out. The value itself may move between threads: `T: Send`.
unsafe impl<T: Send> Sync for GilCell<T> {}

impl<T> GilCell<T> {
    /// A cell that is not entered.
    pub fn new(value: T) -> Self {
        GilCell {
            entered: Cell::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Enters the value.
    #[inline]
    pub fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> Result<R, Busy> {
        if self.entered.replace(true) {
            return Err(Busy);
        }
        let _leave = Leave(&self.entered);
        // SAFETY: `entered` was false and is true now, so this is the only reference until `_leave`
        // is dropped, which happens after the last use of it, also when `f` panics.
        Ok(f(unsafe { &mut *self.value.get() }))
    }
}

impl<T> GilCell<T> {
    /// Enters the value, also when another thread is in it for a moment with the GIL released.
    pub fn wait_with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> Result<R, Busy> {
        for _ in 0..TRIES {
            if !self.entered.get() {
                break;
            }
            py.detach(|| std::thread::sleep(PAUSE));
        }
        self.with(py, f)
    }
}

/// A thread that releases the GIL inside a cell comes back within microseconds.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_micros(50);

struct Leave<'a>(&'a Cell<bool>);

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.set(false);
    }
}
