//! Reading a payload: bounds and budgets.
//!
//! The reader compares every length with the rest of the payload before it allocates memory, and all
//! containers together may not announce more items than there are bytes left. So a payload costs
//! memory in proportion to its real size, whatever lengths it announces.

use std::marker::PhantomData;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use super::error::{Fault, fault, judge};
use super::lookups::Lookups;
use super::marker::MAX_DEPTH;
use super::memory::Memory;
use super::recent_keys;
use super::utf8;
use crate::cell::Busy;

/// Reads one value of any type: the dispatch above, as containers use it. It is a type parameter, not
/// an object, so that the compiler can inline it.
pub trait Decode: Sized {
    /// The next value.
    fn value<'py>(reader: &mut Reader<'_, 'py, Self>) -> Result<Bound<'py, PyAny>, Fault>;
}

/// One payload being read.
pub struct Reader<'a, 'py, D> {
    pub lookups: &'a Lookups,
    pub py: Python<'py>,
    payload: &'a [u8],
    at: usize,
    depth: usize,
    /// The values that open containers still wait for; each takes at least one byte.
    owed: usize,
    /// Set by the first pickle, whose objects may raise any exception from then on.
    pub unpickled: bool,
    /// Whether pickles are read at all: they run code.
    trusted: bool,
    pub memory: &'a mut dyn Memory,
    dispatch: PhantomData<D>,
}

impl<'a, 'py, D: Decode> Reader<'a, 'py, D> {
    /// Begins with the first byte of `payload`.
    pub fn new(
        lookups: &'a Lookups,
        py: Python<'py>,
        payload: &'a [u8],
        memory: &'a mut dyn Memory,
        trusted: bool,
    ) -> Self {
        Reader {
            lookups,
            py,
            payload,
            at: 0,
            depth: 0,
            owed: 0,
            unpickled: false,
            trusted,
            memory,
            dispatch: PhantomData,
        }
    }

    /// Refuses a pickle, unless its writer is trusted. The error's second argument is the pickle, so that
    /// its caller can say which names it would import.
    pub fn may_unpickle(&mut self, pickle: &[u8]) -> Result<(), Fault> {
        self.unpickled = true;
        if self.trusted {
            return Ok(());
        }
        let pickle = PyBytes::new(self.py, pickle).unbind();
        Err(PyValueError::new_err(("it holds a pickle, which runs code", pickle)).into())
    }

    /// The number of bytes that were read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The number of bytes that are left.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.payload.len() - self.at
    }

    /// The next byte.
    #[inline(always)]
    pub fn u8(&mut self) -> Result<u8, Fault> {
        match self.payload.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                Ok(byte)
            }
            None => fault("an end in the middle"),
        }
    }

    /// The next `N` bytes.
    #[inline(always)]
    pub fn bytes<const N: usize>(&mut self) -> Result<&'a [u8; N], Fault> {
        match self.payload[self.at..].first_chunk() {
            Some(bytes) => {
                self.at += N;
                Ok(bytes)
            }
            None => fault("an end in the middle"),
        }
    }

    /// The next `len` bytes.
    #[inline(always)]
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        match self.payload[self.at..].get(..len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => fault("a length beyond the end"),
        }
    }

    /// The next eight bytes, little-endian, as a length in memory.
    pub fn len64(&mut self) -> Result<usize, Fault> {
        match usize::try_from(u64::from_le_bytes(*self.bytes()?)) {
            Ok(len) => Ok(len),
            Err(_) => fault("a length beyond the end"),
        }
    }

    /// The next `len` bytes as an object that exports them, and whether it is a view of shared memory.
    /// The receiver of a copy may write to it.
    pub fn buffer(&mut self, len: usize) -> Result<(Bound<'py, PyAny>, bool), Fault> {
        let bytes = self.slice(len)?;
        if (!bytes.is_empty() || self.memory.is_private())
            && let Some(view) = self.memory.view(self.py, bytes)?
        {
            return Ok((view, !self.memory.is_private()));
        }
        Ok((PyByteArray::new(self.py, bytes).into_any(), false))
    }

    /// Begins a container of `items` values.
    #[inline]
    pub fn enter(&mut self, items: usize) -> Result<(), Fault> {
        if self.depth == MAX_DEPTH {
            return fault("containers nested too deeply");
        }
        if self.owed.saturating_add(items) > self.left() {
            return fault("more items than bytes");
        }
        self.depth += 1;
        self.owed += items;
        Ok(())
    }

    /// Ends the container that [`Reader::enter`] began.
    #[inline]
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// The next value of a container.
    #[inline]
    pub fn item(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        self.owed -= 1;
        self.value()
    }

    /// The next value of a dict that is a key: short text is looked up among recent keys.
    #[inline]
    pub fn key(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        self.owed -= 1;
        match self.payload.get(self.at) {
            Some(&head @ 0xa1..=0xbf) => {
                self.at += 1;
                let bytes = self.slice(usize::from(head & 0x1f))?;
                Ok(self.short_key(bytes)?.into_any())
            }
            _ => self.value(),
        }
    }

    fn short_key(&mut self, bytes: &[u8]) -> Result<Bound<'py, PyString>, Fault> {
        const { assert!(recent_keys::MAX_LEN >= 0x1f) };
        let kept = self
            .lookups
            .keys
            .with(self.py, |keys| keys.get(self.py, bytes));
        kept.unwrap_or_else(|Busy| utf8::text(self.py, bytes))
    }

    /// The error for an object that its container refused. Pickled objects may cause that for any
    /// reason.
    #[cold]
    pub fn unusable(&self, error: PyErr, what: &'static str) -> Fault {
        if self.unpickled {
            error.into()
        } else {
            judge(self.py, error, what)
        }
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        D::value(self)
    }

    /// A big-endian length of 8, 16 or 32 bits.
    #[inline(always)]
    pub fn len(&mut self, size: u8) -> Result<usize, Fault> {
        Ok(match size {
            0 => usize::from(self.u8()?),
            1 => usize::from(u16::from_be_bytes(*self.bytes()?)),
            _ => u32::from_be_bytes(*self.bytes()?) as usize,
        })
    }
}
