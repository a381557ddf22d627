//! Arrays on loan: filled in shared memory, so that sending them copies nothing.
//!
//! The array that a user fills has a [`LoanMemory`] below it. When an event is encoded, buffers that
//! lie in a loan are named instead of written ([`Lending`]); once the event is accepted, the array
//! is [sealed](seal), because the function reads the same memory.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};
use velo_shm::{Loan, Part, Producer};

use crate::codec::{self, ArraySpec, EncodeError, Out, Overflow, VecOut};
use crate::ffi::buffer::fill_buffer;

/// The memory of an array on loan. It is lent again when the last reference to this is gone, and the
/// function has released it as well.
#[pyclass(frozen, module = "velo._core")]
pub struct LoanMemory {
    loan: Arc<Loan>,
}

/// The lent array, which is found again from a part of it.
struct Borrower {
    array: Py<PyWeakrefReference>,
    sent: AtomicBool,
}

fn borrower(loan: &Loan) -> Option<&Borrower> {
    loan.tag().get()?.downcast_ref()
}

#[pymethods]
impl LoanMemory {
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let loan = &slf.get().loan;
        let sent = borrower(loan).is_some_and(|borrower| borrower.sent.load(Relaxed));
        if sent && flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err(
                "an array that was sent in place is read-only; copy it to change it",
            ));
        }
        // SAFETY: CPython passes a valid `view`; the loan is `len` bytes of memory that stay as long
        // as `slf`.
        unsafe { fill_buffer(&slf, view, flags, loan.start().as_ptr(), loan.len(), sent) }
    }

    fn __len__(&self) -> usize {
        self.loan.len()
    }
}

/// The array that a loan is for.
pub fn array(py: Python<'_>, loan: Arc<Loan>, spec: &ArraySpec) -> PyResult<Py<PyAny>> {
    let memory = Bound::new(py, LoanMemory { loan: loan.clone() })?;
    let array = spec.over(py, memory.as_any())?;
    let borrower = Borrower {
        array: PyWeakrefReference::new(array.bind(py))?.unbind(),
        sent: AtomicBool::new(false),
    };
    let _ = loan.tag().set(Box::new(borrower)); // it is new
    Ok(array)
}

/// An event that names these parts was accepted: makes their arrays read-only.
pub fn seal(py: Python<'_>, parts: &[Part]) -> PyResult<()> {
    for borrower in parts.iter().filter_map(|part| borrower(part.loan())) {
        borrower.sent.store(true, Relaxed);
        if let Some(array) = borrower.array.bind(py).upgrade() {
            codec::seal(&array)?;
        }
    }
    Ok(())
}

/// An encoded value, and the parts of loans that it names.
#[derive(Default)]
pub struct Encoded {
    pub bytes: Vec<u8>,
    pub parts: Vec<Part>,
}

impl Encoded {
    /// Encodes `value` for this producer.
    pub fn new(
        codec: &codec::Codec,
        value: &Bound<'_, PyAny>,
        producer: &Producer,
    ) -> Result<Self, EncodeError> {
        let mut out = Lending {
            out: VecOut::default(),
            parts: Vec::new(),
            producer,
        };
        codec.encode(value.py(), value, &mut out)?;
        Ok(Encoded {
            bytes: out.out.into_vec(),
            parts: out.parts.into_iter().map(|(_, part)| part).collect(),
        })
    }
}

/// Buffers from this size on are lent; smaller ones are cheaper to copy.
pub const LEND_FROM: usize = 16 << 10;

/// Bytes, but what lies in a loan of the producer is named.
struct Lending<'a> {
    out: VecOut,
    /// With the position at which each is named.
    parts: Vec<(usize, Part)>,
    producer: &'a Producer,
}

impl Out for Lending<'_> {
    fn position(&self) -> usize {
        self.out.position()
    }

    fn rewind(&mut self, position: usize) {
        self.parts.retain(|&(named, _)| named < position);
        self.out.rewind(position);
    }

    fn reserve(&mut self, len: usize) -> Result<&mut [u8], Overflow> {
        self.out.reserve(len)
    }

    fn padding(&self, ahead: usize) -> usize {
        self.out.padding(ahead)
    }

    fn lend(&mut self, start: *const u8, len: usize) -> Option<u32> {
        if len < LEND_FROM {
            return None;
        }
        let part = self.producer.part(start, len)?;
        let number = u32::try_from(self.parts.len()).ok()?;
        self.parts.push((self.out.position(), part));
        Some(number)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        self.out.put(bytes)
    }
}
