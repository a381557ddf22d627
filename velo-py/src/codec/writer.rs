//! Writing a value: it tracks the objects and the depth so far, and gives up the native form if need be.

use std::marker::PhantomData;

use pyo3::prelude::*;

use super::error::Stop;
use super::lookups::Lookups;
use super::marker::MAX_DEPTH;
use super::out::Out;
use super::pickler::Pickled;
use super::seen::Seen;
use crate::ffi::objects::{id, is_shared};

/// From this size on, text or bytes that occur several times are sent once, as pickle does.
const LARGE_LEAF: usize = 4096;

/// Writes one value of any type: the dispatch above, as containers use it. It is a type parameter, not
/// an object, so that the compiler can inline it.
pub trait Encode: Sized {
    /// Writes `obj`.
    fn value<'py, O: Out>(
        writer: &mut Writer<'_, 'py, O, Self>,
        obj: &Bound<'py, PyAny>,
    ) -> Result<(), Stop>;
}

/// One value being written.
pub struct Writer<'a, 'py, O, E> {
    pub lookups: &'a Lookups,
    pub py: Python<'py>,
    pub out: &'a mut O,
    seen: Seen,
    depth: usize,
    /// Counts the objects whose identity may matter; unchanged means that there were only plain
    /// leaves.
    marks: usize,
    pickled: bool,
    dispatch: PhantomData<E>,
}

impl<'a, 'py, O: Out, E: Encode> Writer<'a, 'py, O, E> {
    /// Appends to `out`.
    pub fn new(lookups: &'a Lookups, py: Python<'py>, out: &'a mut O) -> Self {
        Writer {
            lookups,
            py,
            out,
            seen: Seen::default(),
            depth: 0,
            marks: 0,
            pickled: false,
            dispatch: PhantomData,
        }
    }

    /// Writes one value.
    #[inline]
    pub fn value(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        E::value(self, obj)
    }

    /// Pickles the one object of a value that has to be pickled.
    pub fn pickle_part(&mut self, obj: &Bound<'py, PyAny>) -> Result<Pickled<'py>, Stop> {
        if self.depth == 0 || self.pickled {
            return Err(Stop::Whole);
        }
        self.pickled = true;
        self.marks += 1;
        let pickle = self.lookups.pickle.dump_part(obj)?;
        // The objects that the pickle reached must not be written a second time, neither before it
        // nor after it.
        if pickle.reached.iter().any(|&id| self.seen.contains(id)) {
            return Err(Stop::Whole);
        }
        for &id in &pickle.reached {
            self.seen.insert(id);
        }
        Ok(pickle)
    }

    /// Begins a container; `Whole` when it is too deep or occurs a second time.
    #[inline]
    pub fn enter(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        if self.depth == MAX_DEPTH {
            return Err(Stop::Whole);
        }
        self.note(obj)?;
        self.depth += 1;
        Ok(())
    }

    /// Ends the container that [`Writer::enter`] began.
    #[inline]
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Notes an object that is written here and whose identity may matter.
    #[inline]
    pub fn note(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        self.marks += 1;
        // The caller holds references to the outermost object too, of unknown number.
        if (is_shared(obj) || self.depth == 0) && !self.seen.insert(id(obj)) {
            return Err(Stop::Whole);
        }
        Ok(())
    }

    /// Notes text or bytes, if they are large enough to be worth it.
    #[inline(always)]
    pub fn note_leaf(&mut self, obj: &Bound<'py, PyAny>, len: usize) -> Result<(), Stop> {
        if len >= LARGE_LEAF && self.depth > 0 && is_shared(obj) {
            self.note(obj)
        } else {
            Ok(())
        }
    }

    /// Writes an immutable container by `fill`, then forgets it if it holds plain leaves only.
    #[inline]
    pub fn immutable(
        &mut self,
        obj: &Bound<'py, PyAny>,
        fill: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.enter(obj)?;
        let marks = self.marks;
        fill(self)?;
        self.leave();
        if self.marks == marks {
            self.seen.remove(id(obj));
        }
        Ok(())
    }
}
