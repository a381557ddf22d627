//! CSV for `velo run`: bytes in, events out, without Python objects in between.
//!
//! [`record`] finds records and their fields, [`columns`] makes events of them, [`value`] decides which
//! fields are numbers, and [`form`] makes the event of one record in another process. Only an invalid
//! header raises an exception; the parser returns other invalid records with their line numbers.

mod columns;
mod form;
mod record;
mod value;

use std::collections::HashSet;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::lines::Line;
use columns::{Columns, Value, as_text};
use record::{Record, Splitter};

pub use form::Form;

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
    /// Makes a key of the text of a float, where events are lines; None: events are dicts.
    lines: Option<Py<PyAny>>,
    header: Option<Header>,
    splitter: Splitter,
    buffer: Vec<u8>,
    line: u64,
    begun: bool,
    /// Another file follows one with a header: its first record may be a header or an event.
    judging: bool,
    judged: Option<&'static str>,
}

/// The columns of a file that has begun.
struct Header {
    columns: Columns,
    /// The index of the field that must not be empty, if there is one.
    key: Option<usize>,
    /// The columns as lines carry them.
    packed: Py<PyBytes>,
}

#[pymethods]
impl CsvParser {
    /// `start` is called with the header, and returns the fields that are read in their own way: see
    /// [`Fields`].
    #[new]
    #[pyo3(signature = (start, numbers, null, delimiter=b',', lines=None))]
    fn new(
        start: Py<PyAny>,
        numbers: bool,
        null: Vec<String>,
        delimiter: u8,
        lines: Option<Py<PyAny>>,
    ) -> CsvParser {
        CsvParser {
            start,
            numbers,
            null: null.into_iter().map(String::into_bytes).collect(),
            lines,
            header: None,
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
        self.judging = self.header.is_some();
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
                    Ok(_) => self.take(py, rest, found.len, &mut events, &mut keys)?,
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
                if self.header.is_none() {
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
    /// Makes an event of the fields that were split last, a record of `len` bytes. Some: the reason why
    /// they are no event.
    fn take<'py>(
        &mut self,
        py: Python<'py>,
        bytes: &[u8],
        len: usize,
        events: &mut Vec<Bound<'py, PyAny>>,
        keys: &mut Vec<Py<FloatKey>>,
    ) -> PyResult<Option<String>> {
        if std::mem::take(&mut self.judging) && self.judge(py, bytes)? {
            return Ok(None);
        }
        let fields = self.splitter.count();
        let Some(Header {
            columns,
            key,
            packed,
        }) = &self.header
        else {
            self.header = Some(self.begin(py, bytes)?);
            return Ok(None);
        };
        if fields < columns.count() || self.any_value(columns.count()..fields, bytes) {
            let s = if fields == 1 { "" } else { "s" };
            let header = columns.count();
            return Ok(Some(format!(
                "{fields} field{s}, where the header has {header}"
            )));
        }
        let key = key.map(|index| {
            let text = self.splitter.field(index, bytes);
            (index, text, columns.value(index, text))
        });
        if let Some((index, _, Value::Null)) = key {
            let name = columns.names(py).nth(index).map(ToString::to_string);
            return Ok(Some(format!("`{}` is empty", name.unwrap_or_default())));
        }
        let written = match key {
            Some((_, text @ b"-0", Value::Whole(_)) | (_, text, Value::Real(_))) => {
                Some(as_text(py, text))
            }
            _ => None,
        };
        let Some(lines) = &self.lines else {
            if let Some(text) = written {
                let (place, text) = (events.len(), text.unbind());
                keys.push(Py::new(py, FloatKey { place, text })?);
            }
            events.push(columns.event(py, &self.splitter, bytes)?.into_any());
            return Ok(None);
        };
        let key = match (written, key) {
            (Some(text), _) => lines.call1(py, (text,))?,
            (None, Some((_, _, Value::Whole(whole)))) => {
                whole.into_pyobject(py)?.into_any().unbind()
            }
            (None, Some((_, text, _))) => as_text(py, text).into_any().unbind(),
            (None, None) => py.None(),
        };
        let line = Line {
            key,
            text: bytes[..len].into(),
            form: Some(packed.clone_ref(py)),
        };
        events.push(Bound::new(py, line)?.into_any());
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
        let Some(Header { columns, .. }) = &self.header else {
            return Ok(false);
        };
        let width = self.width(bytes);
        let mut names = HashSet::new();
        for name in columns.names(py) {
            names.insert(name.to_str()?.as_bytes());
        }
        let fields = (0..width).map(|index| self.splitter.field(index, bytes));
        let known = fields.clone().filter(|field| names.contains(field)).count();
        let distinct: HashSet<_> = fields.clone().collect();
        let same = width == columns.count() && known == width && distinct.len() == width;
        let is_name = |text: &[u8]| !text.is_empty() && value::number(text).is_none();
        let header = same
            || distinct.len() == width
                && fields.clone().all(is_name)
                && (width != columns.count() || known > 0);
        // Its columns may have changed places.
        if header {
            self.header = Some(self.begin(py, bytes)?);
        }
        self.judged = Some(match (same, header) {
            (true, _) => "same",
            (_, true) => "header",
            _ => "event",
        });
        Ok(header)
    }

    /// Takes the fields that were split last as the header.
    fn begin(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<Header> {
        let names: Vec<_> = (0..self.width(bytes))
            .map(|index| as_text(py, self.splitter.field(index, bytes)))
            .collect();
        let fields: Fields = self.start.call1(py, (names.clone(),))?.extract(py)?;
        let columns = Columns::new(py, names, &fields.text, self.numbers, self.null.clone())?;
        let packed = columns.packed(py, self.delimiter)?;
        Ok(Header {
            columns,
            key: fields.key,
            packed: PyBytes::new(py, &packed).unbind(),
        })
    }
}
