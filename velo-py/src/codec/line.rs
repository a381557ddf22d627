//! Lines of files: the text of a line, which the reader makes an event of.
//!
//! The bytes after `c1 07`: the length of the packed columns as `u32`, the packed columns of a record of
//! CSV, the length of the text as `u32`, and the text. Without columns the text is JSON.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::error::{Fault, Stop, fault};
use super::marker::{self, own};
use super::out::Out;
use super::reader::{Decode, Reader};
use super::writer::{Encode, Writer};
use crate::csv::Form;
use crate::lines::Line;

/// The bytes of a line besides its columns and its text.
const HEAD: usize = 10;

/// The encoded size of a line.
pub fn size_hint(obj: &Bound<'_, PyAny>) -> Option<usize> {
    let line = obj.cast_exact::<Line>().ok()?.get();
    let form = line.form.as_ref();
    let form = form.map_or(0, |form| form.bind(obj.py()).as_bytes().len());
    Some(HEAD + form + line.text.len())
}

/// Writes a line. False: the object is no line.
pub fn put<'py, O: Out, E: Encode>(
    writer: &mut Writer<'_, 'py, O, E>,
    obj: &Bound<'py, PyAny>,
) -> Result<bool, Stop> {
    let Ok(line) = obj.cast_exact::<Line>() else {
        return Ok(false);
    };
    let line = line.get();
    let form = line.form.as_ref();
    let form = form.map_or(&[][..], |form| form.bind(obj.py()).as_bytes());
    writer.out.put(&[marker::OWN, own::LINE])?;
    for part in [form, &line.text] {
        let len = u32::try_from(part.len()).map_err(|_| Stop::Whole)?;
        writer.out.put(&len.to_le_bytes())?;
        writer.out.put(part)?;
    }
    Ok(true)
}

/// The event of the line that follows.
pub fn event<'py, D: Decode>(reader: &mut Reader<'_, 'py, D>) -> Result<Bound<'py, PyAny>, Fault> {
    let py = reader.py;
    let len = u32::from_le_bytes(*reader.bytes()?) as usize;
    let packed = reader.slice(len)?;
    let len = u32::from_le_bytes(*reader.bytes()?) as usize;
    let text = reader.slice(len)?;
    if packed.is_empty() {
        let loads = py
            .import(intern!(py, "orjson"))?
            .getattr(intern!(py, "loads"))?;
        return match loads.call1((PyBytes::new(py, text),)) {
            // The reader of the file has sent lines that are JSON.
            Err(error) if error.is_instance_of::<PyValueError>(py) => {
                fault("a line that is no JSON")
            }
            event => Ok(event?),
        };
    }
    // Python code may run while an event is made, and decode another one: so the form is taken out.
    let kept = &reader.lookups.form;
    let last = kept.with(py, Option::take).unwrap_or_default();
    let form = match last.filter(|form| form.is(packed)) {
        Some(form) => Some(form),
        None => Form::new(py, packed)?,
    };
    let Some(mut form) = form else {
        return fault("a line whose columns make no sense");
    };
    let event = form.event(py, text);
    let _ = kept.with(py, |kept| *kept = Some(form));
    match event? {
        Some(event) => Ok(event.into_any()),
        None => fault("a line that is no record of its columns"),
    }
}
