//! CSV for `velo run`: bytes in, events out, without a Python object for what is only on the way.
//!
//! [`record`] finds records and their fields, [`value`] says which fields are numbers. Nothing that
//! a file holds raises, but its header: a record that is none is told with its line number.

mod record;
mod value;

use std::collections::HashSet;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use record::{Record, Splitter};
use value::Number;

/// A record that is no event: how many events lay before it in the same piece, its line, and why.
type Bad = (usize, u64, String);

/// Makes events of the bytes of one CSV file, as they come.
#[pyclass(module = "velo._core")]
pub struct CsvParser {
    start: Py<PyAny>,
    numbers: bool,
    null: HashSet<Vec<u8>>,
    columns: Option<Columns>,
    splitter: Splitter,
    buffer: Vec<u8>,
    line: u64,
    begun: bool,
}

/// What the header says about each field.
struct Columns {
    names: Vec<Py<PyString>>,
    // An event of no values: a copy of it has room for all of them at once.
    spec: Py<PyDict>,
    text: Vec<bool>,
    key: Option<usize>,
}

#[pymethods]
impl CsvParser {
    /// `start` is called with the header, and returns the index of the field that must not be
    /// empty, if there is one, and those of the fields that stay text.
    #[new]
    fn new(start: Py<PyAny>, numbers: bool, null: Vec<String>) -> CsvParser {
        CsvParser {
            start,
            numbers,
            null: null.into_iter().map(String::into_bytes).collect(),
            columns: None,
            splitter: Splitter::default(),
            buffer: Vec::new(),
            line: 0,
            begun: false,
        }
    }

    /// Takes the next bytes, and returns the events that are complete and the records that are none.
    #[pyo3(signature = (data, last=false))]
    fn feed<'py>(
        &mut self,
        py: Python<'py>,
        data: &[u8],
        last: bool,
    ) -> PyResult<(Bound<'py, PyList>, Vec<Bad>)> {
        // Taken out, so that what is found in it can be used beside the rest of `self`.
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(data);
        let mut events = Vec::new();
        let mut bad = Vec::new();
        let mut at = 0;
        if !self.begun {
            if buffer.len() < 3 && !last {
                self.buffer = buffer;
                return Ok((PyList::empty(py), bad));
            }
            self.begun = true;
            at = if buffer.starts_with(b"\xef\xbb\xbf") {
                3
            } else {
                0
            };
        }
        while at < buffer.len() {
            let rest = &buffer[at..];
            let Some(found) = self.splitter.next(rest, last) else {
                break;
            };
            let number = self.line + 1;
            self.line += found.lines;
            at += found.len;
            let fault = match found.record {
                Record::ArraySpec => None,
                Record::Bad(why) => Some(why),
                Record::Fields => match std::str::from_utf8(&rest[..found.len]) {
                    Ok(_) => self.take(py, rest, &mut events)?,
                    Err(error) => {
                        let place = error.valid_up_to();
                        Some(format!("not UTF-8: byte {:#04x} at {place}", rest[place]))
                    }
                },
            };
            if let Some(mut why) = fault {
                if found.lines > 1 {
                    why = format!("{why} (up to line {})", self.line);
                }
                if self.columns.is_none() {
                    return Err(PyValueError::new_err(why));
                }
                bad.push((events.len(), number, why));
            }
        }
        buffer.drain(..at);
        self.buffer = buffer;
        Ok((PyList::new(py, events)?, bad))
    }
}

impl CsvParser {
    /// Makes an event of the fields that were split last, or says why they are none.
    fn take<'py>(
        &mut self,
        py: Python<'py>,
        bytes: &[u8],
        events: &mut Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Option<String>> {
        let fields = self.splitter.count();
        let Some(columns) = &self.columns else {
            self.columns = Some(self.begin(py, bytes)?);
            return Ok(None);
        };
        if fields != columns.names.len() {
            let s = if fields == 1 { "" } else { "s" };
            let header = columns.names.len();
            return Ok(Some(format!(
                "{fields} field{s}, where the header has {header}"
            )));
        }
        let event = columns.spec.bind(py).copy()?;
        for (index, name) in columns.names.iter().enumerate() {
            let text = self.splitter.field(index, bytes);
            let name = name.bind(py);
            if !self.numbers || columns.text[index] {
                event.set_item(name, as_text(py, text))?;
            } else if text.is_empty() || (!self.null.is_empty() && self.null.contains(text)) {
                if columns.key == Some(index) {
                    return Ok(Some(format!("`{name}` is empty")));
                }
                // It is None already.
            } else {
                match value::number(text) {
                    Some(Number::Whole(whole)) => event.set_item(name, whole)?,
                    Some(Number::Real(real)) => event.set_item(name, real)?,
                    None => event.set_item(name, as_text(py, text))?,
                }
            }
        }
        events.push(event);
        Ok(None)
    }

    /// Takes the fields that were split last as the header.
    fn begin(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<Columns> {
        let names: Vec<_> = (0..self.splitter.count())
            .map(|index| as_text(py, self.splitter.field(index, bytes)))
            .collect();
        let (key, stay): (Option<usize>, Vec<usize>) =
            self.start.call1(py, (names.clone(),))?.extract(py)?;
        let spec = PyDict::new(py);
        let mut text = vec![false; names.len()];
        for name in &names {
            spec.set_item(name, py.None())?;
        }
        for index in stay {
            if let Some(field) = text.get_mut(index) {
                *field = true;
            }
        }
        let names = names.into_iter().map(Bound::unbind).collect();
        Ok(Columns {
            names,
            spec: spec.unbind(),
            text,
            key,
        })
    }
}

/// Text of a record whose UTF-8 was checked: its fields lie between ASCII characters.
fn as_text<'py>(py: Python<'py>, text: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(text) {
        Ok(text) => PyString::new(py, text),
        Err(_) => PyString::new(py, &String::from_utf8_lossy(text)),
    }
}
