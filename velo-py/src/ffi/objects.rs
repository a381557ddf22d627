//! Safe wrappers for the few raw CPython calls on which the codec's speed depends.
//!
//! The functions take and return owned references, so that Python code which runs between two calls (a
//! `__reduce__`, a finalizer) cannot free an object. No file here knows the wire format, and no raw
//! pointer leaves this folder.

mod builder;
mod ndarray;

use std::ffi::CStr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{
    PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString,
    PyTuple,
};

use super::references;

pub use builder::{ListBuilder, TupleBuilder};
pub use ndarray::{Array, ArrayLayout, DIMENSIONS_MAX};

/// An object sorted by its exact type; a subclass of one of these types is [`Exact::Other`].
pub enum Exact<'a, 'py> {
    /// `str`
    Str(&'a Bound<'py, PyString>),
    /// `int`, not `bool`
    Int(&'a Bound<'py, PyInt>),
    /// `float`
    Float(&'a Bound<'py, PyFloat>),
    /// `bool`
    Bool(bool),
    /// `None`
    None,
    /// `bytes`
    Bytes(&'a Bound<'py, PyBytes>),
    /// `dict`
    Dict(&'a Bound<'py, PyDict>),
    /// `list`
    List(&'a Bound<'py, PyList>),
    /// `tuple`
    Tuple(&'a Bound<'py, PyTuple>),
    /// `set`
    Set(&'a Bound<'py, PySet>),
    /// `frozenset`
    FrozenSet(&'a Bound<'py, PyFrozenSet>),
    /// `bytearray`
    ByteArray(&'a Bound<'py, PyByteArray>),
    /// `complex`
    Complex(&'a Bound<'py, PyComplex>),
    /// anything else
    Other,
}

/// Sorts `obj` by its exact type, the most frequent types first.
#[inline(always)]
pub fn exact<'a, 'py>(obj: &'a Bound<'py, PyAny>) -> Exact<'a, 'py> {
    let ty = obj.get_type_ptr().cast_const();
    macro_rules! is {
        ($name:ident) => {
            std::ptr::eq(ty, &raw const ffi::$name)
        };
    }
    // SAFETY: every cast is to the type whose address `ty` was just found to be; the addresses of
    // the static type objects are only compared, never read through.
    unsafe {
        if is!(PyUnicode_Type) {
            Exact::Str(obj.cast_unchecked())
        } else if is!(PyLong_Type) {
            Exact::Int(obj.cast_unchecked())
        } else if is!(PyFloat_Type) {
            Exact::Float(obj.cast_unchecked())
        } else if is!(PyBytes_Type) {
            Exact::Bytes(obj.cast_unchecked())
        } else if is!(PyBool_Type) {
            Exact::Bool(std::ptr::eq(obj.as_ptr(), ffi::Py_True()))
        } else if std::ptr::eq(obj.as_ptr(), ffi::Py_None()) {
            Exact::None
        } else if is!(PyDict_Type) {
            Exact::Dict(obj.cast_unchecked())
        } else if is!(PyList_Type) {
            Exact::List(obj.cast_unchecked())
        } else if is!(PyTuple_Type) {
            Exact::Tuple(obj.cast_unchecked())
        } else if is!(PySet_Type) {
            Exact::Set(obj.cast_unchecked())
        } else if is!(PyFrozenSet_Type) {
            Exact::FrozenSet(obj.cast_unchecked())
        } else if is!(PyByteArray_Type) {
            Exact::ByteArray(obj.cast_unchecked())
        } else if is!(PyComplex_Type) {
            Exact::Complex(obj.cast_unchecked())
        } else {
            Exact::Other
        }
    }
}

/// The number that `id(obj)` gives.
#[inline(always)]
pub fn id(obj: &Bound<'_, PyAny>) -> usize {
    obj.as_ptr() as usize
}

/// Whether there may be references to the object besides `obj` itself and one container.
#[inline(always)]
pub fn is_shared(obj: &Bound<'_, PyAny>) -> bool {
    references::count(obj.as_unbound()) > 2
}

/// The type's name as its C definition has it: `numpy.ndarray`, but only `Point` for a Python
/// class.
#[inline]
pub fn c_type_name<'a>(obj: &'a Bound<'_, PyAny>) -> &'a CStr {
    // SAFETY: a live object keeps its type alive, and `tp_name` of a ready type is a C string.
    unsafe { CStr::from_ptr((*obj.get_type_ptr()).tp_name) }
}

/// The UTF-8 form of a `str`, or `None` when it holds lone surrogates.
#[inline(always)]
pub fn utf8<'a>(text: &'a Bound<'_, PyString>) -> Option<&'a [u8]> {
    let object = text.as_ptr();
    // SAFETY: `text` is a `str`, and the address behind its smallest header is only compared with.
    // Only the characters of compact ASCII text begin there: they are its UTF-8, one byte each, and lie
    // there for as long as the text lives, which `text` keeps alive for 'a.
    unsafe {
        let data = ffi::PyUnicode_DATA(object).cast::<u8>();
        if data == object.cast::<ffi::PyASCIIObject>().wrapping_add(1).cast() {
            let len = ffi::PyUnicode_GET_LENGTH(object) as usize;
            return Some(std::slice::from_raw_parts(data, len));
        }
    }
    let mut len = 0;
    // SAFETY: `text` is a `str`; `len` outlives the call.
    let data = unsafe { ffi::PyUnicode_AsUTF8AndSize(text.as_ptr(), &mut len) };
    if data.is_null() {
        // SAFETY: the interpreter is attached, and the error of the call above is ours to drop.
        unsafe { ffi::PyErr_Clear() };
        return None;
    }
    // SAFETY: the bytes belong to the immutable `str`, which `text` keeps alive for 'a.
    Some(unsafe { std::slice::from_raw_parts(data.cast(), len as usize) })
}

/// A `str` from UTF-8. The bytes are copied before they are checked, so that another process that
/// writes to them at the same time cannot get bad text past the check.
#[inline]
pub fn str_from_utf8<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    let len = bytes.len() as ffi::Py_ssize_t;
    if !bytes.is_empty() && bytes.is_ascii() {
        // SAFETY: a new compact ASCII string of `len` characters has `len` bytes of room after its
        // header, and nobody else has seen the object yet.
        unsafe {
            let text = Bound::from_owned_ptr_or_err(py, ffi::PyUnicode_New(len, 127))?;
            let room = ffi::PyUnicode_DATA(text.as_ptr()).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), room, bytes.len());
            if std::slice::from_raw_parts(room, bytes.len()).is_ascii() {
                return Ok(text.cast_into_unchecked());
            }
            std::ptr::write_bytes(room, b'?', bytes.len());
        }
    }
    // SAFETY: `bytes` is valid for its length; a null error handler means `strict`.
    unsafe {
        let text = ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), len, std::ptr::null());
        Ok(Bound::from_owned_ptr_or_err(py, text)?.cast_into_unchecked())
    }
}

/// A 64-bit reading of an `int`.
pub enum Int64 {
    /// It fits `i64`.
    Signed(i64),
    /// It fits only `u64`.
    Unsigned(u64),
    /// It fits neither.
    Big,
}

/// Reads an `int` that may or may not fit 64 bits.
#[inline(always)]
pub fn int64(value: &Bound<'_, PyInt>) -> Int64 {
    let mut overflow = 0;
    // SAFETY: `value` is an `int`, so the call can only report overflow, through `overflow`.
    let signed = unsafe { ffi::PyLong_AsLongLongAndOverflow(value.as_ptr(), &mut overflow) };
    match overflow {
        0 => Int64::Signed(signed),
        1 => unsigned64(value),
        _ => Int64::Big,
    }
}

#[cold]
fn unsigned64(value: &Bound<'_, PyInt>) -> Int64 {
    value.extract::<u64>().map_or(Int64::Big, Int64::Unsigned)
}

/// The number of items in a `list` now.
#[inline(always)]
pub fn list_len(list: &Bound<'_, PyList>) -> usize {
    // SAFETY: `list` is a live `list`.
    unsafe { ffi::PyList_GET_SIZE(list.as_ptr()) as usize }
}

/// Item `index` of a `list`, or `None` past its end as it is now.
#[inline(always)]
pub fn list_get<'py>(list: &Bound<'py, PyList>, index: usize) -> Option<Bound<'py, PyAny>> {
    if index >= list_len(list) {
        return None;
    }
    // SAFETY: the index was just checked; the borrowed item gets a reference of its own at once. An
    // item is null only in a list that is still being filled, which is read as its end.
    unsafe {
        let item = ffi::PyList_GET_ITEM(list.as_ptr(), index as ffi::Py_ssize_t);
        Bound::from_borrowed_ptr_or_opt(list.py(), item)
    }
}

/// The next entry of a `dict`; `cursor` starts at 0 and belongs to this call.
#[inline(always)]
pub fn dict_next<'py>(
    dict: &Bound<'py, PyDict>,
    cursor: &mut isize,
) -> Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: `dict` is a live `dict`; the call checks the cursor against the table as it is now,
    // so a `dict` that changed yields other entries or an end. Both borrowed references become
    // owned at once.
    unsafe {
        if ffi::PyDict_Next(dict.as_ptr(), cursor, &mut key, &mut value) == 0 {
            return None;
        }
        let py = dict.py();
        Some((
            Bound::from_borrowed_ptr(py, key),
            Bound::from_borrowed_ptr(py, value),
        ))
    }
}

/// Copies a `bytearray` of exactly `to.len()` bytes; `false`, and nothing copied, when its length
/// differs.
pub fn copy_bytearray(from: &Bound<'_, PyByteArray>, to: &mut [u8]) -> bool {
    // SAFETY: no Python code runs between taking the slice and the end of the copy.
    let from = unsafe { from.as_bytes() };
    if from.len() != to.len() {
        return false;
    }
    to.copy_from_slice(from);
    true
}
