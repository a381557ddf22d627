//! Taking items from plain iterators: one call of CPython for each.

use pyo3::prelude::*;

/// The next item of a plain iterator.
#[inline]
pub fn next_of<'py>(iterator: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: `iterator` is a live object; the result is a new reference, or NULL at the end or
    // with an error set. PyIter_Next itself must only be called on iterators.
    unsafe {
        let object = iterator.as_ptr();
        if pyo3::ffi::PyIter_Check(object) == 0 {
            return Err(pyo3::exceptions::PyTypeError::new_err(
                "the source is not an iterator",
            ));
        }
        let item = pyo3::ffi::PyIter_Next(object);
        match Bound::from_owned_ptr_or_opt(iterator.py(), item) {
            Some(item) => Ok(Some(item)),
            None => PyErr::take(iterator.py()).map_or(Ok(None), Err),
        }
    }
}
