//! `velo.connect.Record`: an event with its origin. It travels natively, as the seven values it holds.

use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::error::{Fault, Stop, fault};
use super::marker::{self, own};
use super::out::Out;
use super::reader::{Decode, Reader};
use super::writer::{Encode, Writer};

/// The number of values in a record.
const FIELDS: usize = 7;

/// An event of a source, with its origin.
///
/// A stream function receives `value` alone; `events.record` is the record of the event that it
/// received last.
///
/// Attributes:
///     value: The event.
///     key: The key that the broker keeps for it, or None.
///     topic: The topic, stream, subject, queue, table or file that it comes from.
///     partition: The partition of the source: positions have an order within it.
///     position: The position in the partition.
///     timestamp: The seconds since the epoch that the source has for it, or None.
///     headers: Its headers, as pairs of a name and bytes.
#[pyclass(frozen, module = "velo.connect")]
pub struct Record {
    #[pyo3(get)]
    pub value: Py<PyAny>,
    #[pyo3(get)]
    pub key: Py<PyAny>,
    #[pyo3(get)]
    pub topic: Py<PyAny>,
    #[pyo3(get)]
    pub partition: Py<PyAny>,
    #[pyo3(get)]
    pub position: Py<PyAny>,
    #[pyo3(get)]
    pub timestamp: Py<PyAny>,
    #[pyo3(get)]
    pub headers: Py<PyAny>,
}

#[pymethods]
impl Record {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "a record is made of so many")]
    #[pyo3(signature = (value, key=None, topic=None, partition=None, position=None, timestamp=None, headers=None))]
    fn new(
        py: Python<'_>,
        value: Py<PyAny>,
        key: Option<Py<PyAny>>,
        topic: Option<Py<PyAny>>,
        partition: Option<Py<PyAny>>,
        position: Option<Py<PyAny>>,
        timestamp: Option<Py<PyAny>>,
        headers: Option<Py<PyAny>>,
    ) -> Self {
        let none = |given: Option<Py<PyAny>>| given.unwrap_or_else(|| py.None());
        Record {
            value,
            key: none(key),
            topic: topic.unwrap_or_else(|| PyString::intern(py, "").into_any().unbind()),
            partition: none(partition),
            position: none(position),
            timestamp: none(timestamp),
            headers: headers.unwrap_or_else(|| PyTuple::empty(py).into_any().unbind()),
        }
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let made_of = PyTuple::new(slf.py(), slf.get().fields())?;
        let made = (slf.get_type(), made_of).into_pyobject(slf.py())?;
        Ok(made.into_any())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shown = |value: &Py<PyAny>| -> PyResult<String> {
            Ok(value.bind(py).repr()?.to_string_lossy().into_owned())
        };
        Ok(format!(
            "Record({}, key={}, topic={}, partition={}, position={})",
            shown(&self.value)?,
            shown(&self.key)?,
            shown(&self.topic)?,
            shown(&self.partition)?,
            shown(&self.position)?,
        ))
    }
}

impl Record {
    fn fields(&self) -> [&Py<PyAny>; FIELDS] {
        [
            &self.value,
            &self.key,
            &self.topic,
            &self.partition,
            &self.position,
            &self.timestamp,
            &self.headers,
        ]
    }
}

/// Writes a record. False: the object is no record.
pub fn put<'py, O: Out, E: Encode>(
    writer: &mut Writer<'_, 'py, O, E>,
    obj: &Bound<'py, PyAny>,
) -> Result<bool, Stop> {
    let Ok(record) = obj.cast_exact::<Record>() else {
        return Ok(false);
    };
    writer.immutable(obj, |writer| {
        writer.out.put(&[marker::OWN, own::RECORD])?;
        let mut fields = record.get().fields().into_iter();
        fields.try_for_each(|field| writer.value(field.bind(obj.py())))
    })?;
    Ok(true)
}

/// The record of the values that follow.
pub fn record<'py, D: Decode>(reader: &mut Reader<'_, 'py, D>) -> Result<Bound<'py, PyAny>, Fault> {
    reader.enter(FIELDS)?;
    let mut next = || reader.item().map(Bound::unbind);
    let record = Record {
        value: next()?,
        key: next()?,
        topic: next()?,
        partition: next()?,
        position: next()?,
        timestamp: next()?,
        headers: next()?,
    };
    reader.leave();
    match Bound::new(reader.py, record) {
        Ok(record) => Ok(record.into_any()),
        Err(_) => fault("a record that cannot be made"),
    }
}
