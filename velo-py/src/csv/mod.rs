//! CSV for `velo run`: bytes in, events out, without Python objects in between.
//!
//! [`record`] finds records and their fields, [`value`] decides which fields are numbers. Only an invalid
//! header raises an exception; the parser returns other invalid records with their line numbers.

mod record;
mod value;

use std::collections::HashSet;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use record::{Record, Splitter};
use value::Number;

/// A record that is no event.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct NoEvent {
    /// How many events of the same piece lie before it.
    after: usize,
    /// Its first line, counted from 1.
    line: u64,
    /// The reason.
    why: String,
}

/// A key that is a float, as its text: `3.1` and `3.10` are two keys.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct FloatKey {
    /// The place of its event in the same piece.
    place: usize,
    text: Py<PyString>,
}

/// The complete records of one piece of a file.
#[pyclass(frozen, get_all, module = "velo._core")]
pub struct CsvRows {
    events: Py<PyList>,
    bad: Vec<Py<NoEvent>>,
    keys: Vec<Py<FloatKey>>,
    /// The line of each event, as `u64`.
    lines: Py<PyBytes>,
}

/// The answer of `start`.
#[derive(FromPyObject)]
struct Fields {
    /// The index of the field that must not be empty, if there is one.
    key: Option<usize>,
    /// The indices of the fields that stay text.
    text: Vec<usize>,
}

/// Whether bytes of NDJSON may hold a number that needs more than 64 bits.
#[pyfunction]
pub fn has_long_number(text: &[u8]) -> bool {
    value::has_long_number(text)
}

/// Makes events of the bytes of one CSV file, as they come.
#[pyclass(module = "velo._core")]
pub struct CsvParser {
    start: Py<PyAny>,
    numbers: bool,
    null: HashSet<Vec<u8>>,
    delimiter: u8,
    columns: Option<Columns>,
    splitter: Splitter,
    buffer: Vec<u8>,
    line: u64,
    begun: bool,
    /// Another file follows one with a header: its first record may be a header or an event.
    judging: bool,
    judged: Option<&'static str>,
}

/// The columns, as the header names them.
struct Columns {
    names: Vec<Py<PyString>>,
    // An event of no values: a copy of it has room for all of them at once.
    spec: Py<PyDict>,
    text: Vec<bool>,
    key: Option<usize>,
}

#[pymethods]
impl CsvParser {
    /// `start` is called with the header, and returns the fields that are read in their own way: see
    /// [`Fields`].
    #[new]
    #[pyo3(signature = (start, numbers, null, delimiter=b','))]
    fn new(start: Py<PyAny>, numbers: bool, null: Vec<String>, delimiter: u8) -> CsvParser {
        CsvParser {
            start,
            numbers,
            null: null.into_iter().map(String::into_bytes).collect(),
            columns: None,
            splitter: Splitter::new(delimiter),
            delimiter,
            buffer: Vec::new(),
            line: 0,
            begun: false,
            judging: false,
            judged: None,
        }
    }

    /// Another file begins. It may have the same header, another one, or none, as the rest of a file that
    /// was cut: `judge` decides by its first record.
    fn restart(&mut self) {
        self.splitter = Splitter::new(self.delimiter);
        self.buffer.clear();
        self.line = 0;
        self.begun = false;
        self.judging = self.columns.is_some();
        self.judged = None;
    }

    /// The kind of the first record after `restart`: `"same"` (the same header), `"header"` or
    /// `"event"`; None before that record.
    #[getter]
    fn judged(&self) -> Option<&'static str> {
        self.judged
    }

    /// Takes the next bytes, and returns the records that are complete.
    #[pyo3(signature = (data, last=false))]
    fn feed(&mut self, py: Python<'_>, data: &[u8], last: bool) -> PyResult<CsvRows> {
        // Moved out, so that slices of it can be used beside the rest of `self`.
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(data);
        let mut events = Vec::new();
        let mut bad = Vec::new();
        let mut keys = Vec::new();
        let mut lines = Vec::new();
        let mut at = 0;
        if !self.begun {
            if buffer.len() < 3 && !last {
                self.buffer = buffer;
                return Ok(CsvRows {
                    events: PyList::empty(py).unbind(),
                    bad,
                    keys,
                    lines: PyBytes::new(py, &[]).unbind(),
                });
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
                Record::Blank => None,
                Record::Bad(why) => Some(why),
                Record::Fields => match std::str::from_utf8(&rest[..found.len]) {
                    Ok(_) => self.take(py, rest, &mut events, &mut keys)?,
                    Err(error) => {
                        let place = error.valid_up_to();
                        Some(format!("not UTF-8: byte {:#04x} at {place}", rest[place]))
                    }
                },
            };
            if events.len() > lines.len() / size_of::<u64>() {
                lines.extend_from_slice(&number.to_ne_bytes());
            }
            if let Some(mut why) = fault {
                if found.lines > 1 {
                    why = format!("{why} (up to line {})", self.line);
                }
                if self.columns.is_none() {
                    return Err(PyValueError::new_err(why));
                }
                let after = events.len();
                let line = number;
                bad.push(Py::new(py, NoEvent { after, line, why })?);
            }
        }
        buffer.drain(..at);
        self.buffer = buffer;
        Ok(CsvRows {
            events: PyList::new(py, events)?.unbind(),
            bad,
            keys,
            lines: PyBytes::new(py, &lines).unbind(),
        })
    }
}

impl CsvParser {
    /// Makes an event of the fields that were split last. Some: the reason why they are no event.
    fn take<'py>(
        &mut self,
        py: Python<'py>,
        bytes: &[u8],
        events: &mut Vec<Bound<'py, PyDict>>,
        keys: &mut Vec<Py<FloatKey>>,
    ) -> PyResult<Option<String>> {
        if std::mem::take(&mut self.judging) && self.judge(py, bytes)? {
            return Ok(None);
        }
        let fields = self.splitter.count();
        let Some(columns) = &self.columns else {
            self.columns = Some(self.begin(py, bytes)?);
            return Ok(None);
        };
        let beyond = columns.names.len()..fields;
        if fields < columns.names.len() || self.any_value(beyond, bytes) {
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
                    Some(Number::Whole(whole)) => {
                        if columns.key == Some(index) && text == b"-0" {
                            keys.push(float_key(py, events.len(), text)?);
                        }
                        event.set_item(name, whole)?;
                    }
                    Some(Number::Real(real)) => {
                        if columns.key == Some(index) {
                            keys.push(float_key(py, events.len(), text)?);
                        }
                        event.set_item(name, real)?;
                    }
                    None => event.set_item(name, as_text(py, text))?,
                }
            }
        }
        events.push(event);
        Ok(None)
    }

    /// How many of the fields that were split last there are without empty ones at the end, which
    /// spreadsheets write.
    fn width(&self, bytes: &[u8]) -> usize {
        let fields = self.splitter.count();
        let last = (1..fields).rfind(|&index| !self.splitter.field(index, bytes).is_empty());
        last.map_or(fields.min(1), |last| last + 1)
    }

    fn any_value(&self, mut fields: std::ops::Range<usize>, bytes: &[u8]) -> bool {
        fields.any(|index| !self.splitter.field(index, bytes).is_empty())
    }

    /// Looks at the first record of a file that follows another, and returns whether it is a header,
    /// which it is when it is the same one again. Otherwise it must look like one (texts, all
    /// different, no numbers) and have another number of fields, or some of the same names.
    fn judge(&mut self, py: Python<'_>, bytes: &[u8]) -> PyResult<bool> {
        let Some(columns) = &self.columns else {
            return Ok(false);
        };
        let width = self.width(bytes);
        let mut names = HashSet::new();
        for name in &columns.names {
            names.insert(name.bind(py).to_str()?.as_bytes());
        }
        let fields = (0..width).map(|index| self.splitter.field(index, bytes));
        let known = fields.clone().filter(|field| names.contains(field)).count();
        let distinct: HashSet<_> = fields.clone().collect();
        let same = width == columns.names.len() && known == width && distinct.len() == width;
        let is_name = |text: &[u8]| !text.is_empty() && value::number(text).is_none();
        let header = same
            || distinct.len() == width
                && fields.clone().all(is_name)
                && (width != columns.names.len() || known > 0);
        // Its columns may have changed places.
        if header {
            self.columns = Some(self.begin(py, bytes)?);
        }
        self.judged = Some(match (same, header) {
            (true, _) => "same",
            (_, true) => "header",
            _ => "event",
        });
        Ok(header)
    }

    /// Takes the fields that were split last as the header.
    fn begin(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<Columns> {
        let names: Vec<_> = (0..self.width(bytes))
            .map(|index| as_text(py, self.splitter.field(index, bytes)))
            .collect();
        let fields: Fields = self.start.call1(py, (names.clone(),))?.extract(py)?;
        let spec = PyDict::new(py);
        let mut text = vec![false; names.len()];
        for name in &names {
            spec.set_item(name, py.None())?;
        }
        for index in fields.text {
            if let Some(field) = text.get_mut(index) {
                *field = true;
            }
        }
        let names = names.into_iter().map(Bound::unbind).collect();
        Ok(Columns {
            names,
            spec: spec.unbind(),
            text,
            key: fields.key,
        })
    }
}

fn float_key(py: Python<'_>, place: usize, text: &[u8]) -> PyResult<Py<FloatKey>> {
    let text = as_text(py, text).unbind();
    Py::new(py, FloatKey { place, text })
}

/// Text of a record whose UTF-8 was checked: its fields lie between ASCII characters.
fn as_text<'py>(py: Python<'py>, text: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(text) {
        Ok(text) => PyString::new(py, text),
        Err(_) => PyString::new(py, &String::from_utf8_lossy(text)),
    }
}
