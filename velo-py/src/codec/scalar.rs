//! `None`, `bool`, `int`, `float` and `complex`.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyComplex, PyDict, PyFloat, PyInt};

use super::error::{Fault, Stop, fault};
use super::marker::{self, ext};
use super::out::{Out, put_ext};
use crate::ffi::objects::{Int64, int64};

#[inline(always)]
pub fn put_none<O: Out>(out: &mut O) -> Result<(), Stop> {
    Ok(out.put_u8(marker::NIL)?)
}

#[inline(always)]
pub fn put_bool<O: Out>(out: &mut O, value: bool) -> Result<(), Stop> {
    Ok(out.put_u8(if value { marker::TRUE } else { marker::FALSE })?)
}

#[inline(always)]
pub fn put_float<O: Out>(out: &mut O, value: &Bound<'_, PyFloat>) -> Result<(), Stop> {
    Ok(out.put_marked(marker::FLOAT64, value.value().to_bits().to_be_bytes())?)
}

#[inline(always)]
pub fn put_int<O: Out>(out: &mut O, value: &Bound<'_, PyInt>) -> Result<(), Stop> {
    match int64(value) {
        Int64::Signed(small @ -32..=0x7f) => out.put_u8(small as u8)?,
        Int64::Signed(value) if value > 0 => put_unsigned(out, value as u64)?,
        Int64::Signed(value) => put_negative(out, value)?,
        Int64::Unsigned(value) => put_unsigned(out, value)?,
        Int64::Big => put_big(out, value)?,
    }
    Ok(())
}

fn put_unsigned<O: Out>(out: &mut O, value: u64) -> Result<(), Stop> {
    if let Ok(value) = u8::try_from(value) {
        out.put_marked(marker::UINT8, [value])?;
    } else if let Ok(value) = u16::try_from(value) {
        out.put_marked(marker::UINT16, value.to_be_bytes())?;
    } else if let Ok(value) = u32::try_from(value) {
        out.put_marked(marker::UINT32, value.to_be_bytes())?;
    } else {
        out.put_marked(marker::UINT64, value.to_be_bytes())?;
    }
    Ok(())
}

fn put_negative<O: Out>(out: &mut O, value: i64) -> Result<(), Stop> {
    if let Ok(value) = i8::try_from(value) {
        out.put_marked(marker::INT8, value.to_be_bytes())?;
    } else if let Ok(value) = i16::try_from(value) {
        out.put_marked(marker::INT16, value.to_be_bytes())?;
    } else if let Ok(value) = i32::try_from(value) {
        out.put_marked(marker::INT32, value.to_be_bytes())?;
    } else {
        out.put_marked(marker::INT64, value.to_be_bytes())?;
    }
    Ok(())
}

#[cold]
fn put_big<O: Out>(out: &mut O, value: &Bound<'_, PyInt>) -> Result<(), Stop> {
    let py = value.py();
    let bits: usize = value.call_method0(intern!(py, "bit_length"))?.extract()?;
    let signed = PyDict::new(py);
    signed.set_item(intern!(py, "signed"), true)?;
    let args = (bits / 8 + 1, intern!(py, "little"));
    let bytes = value.call_method(intern!(py, "to_bytes"), args, Some(&signed))?;
    put_ext(
        out,
        ext::BIG_INT,
        bytes.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes(),
    )
}

/// An `int` from extension [`ext::BIG_INT`].
pub fn big_int<'py>(py: Python<'py>, bytes: &[u8]) -> Result<Bound<'py, PyAny>, Fault> {
    let signed = PyDict::new(py);
    signed.set_item(intern!(py, "signed"), true)?;
    let args = (PyBytes::new(py, bytes), intern!(py, "little"));
    Ok(py
        .get_type::<PyInt>()
        .call_method(intern!(py, "from_bytes"), args, Some(&signed))?)
}

pub fn put_complex<O: Out>(out: &mut O, value: &Bound<'_, PyComplex>) -> Result<(), Stop> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&value.real().to_bits().to_le_bytes());
    bytes[8..].copy_from_slice(&value.imag().to_bits().to_le_bytes());
    put_ext(out, ext::COMPLEX, &bytes)
}

/// A `complex` from extension [`ext::COMPLEX`].
pub fn complex<'py>(py: Python<'py>, bytes: &[u8]) -> Result<Bound<'py, PyAny>, Fault> {
    let Ok(bytes) = <[u8; 16]>::try_from(bytes) else {
        return fault("complex of a wrong length");
    };
    let [real, imag] = [0, 8].map(|at| {
        let mut part = [0; 8];
        part.copy_from_slice(&bytes[at..at + 8]);
        f64::from_bits(u64::from_le_bytes(part))
    });
    Ok(PyComplex::from_doubles(py, real, imag).into_any())
}
