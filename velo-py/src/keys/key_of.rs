//! Finds the key of an event.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

/// A function, or the field, index or attribute that holds the key.
pub enum KeyOf {
    Call(Py<PyAny>),
    Field {
        name: Py<PyAny>,
        attribute: Py<PyString>,
        /// Its index in a tuple.
        index: Option<usize>,
    },
}

impl KeyOf {
    /// From the argument `key` of a user.
    pub fn new(key: &Bound<'_, PyAny>) -> PyResult<Self> {
        if key.is_callable() {
            return Ok(KeyOf::Call(key.clone().unbind()));
        }
        Ok(KeyOf::Field {
            name: key.clone().unbind(),
            attribute: key.str()?.unbind(),
            index: key.extract().ok(),
        })
    }

    /// The key of an event, and its hash.
    ///
    /// # Errors
    /// The exception of the search, with a note that names the field or the function, and the event.
    #[inline]
    pub fn key<'py>(&self, event: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyAny>, u64)> {
        let found = self
            .find(event)
            .and_then(|key| super::index::hash_of(&key).map(|hash| (key, hash)));
        found.map_err(|error| self.named(event, error))
    }

    #[inline]
    fn find<'py>(&self, event: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            KeyOf::Call(function) => function.bind(event.py()).call1((event,)),
            KeyOf::Field {
                name,
                attribute,
                index,
            } => {
                if let Some(index) = index
                    && let Ok(event) = event.cast_exact::<PyTuple>()
                    && *index < event.len()
                {
                    return event.get_item(*index);
                }
                match event.get_item(name) {
                    Err(error) if error.is_instance_of::<PyTypeError>(event.py()) => {
                        event.getattr(attribute)
                    }
                    found => found,
                }
            }
        }
    }

    /// Adds a note that names the event, and the field or the function.
    #[cold]
    fn named(&self, event: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
        let py = event.py();
        let shown = shown(event).unwrap_or_else(|_| "an event that cannot be shown".to_owned());
        let what = match self {
            KeyOf::Call(function) => {
                let (name, place) = described(function.bind(py));
                format!("the function `{name}`{place}, which was called with")
            }
            KeyOf::Field { attribute, .. } => {
                format!("the field `{}`, which was looked up in", attribute.bind(py))
            }
        };
        let note = format!("`key` is {what} this event: {shown}");
        let _ = error
            .value(py)
            .call_method1(intern!(py, "add_note"), (note,));
        error
    }
}

fn shown(event: &Bound<'_, PyAny>) -> PyResult<String> {
    let reprlib = event.py().import("reprlib")?;
    reprlib.call_method1("repr", (event,))?.extract()
}

/// The name of a function, and where it is defined, if that is known.
fn described(function: &Bound<'_, PyAny>) -> (String, String) {
    let py = function.py();
    let name = function
        .getattr(intern!(py, "__qualname__"))
        .and_then(|name| name.extract())
        .or_else(|_| function.repr().map(|repr| repr.to_string()));
    let place = || -> PyResult<String> {
        let code = function.getattr(intern!(py, "__code__"))?;
        let file: String = code.getattr(intern!(py, "co_filename"))?.extract()?;
        let line: u32 = code.getattr(intern!(py, "co_firstlineno"))?.extract()?;
        Ok(format!(" ({file}:{line})"))
    };
    (name.unwrap_or_default(), place().unwrap_or_default())
}
