//! The types of the module `datetime`, looked up once.

use pyo3::prelude::*;
use pyo3::types::{PyDate, PyDateTime, PyDelta, PyTime, PyType, PyTzInfo};

/// The types of the module `datetime`.
pub struct Types {
    pub date: Py<PyType>,
    pub time: Py<PyType>,
    pub datetime: Py<PyType>,
    pub timedelta: Py<PyType>,
    pub timezone: Py<PyType>,
    pub utc: Py<PyTzInfo>,
}

impl Types {
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let utc = PyTzInfo::utc(py)?.to_owned();
        Ok(Self {
            date: py.get_type::<PyDate>().unbind(),
            time: py.get_type::<PyTime>().unbind(),
            datetime: py.get_type::<PyDateTime>().unbind(),
            timedelta: py.get_type::<PyDelta>().unbind(),
            timezone: utc.get_type().unbind(),
            utc: utc.unbind(),
        })
    }
}
