//! NumPy arrays and scalars.
//!
//! The bytes after `c1 04`, with little-endian numbers:
//!
//! | part | bytes |
//! | --- | --- |
//! | flags | `u8`: bit 0 says that the dtype is pickled, bit 1 Fortran order |
//! | dtype | length `u32`, then its name (`<f4`) or pickle |
//! | shape | number of dimensions `u8`, then each as `u64` |
//! | items | a buffer, see `pickle.rs` |
//!
//! A scalar is the length of a dtype's name as `u8`,
//! the name, and the item. Only arrays of exactly `numpy.ndarray` without object items have this
//! form; an array that is not contiguous is written in C order. A decoded array is read-only if its
//! items are a view of shared memory; if they are a copy, its receiver may write to it.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::dtype::{Known, Numpy};
use super::error::{Fault, Stop, changed, fault, judge};
use super::lookups::Lookups;
use super::marker::{self, ext, own};
use super::out::{ALIGN, Out, put_ext};
use super::pickle::{buffer, put_buffer};
use super::reader::{Decode, Reader};
use super::writer::{Encode, Writer};
use crate::ffi::objects::{Array, DIMENSIONS_MAX, c_type_name};

/// A flag: the dtype is a pickle.
pub const PICKLED_DTYPE: u8 = 1;
const FORTRAN: u8 = 2;

/// NumPy, if `obj` is of one of its types.
fn numpy_of<'a>(lookups: &'a Lookups, obj: &Bound<'_, PyAny>) -> PyResult<Option<&'a Numpy>> {
    if !c_type_name(obj).to_bytes().starts_with(b"numpy.") {
        return Ok(None);
    }
    lookups.numpy.loaded(obj.py())
}

/// An upper bound for an array that is written natively.
pub fn size_hint(lookups: &Lookups, obj: &Bound<'_, PyAny>) -> Option<usize> {
    let numpy = numpy_of(lookups, obj).ok()??;
    let array = numpy.open(obj)?;
    let form = numpy.form(&lookups.pickle, &array.dtype()).ok()?;
    let (Known::Name(dtype) | Known::Pickle(dtype)) = &form.known else {
        return None;
    };
    let head = 2 + 1 + 4 + dtype.len() + 1 + 8 * array.shape().len() + 9 + ALIGN;
    Some(head + bytes_of(&array.shape(), form.item))
}

/// The memory of the items of an array that is written natively, if they lie one after the other.
pub fn items(lookups: &Lookups, obj: &Bound<'_, PyAny>) -> Option<(*const u8, usize)> {
    let numpy = numpy_of(lookups, obj).ok()??;
    let array = numpy.open(obj)?;
    let form = numpy.form(&lookups.pickle, &array.dtype()).ok()?;
    let start = array.contiguous()?;
    (!matches!(form.known, Known::No)).then(|| (start, bytes_of(&array.shape(), form.item)))
}

/// The size of all items together; NumPy has made sure that it does not overflow.
fn bytes_of(shape: &[isize], item: usize) -> usize {
    shape.iter().product::<isize>() as usize * item
}

/// Writes `obj` if it is an array or a scalar of NumPy that has a native form.
pub fn put<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    obj: &Bound<'py, PyAny>,
) -> Result<bool, Stop> {
    let lookups = encoder.lookups;
    let Some(numpy) = numpy_of(lookups, obj)? else {
        return Ok(false);
    };
    match numpy.open(obj) {
        Some(array) => put_array(encoder, numpy, obj, &array),
        None if numpy.is_scalar(obj)? => put_scalar(encoder, numpy, obj),
        None => Ok(false),
    }
}

fn put_array<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    numpy: &Numpy,
    obj: &Bound<'py, PyAny>,
    array: &Array<'_, 'py>,
) -> Result<bool, Stop> {
    let form = numpy.form(&encoder.lookups.pickle, &array.dtype())?;
    let (flag, dtype) = match &form.known {
        Known::Name(name) => (0, name),
        Known::Pickle(pickle) => (PICKLED_DTYPE, pickle),
        Known::No => return Ok(false),
    };
    let Ok(dtype_len) = u32::try_from(dtype.len()) else {
        return Ok(false);
    };
    // Looking at the dtype ran Python code; nothing from here to the copy does.
    if !array.dtype().is(&form.dtype) {
        return Err(changed("numpy.ndarray"));
    }
    encoder.note(obj)?;
    let order = if array.is_f_contiguous() && !array.is_c_contiguous() {
        FORTRAN
    } else {
        0
    };
    let shape = array.shape();
    let out = &mut *encoder.out;
    out.put(&[marker::OWN, own::ARRAY, flag | order])?;
    out.put(&dtype_len.to_le_bytes())?;
    out.put(dtype)?;
    out.put_u8(shape.len() as u8)?;
    for &len in shape.iter() {
        out.put(&(len as u64).to_le_bytes())?;
    }
    let len = bytes_of(&shape, form.item);
    put_buffer(out, array.contiguous(), len, |room| {
        array.copy_to(form.item, room);
        Ok(())
    })?;
    Ok(true)
}

fn put_scalar<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    numpy: &Numpy,
    obj: &Bound<'py, PyAny>,
) -> Result<bool, Stop> {
    let py = encoder.py;
    let form = numpy.form(&encoder.lookups.pickle, &obj.getattr(intern!(py, "dtype"))?)?;
    let Known::Name(name) = &form.known else {
        return Ok(false);
    };
    if !form.has_scalars || !obj.get_type().is(&form.scalar) {
        return Ok(false);
    }
    let item = obj.call_method0(intern!(py, "tobytes"))?;
    let item = item.cast::<PyBytes>().map_err(PyErr::from)?;
    let bytes = [&[name.len() as u8], &**name, item.as_bytes()].concat();
    put_ext(encoder.out, ext::NUMPY_SCALAR, &bytes)?;
    Ok(true)
}

/// The array that follows.
pub fn array<'py, D: Decode>(decoder: &mut Reader<'_, 'py, D>) -> Result<Bound<'py, PyAny>, Fault> {
    let py = decoder.py;
    let lookups = decoder.lookups;
    let flags = decoder.u8()?;
    let dtype_len = u32::from_le_bytes(*decoder.bytes()?) as usize;
    let dtype = decoder.slice(dtype_len)?;
    let dimensions = usize::from(decoder.u8()?);
    if flags > PICKLED_DTYPE | FORTRAN || dimensions > DIMENSIONS_MAX {
        return fault("an array of an unknown form");
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        shape.push(decoder.len64()?);
    }
    let numpy = lookups.numpy.import(py)?;
    let form = if flags & PICKLED_DTYPE == 0 {
        numpy.named(py, dtype)?
    } else {
        decoder.may_unpickle(dtype)?;
        numpy.unpickled(&lookups.pickle, py, dtype)?
    };
    let buffer = buffer(decoder)?;
    let is_empty = shape.contains(&0);
    let items = if is_empty {
        Some(0)
    } else {
        shape
            .iter()
            .try_fold(1, |n: usize, &len| n.checked_mul(len))
    };
    if items.and_then(|items| items.checked_mul(form.item)) != Some(buffer.len) {
        return fault("an array of another size than its shape");
    }
    let order = if flags & FORTRAN == 0 {
        intern!(py, "C")
    } else {
        intern!(py, "F")
    };
    let args = (
        PyTuple::new(py, shape)?,
        &form.dtype,
        buffer.object,
        0,
        py.None(),
        order,
    );
    let array = numpy.ndarray.bind(py).call1(args);
    let array = array.map_err(|error| judge(py, error, "an array that cannot be"))?;
    if buffer.shared && numpy.open(&array).is_none_or(|array| array.is_writeable()) {
        seal(&array)?;
    }
    Ok(array)
}

/// A scalar from extension [`ext::NUMPY_SCALAR`].
pub fn scalar<'py, D: Decode>(
    decoder: &Reader<'_, 'py, D>,
    bytes: &[u8],
) -> Result<Bound<'py, PyAny>, Fault> {
    let py = decoder.py;
    let Some((&len, rest)) = bytes.split_first() else {
        return fault("a scalar without a dtype");
    };
    let Some((name, item)) = rest.split_at_checked(usize::from(len)) else {
        return fault("a scalar without a dtype");
    };
    let numpy = decoder.lookups.numpy.import(py)?;
    let form = numpy.named(py, name)?;
    if item.len() != form.item || !form.has_scalars {
        return fault("a scalar of another size than its dtype");
    }
    let scalar = numpy
        .scalar
        .bind(py)
        .call1((&form.dtype, PyBytes::new(py, item)));
    scalar.map_err(|error| judge(py, error, "a scalar that cannot be"))
}

/// Makes an array read-only.
pub fn seal(array: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = array.py();
    let options = PyDict::new(py);
    options.set_item(intern!(py, "write"), false)?;
    array
        .call_method(intern!(py, "setflags"), (), Some(&options))
        .map(drop)
}
