//! Refuses sources whose iteration gives keys or columns instead of events.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

/// Packages whose tables iterate over their columns.
const TABLES: [&str; 4] = ["pandas", "polars", "pyspark", "dask"];

/// Refuses a plain source that is no iterable, or whose iteration gives keys or columns.
#[pyfunction]
pub fn check_source(events: &Bound<'_, PyAny>) -> PyResult<()> {
    if events.is_exact_instance_of::<PyList>() || events.is_exact_instance_of::<PyTuple>() {
        return Ok(());
    }
    let kind = events.get_type();
    let name = kind.name()?;
    let name = name.to_string_lossy();
    if events.is_instance_of::<PyDict>() {
        return Err(PyTypeError::new_err(format!(
            "a `{name}` as a source would give its keys: pass `.items()`, `.values()`, or a list \
             with the dict as its one event"
        )));
    }
    if name == "DataFrame" || name == "LazyFrame" {
        let module = kind.module()?;
        let module = module.to_string_lossy();
        let package = module.split('.').next().unwrap_or_default();
        if TABLES.contains(&package) {
            let rows = match package {
                "polars" => ".iter_rows(named=True)",
                _ => ".to_dict('records')",
            };
            return Err(PyTypeError::new_err(format!(
                "a {package} `{name}` as a source would give its columns: pass its rows, as by \
                 `{rows}`, or a list with the frame as its one event"
            )));
        }
    }
    let slots = (
        events.hasattr("__iter__")?,
        events.hasattr("__getitem__")?,
        events.is_callable(),
    );
    let hint = match slots {
        (true, ..) | (_, true, _) => return Ok(()),
        (.., true) => "; call it, if it makes one",
        _ => "",
    };
    Err(PyTypeError::new_err(format!(
        "a source is an iterable or an async iterable, not `{name}`{hint}"
    )))
}
