//! Lists and tuples of a known length, filled item by item.
//!
//! The garbage collector does not know a container while it is filled, so Python code that runs
//! meanwhile cannot find a container with holes.

use pyo3::ffi;
use pyo3::prelude::*;

macro_rules! builder {
    ($name:ident, $what:literal, $new:ident, $set:ident) => {
        #[doc = concat!("A `", $what, "` that is being filled.")]
        pub struct $name<'py> {
            object: Bound<'py, PyAny>,
            len: usize,
            filled: usize,
        }

        impl<'py> $name<'py> {
            #[doc = concat!("Room for a `", $what, "` of exactly `len` items.")]
            #[inline]
            pub fn new(py: Python<'py>, len: usize) -> PyResult<Self> {
                // SAFETY: a fresh object, unknown to anyone else; an empty one may be shared by the
                // whole interpreter, so only one with items is taken from the collector's hands.
                let object = unsafe {
                    let object = ffi::$new(len as ffi::Py_ssize_t);
                    let object = Bound::from_owned_ptr_or_err(py, object)?;
                    if len > 0 {
                        ffi::PyObject_GC_UnTrack(object.as_ptr().cast());
                    }
                    object
                };
                Ok(Self {
                    object,
                    len,
                    filled: 0,
                })
            }

            /// Adds the next item.
            ///
            /// # Panics
            /// When it is full already.
            #[inline]
            pub fn push(&mut self, item: Bound<'py, PyAny>) {
                assert!(self.filled < self.len, "more items than room was made for");
                // SAFETY: the slot is inside the object and still empty, the object is ours alone,
                // and the item's reference moves into it.
                unsafe {
                    let at = self.filled as ffi::Py_ssize_t;
                    ffi::$set(self.object.as_ptr(), at, item.into_ptr());
                }
                self.filled += 1;
            }

            /// The finished object.
            ///
            /// # Panics
            /// When items are missing.
            #[inline]
            pub fn finish(self) -> Bound<'py, PyAny> {
                assert!(
                    self.filled == self.len,
                    "fewer items than room was made for"
                );
                if self.len > 0 {
                    // SAFETY: it was untracked in `new` and has no empty slot any more.
                    unsafe { ffi::PyObject_GC_Track(self.object.as_ptr().cast()) };
                }
                self.object
            }
        }
    };
}

builder!(ListBuilder, "list", PyList_New, PyList_SET_ITEM);
builder!(TupleBuilder, "tuple", PyTuple_New, PyTuple_SET_ITEM);
