//! Walking a value and writing it: which type goes which way, and when to give up the native form.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::error::{EncodeError, Stop};
use super::out::Out;
use super::seen::Seen;
use super::{Codec, MAX_DEPTH, array, container, path, pickle, scalar, text, time};
use crate::ffi::objects::{Exact, exact, id, is_shared};

/// From this size on, text or bytes that are held in several places are sent once, as pickle does.
const LARGE_LEAF: usize = 4096;

/// One value being written.
pub struct Encoder<'a, 'py, O> {
    pub codec: &'a Codec,
    pub py: Python<'py>,
    pub out: &'a mut O,
    seen: Seen,
    depth: usize,
    /// Grows with every object whose identity may matter; unchanged means that only plain leaves
    /// were met.
    marks: usize,
    pickled: bool,
}

/// Appends `obj`: natively where that keeps everything, else by one pickle.
pub fn encode<'py, O: Out>(
    codec: &Codec,
    obj: &Bound<'py, PyAny>,
    out: &mut O,
) -> Result<(), EncodeError> {
    let start = out.position();
    let result = match exact(obj) {
        // What is nothing but bytes needs none of what is kept for a walk.
        Exact::Bytes(bytes) => text::put_plain_bytes(out, bytes.as_bytes()),
        _ => Encoder::new(codec, obj.py(), out).value(obj),
    };
    let result = match result {
        Err(Stop::Whole) => {
            out.rewind(start);
            pickle::put_whole(codec, obj, out)
        }
        result => result,
    };
    match result {
        Ok(()) => Ok(()),
        Err(Stop::Full(full)) => Err(EncodeError::Overflow {
            at_least: full.at_least - start,
        }),
        Err(Stop::Raised(error)) => Err(EncodeError::Python(*error)),
        Err(Stop::Refused(error)) => Err(EncodeError::Python(path::explain(
            &codec.pickle,
            obj,
            *error,
        ))),
        Err(Stop::Whole) => unreachable!("a pickle carries any value"),
    }
}

impl<'a, 'py, O: Out> Encoder<'a, 'py, O> {
    fn new(codec: &'a Codec, py: Python<'py>, out: &'a mut O) -> Self {
        Encoder {
            codec,
            py,
            out,
            seen: Seen::default(),
            depth: 0,
            marks: 0,
            pickled: false,
        }
    }

    /// Writes one value.
    #[inline]
    pub fn value(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        match exact(obj) {
            Exact::Str(text) => text::put_str(self, text),
            Exact::Int(int) => scalar::put_int(self.out, int),
            Exact::Float(float) => scalar::put_float(self.out, float),
            Exact::Bytes(bytes) => text::put_bytes(self, bytes),
            Exact::Bool(value) => scalar::put_bool(self.out, value),
            Exact::None => scalar::put_none(self.out),
            Exact::Dict(dict) => container::put_dict(self, dict),
            Exact::List(list) => container::put_list(self, list),
            Exact::Tuple(tuple) => container::put_tuple(self, tuple),
            Exact::Set(set) => container::put_set(self, set),
            Exact::FrozenSet(set) => container::put_frozenset(self, set),
            Exact::ByteArray(bytes) => text::put_bytearray(self, bytes),
            Exact::Complex(complex) => scalar::put_complex(self.out, complex),
            Exact::Other => self.other(obj),
        }
    }

    #[inline(never)]
    fn other(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        if time::put(self, obj)? || array::put(self, obj)? {
            return Ok(());
        }
        self.pickled(obj)
    }

    /// Writes the one object of a value that has to be pickled.
    fn pickled(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        if self.depth == 0 || self.pickled {
            return Err(Stop::Whole);
        }
        self.pickled = true;
        self.marks += 1;
        let pickle = self.codec.pickle.dump_part(obj)?;
        // What the pickle reached must not be written a second time, neither before it nor after
        // it.
        if pickle.reached.iter().any(|&id| self.seen.contains(id)) {
            return Err(Stop::Whole);
        }
        for &id in &pickle.reached {
            self.seen.insert(id);
        }
        pickle.put(self.out)
    }

    /// Begins a container; `Whole` when it is too deep or was met before.
    #[inline]
    pub fn enter(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        if self.depth == MAX_DEPTH {
            return Err(Stop::Whole);
        }
        self.note(obj)?;
        self.depth += 1;
        Ok(())
    }

    /// Ends what [`Encoder::enter`] began.
    #[inline]
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Notes an object that is written here and whose identity may matter.
    #[inline]
    pub fn note(&mut self, obj: &Bound<'py, PyAny>) -> Result<(), Stop> {
        self.marks += 1;
        // The outermost object is held by the caller as well, who knows how often.
        if (is_shared(obj) || self.depth == 0) && !self.seen.insert(id(obj)) {
            return Err(Stop::Whole);
        }
        Ok(())
    }

    /// Notes text or bytes, which are worth it only when they are large.
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

/// The error for an object that was changed by Python code that ran while it was being written.
#[cold]
pub fn changed(what: &str) -> Stop {
    PyRuntimeError::new_err(format!("a `{what}` was changed while it was being sent")).into()
}
