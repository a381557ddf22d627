//! Text from the bytes of a payload.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::error::{Fault, judge};
use crate::ffi::objects::str_from_utf8;

/// A `str` from MessagePack text.
#[inline]
pub fn text<'py>(py: Python<'py>, bytes: &[u8]) -> Result<Bound<'py, PyString>, Fault> {
    str_from_utf8(py, bytes).map_err(|error| judge(py, error, "text that is not UTF-8"))
}
