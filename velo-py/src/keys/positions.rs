//! The positions of records that lie in the window of their partition.

use std::collections::VecDeque;

use pyo3::prelude::*;
use pyo3::types::PyInt;

/// Positions, in order. Most are integers: as numbers they take 8 bytes, and 40 as objects.
pub enum Positions {
    Numbers(VecDeque<i64>),
    /// From the first one on that is no integer, or does not fit.
    Objects(VecDeque<Py<PyAny>>),
}

/// One of them.
pub enum Position {
    Number(i64),
    Object(Py<PyAny>),
}

impl Default for Positions {
    fn default() -> Self {
        Positions::Numbers(VecDeque::new())
    }
}

impl Positions {
    /// Adds one at the end.
    #[inline]
    pub fn push(&mut self, py: Python<'_>, position: &Py<PyAny>) -> PyResult<()> {
        if let Positions::Numbers(numbers) = self {
            // A subclass, such as a bool, would come back as something else.
            if let Ok(number) = position.bind(py).cast_exact::<PyInt>()
                && let Ok(number) = number.extract()
            {
                numbers.push_back(number);
                return Ok(());
            }
            let objects: PyResult<_> = numbers.iter().map(|number| object(py, *number)).collect();
            *self = Positions::Objects(objects?);
        }
        if let Positions::Objects(objects) = self {
            objects.push_back(position.clone_ref(py));
        }
        Ok(())
    }

    /// Takes the first one.
    #[inline]
    pub fn pop(&mut self) -> Option<Position> {
        match self {
            Positions::Numbers(numbers) => numbers.pop_front().map(Position::Number),
            Positions::Objects(objects) => objects.pop_front().map(Position::Object),
        }
    }

    /// The one at this place.
    pub fn object(&self, py: Python<'_>, at: usize) -> PyResult<Option<Py<PyAny>>> {
        match self {
            Positions::Numbers(numbers) => numbers.get(at).map(|number| object(py, *number)),
            Positions::Objects(objects) => objects.get(at).map(|object| Ok(object.clone_ref(py))),
        }
        .transpose()
    }
}

impl Position {
    /// As the source has given it.
    pub fn object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Position::Number(number) => object(py, *number),
            Position::Object(object) => Ok(object.clone_ref(py)),
        }
    }
}

fn object(py: Python<'_>, number: i64) -> PyResult<Py<PyAny>> {
    Ok(number.into_pyobject(py)?.into_any().unbind())
}
