//! The columns of a CSV file, and the event of a record.

use std::collections::HashSet;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::record::Splitter;
use super::value::{self, Number};

/// The columns, as the header names them, and the rules for their values.
pub struct Columns {
    names: Vec<Py<PyString>>,
    // An event of no values: a copy of it has room for all of them at once.
    spec: Py<PyDict>,
    /// The columns whose values always stay text.
    text: Vec<bool>,
    numbers: bool,
    null: HashSet<Vec<u8>>,
}

/// The value of one field.
pub enum Value<'a> {
    Text(&'a [u8]),
    Null,
    Whole(i64),
    Real(f64),
}

impl Columns {
    /// Columns of these names. `numbers` says whether texts that look like numbers become some, except
    /// in the columns `text`; `null` has the texts that mean None, besides the empty one.
    pub fn new(
        py: Python<'_>,
        names: Vec<Bound<'_, PyString>>,
        text: &[usize],
        numbers: bool,
        null: HashSet<Vec<u8>>,
    ) -> PyResult<Self> {
        let spec = PyDict::new(py);
        for name in &names {
            spec.set_item(name, py.None())?;
        }
        Ok(Columns {
            text: (0..names.len())
                .map(|index| text.contains(&index))
                .collect(),
            names: names.into_iter().map(Bound::unbind).collect(),
            spec: spec.unbind(),
            numbers,
            null,
        })
    }

    /// The number of columns.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The names of the columns.
    pub fn names<'a>(&'a self, py: Python<'a>) -> impl Iterator<Item = &'a Bound<'a, PyString>> {
        self.names.iter().map(move |name| name.bind(py))
    }

    /// The value of a field of one column.
    #[inline]
    pub fn value<'a>(&self, index: usize, text: &'a [u8]) -> Value<'a> {
        if !self.numbers || self.text[index] {
            return Value::Text(text);
        }
        if text.is_empty() || (!self.null.is_empty() && self.null.contains(text)) {
            return Value::Null;
        }
        match value::number(text) {
            Some(Number::Whole(whole)) => Value::Whole(whole),
            Some(Number::Real(real)) => Value::Real(real),
            None => Value::Text(text),
        }
    }

    /// The event of the record that was split last, which `bytes` begins with. It has at least as many
    /// fields as there are columns.
    pub fn event<'py>(
        &self,
        py: Python<'py>,
        splitter: &Splitter,
        bytes: &[u8],
    ) -> PyResult<Bound<'py, PyDict>> {
        let event = self.spec.bind(py).copy()?;
        for (index, name) in self.names(py).enumerate() {
            match self.value(index, splitter.field(index, bytes)) {
                Value::Text(text) => event.set_item(name, as_text(py, text))?,
                Value::Null => {} // it is None already
                Value::Whole(whole) => event.set_item(name, whole)?,
                Value::Real(real) => event.set_item(name, real)?,
            }
        }
        Ok(event)
    }

    /// The columns as bytes, from which [`Form`](super::form::Form) makes them again.
    pub fn packed(&self, py: Python<'_>, delimiter: u8) -> PyResult<Vec<u8>> {
        let mut bytes = vec![delimiter, u8::from(self.numbers)];
        put_count(&mut bytes, self.names.len());
        for (name, &text) in self.names(py).zip(&self.text) {
            put(&mut bytes, name.to_str()?.as_bytes());
            bytes.push(u8::from(text));
        }
        put_count(&mut bytes, self.null.len());
        for text in &self.null {
            put(&mut bytes, text);
        }
        Ok(bytes)
    }
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put(bytes: &mut Vec<u8>, text: &[u8]) {
    put_count(bytes, text.len());
    bytes.extend_from_slice(text);
}

/// Text of a record whose UTF-8 was checked: its fields lie between ASCII characters.
pub fn as_text<'py>(py: Python<'py>, text: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(text) {
        Ok(text) => PyString::new(py, text),
        Err(_) => PyString::new(py, &String::from_utf8_lossy(text)),
    }
}
